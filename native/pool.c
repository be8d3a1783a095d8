/* Threads that wait cheaply, and tasks handed out by one counter.
 *
 * `ticket` holds the number of the current job (upper half) and its next task (lower half). A thread reads the ticket,
 * then the job, then claims the task by compare-and-swap: if that succeeds, the job it read is the ticket's, because
 * a job is replaced only after its ticket was closed. So a thread that wakes late finds nothing to claim, and nobody
 * waits for it. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "pool.h"

#define CLOSED 0x7fffffff /* the task number of a ticket that is not to be claimed */
#define SPIN_NS 20000     /* how long a thread watches for work before it sleeps: about two ops' distance */

typedef void (*task_fn)(void *arg, int task, int thread);

struct worker {
    et_context *ctx;
    int thread;
    pthread_t id;
};

struct et_context {
    const struct et_row *row;
    float *scratch;
    int threads, started;
    pid_t owner; /* a forked child has no workers, and runs everything itself */

    _Atomic uint64_t ticket;
    _Atomic(task_fn) task;
    _Atomic(void *) arg;
    atomic_int n_tasks, done;

    pthread_mutex_t lock;
    pthread_cond_t work, finished;
    atomic_int sleepers, caller_sleeps, stop;
    struct worker workers[];
};

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void relax(void) {
#if defined __x86_64__ || defined __i386__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ __volatile__("yield");
#endif
}

/* Runs tasks of the ticket's job until none is left; returns the ticket seen last. */
static uint64_t run_tasks(et_context *ctx, int thread) {
    uint64_t ticket = atomic_load(&ctx->ticket);
    for (;;) {
        task_fn task = atomic_load(&ctx->task);
        void *arg = atomic_load(&ctx->arg);
        int n = atomic_load(&ctx->n_tasks), i = (int)(ticket & CLOSED);
        if (i >= n)
            return ticket;
        if (!atomic_compare_exchange_weak(&ctx->ticket, &ticket, ticket + 1))
            continue;
        task(arg, i, thread);
        if (atomic_fetch_add(&ctx->done, 1) + 1 == n && atomic_load(&ctx->caller_sleeps)) {
            pthread_mutex_lock(&ctx->lock);
            pthread_cond_signal(&ctx->finished);
            pthread_mutex_unlock(&ctx->lock);
        }
        ticket = atomic_load(&ctx->ticket);
    }
}

static void wait_for_work(et_context *ctx, uint64_t seen) {
    for (int64_t end = now_ns() + SPIN_NS; now_ns() < end; relax())
        if (atomic_load(&ctx->ticket) >> 32 != seen >> 32 || atomic_load(&ctx->stop))
            return;
    pthread_mutex_lock(&ctx->lock);
    atomic_fetch_add(&ctx->sleepers, 1);
    while (atomic_load(&ctx->ticket) >> 32 == seen >> 32 && !atomic_load(&ctx->stop))
        pthread_cond_wait(&ctx->work, &ctx->lock);
    atomic_fetch_sub(&ctx->sleepers, 1);
    pthread_mutex_unlock(&ctx->lock);
}

static void *worker_main(void *arg) {
    struct worker *w = arg;
    while (!atomic_load(&w->ctx->stop))
        wait_for_work(w->ctx, run_tasks(w->ctx, w->thread));
    return NULL;
}

static void wait_for_done(et_context *ctx, int n) {
    for (int64_t end = now_ns() + SPIN_NS; now_ns() < end; relax())
        if (atomic_load(&ctx->done) == n)
            return;
    pthread_mutex_lock(&ctx->lock);
    atomic_store(&ctx->caller_sleeps, 1);
    while (atomic_load(&ctx->done) != n)
        pthread_cond_wait(&ctx->finished, &ctx->lock);
    atomic_store(&ctx->caller_sleeps, 0);
    pthread_mutex_unlock(&ctx->lock);
}

void et_parallel(et_context *ctx, task_fn task, void *arg, int n_tasks) {
    if (n_tasks <= 1 || ctx->threads == 1 || getpid() != ctx->owner) {
        for (int i = 0; i < n_tasks; i++)
            task(arg, i, 0);
        return;
    }
    uint64_t job = atomic_load(&ctx->ticket) >> 32;
    atomic_store(&ctx->ticket, (job + 1) << 32 | CLOSED);
    atomic_store(&ctx->task, task);
    atomic_store(&ctx->arg, arg);
    atomic_store(&ctx->n_tasks, n_tasks);
    atomic_store(&ctx->done, 0);
    atomic_store(&ctx->ticket, (job + 2) << 32);
    if (atomic_load(&ctx->sleepers)) {
        pthread_mutex_lock(&ctx->lock);
        pthread_cond_broadcast(&ctx->work);
        pthread_mutex_unlock(&ctx->lock);
    }
    run_tasks(ctx, 0);
    wait_for_done(ctx, n_tasks);
}

/* Starts the workers with all signals blocked: signals belong to the application's own threads. */
static int start_workers(et_context *ctx) {
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    for (int i = 1; i < ctx->threads; i++) {
        struct worker *w = &ctx->workers[i - 1];
        w->ctx = ctx;
        w->thread = i;
        if (pthread_create(&w->id, NULL, worker_main, w) != 0)
            break;
        ctx->started++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return ctx->started == ctx->threads - 1;
}

int et_pool_create(et_context **out, const struct et_row *row, int threads, float *scratch) {
    et_context *ctx = calloc(1, sizeof *ctx + (size_t)(threads - 1) * sizeof ctx->workers[0]);
    if (!ctx)
        return ET_NO_MEMORY;
    ctx->row = row;
    ctx->scratch = scratch;
    ctx->threads = threads;
    ctx->owner = getpid();
    pthread_mutex_init(&ctx->lock, NULL);
    pthread_cond_init(&ctx->work, NULL);
    pthread_cond_init(&ctx->finished, NULL);
    if (!start_workers(ctx)) {
        et_context_destroy(ctx);
        return ET_NO_MEMORY;
    }
    *out = ctx;
    return ET_OK;
}

void et_context_destroy(et_context *ctx) {
    if (!ctx)
        return;
    if (getpid() == ctx->owner) {
        pthread_mutex_lock(&ctx->lock);
        atomic_store(&ctx->stop, 1);
        pthread_cond_broadcast(&ctx->work);
        pthread_mutex_unlock(&ctx->lock);
        for (int i = 0; i < ctx->started; i++)
            pthread_join(ctx->workers[i].id, NULL);
        pthread_cond_destroy(&ctx->finished);
        pthread_cond_destroy(&ctx->work);
        pthread_mutex_destroy(&ctx->lock);
    }
    free(ctx);
}

int et_threads(const et_context *ctx) { return ctx->threads; }
float *et_shared(et_context *ctx) { return ctx->scratch; }
float *et_scratch(et_context *ctx, int thread) {
    return ctx->scratch + ET_SHARED_FLOATS + (size_t)thread * ET_THREAD_FLOATS;
}
const struct et_row *et_context_row(const et_context *ctx) { return ctx->row; }
