/* Threads that wait cheaply, and tasks that each thread takes from its own share first.
 *
 * The tasks of a job are cut into one share a thread: share t of every job goes to thread t if it is there in time, so
 * what a thread wrote in one job it finds in its own cache in the next. Who has done his share helps the others.
 *
 * A share's ticket holds the number of the job (upper half) and the share's next task (lower half). A thread reads the
 * ticket, then the job, then claims the task by compare-and-swap: if that succeeds, the job it read is the ticket's,
 * because a job is replaced only after all tickets were closed. So a thread that wakes late finds nothing to claim, and
 * nobody waits for it. How many threads work is part of the job in this sense: it too changes behind closed tickets. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "pool.h"

#define CLOSED 0x7fffffff /* the task of a ticket that is not to be claimed */
/* How long a thread watches for work before it sleeps: some ops' distance; waking takes as long. */
#define SPIN_NS 60000

typedef void (*task_fn)(void *arg, int task, int thread);

/* A thread and its share of the tasks, on a separate cache line. */
struct worker {
    _Alignas(64) _Atomic uint64_t ticket;
    et_context *ctx;
    int thread;
    pthread_t id;
};

struct et_context {
    const struct et_kernel_set *kernels;
    enum et_precision precision;
    const struct et_device *device; /* NULL: the ops run on this CPU's threads */
    int failure;                    /* ET_OK or ET_DEVICE */
    float *scratch;
    int threads, started;
    atomic_int working; /* threads that take tasks, and shares of a job; the others sleep until there are more */
    pid_t owner;        /* a forked child has no workers, and runs everything itself */

    _Atomic uint64_t job;
    _Atomic(task_fn) task;
    _Atomic(void *) arg;
    atomic_int n_tasks, done;

    pthread_mutex_t lock;
    pthread_cond_t work, finished, turn;
    atomic_int sleepers, caller_sleeps, stop;
    struct worker workers[]; /* [0] is the caller */
};

int64_t et_now_ns(void) {
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

/* The first of n tasks that is share t's, of `shares` shares. */
static int share_begin(int t, int shares, int n) { return (int)((int64_t)n * t / shares); }

static void close_tickets(et_context *ctx) {
    for (int t = 0; t < ctx->threads; t++)
        atomic_store(&ctx->workers[t].ticket, CLOSED);
}

static void task_done(et_context *ctx, int n) {
    if (atomic_fetch_add(&ctx->done, 1) + 1 == n && atomic_load(&ctx->caller_sleeps)) {
        pthread_mutex_lock(&ctx->lock);
        pthread_cond_signal(&ctx->finished);
        pthread_mutex_unlock(&ctx->lock);
    }
}

/* Runs what is left of a share. */
static void run_share(et_context *ctx, int share, int thread) {
    _Atomic uint64_t *ticket = &ctx->workers[share].ticket;
    uint64_t seen = atomic_load(ticket);
    for (;;) {
        task_fn task = atomic_load(&ctx->task);
        void *arg = atomic_load(&ctx->arg);
        int n = atomic_load(&ctx->n_tasks);
        int shares = atomic_load(&ctx->working);
        int i = (int)(seen & CLOSED);
        if (thread >= shares || share >= shares || i >= share_begin(share + 1, shares, n))
            return;
        if (!atomic_compare_exchange_weak(ticket, &seen, seen + 1))
            continue;
        task(arg, i, thread);
        task_done(ctx, n);
        seen = atomic_load(ticket);
    }
}

static void run_tasks(et_context *ctx, int thread) {
    int shares = atomic_load(&ctx->working);
    for (int i = 0; i < shares; i++)
        run_share(ctx, (thread + i) % shares, thread);
}

/* Returns when there is a job newer than `seen`, or none will come. */
static void wait_for_work(et_context *ctx, uint64_t seen) {
    for (int64_t end = et_now_ns() + SPIN_NS; et_now_ns() < end; relax())
        if (atomic_load(&ctx->job) != seen || atomic_load(&ctx->stop))
            return;
    pthread_mutex_lock(&ctx->lock);
    atomic_fetch_add(&ctx->sleepers, 1);
    while (atomic_load(&ctx->job) == seen && !atomic_load(&ctx->stop))
        pthread_cond_wait(&ctx->work, &ctx->lock);
    atomic_fetch_sub(&ctx->sleepers, 1);
    pthread_mutex_unlock(&ctx->lock);
}

/* A thread that is not to work neither watches nor is woken by jobs: its core can rest. */
static void wait_for_turn(et_context *ctx, int thread) {
    pthread_mutex_lock(&ctx->lock);
    while (thread >= atomic_load(&ctx->working) && !atomic_load(&ctx->stop))
        pthread_cond_wait(&ctx->turn, &ctx->lock);
    pthread_mutex_unlock(&ctx->lock);
}

static void *worker_main(void *arg) {
    struct worker *w = arg;
    while (!atomic_load(&w->ctx->stop)) {
        if (w->thread >= atomic_load(&w->ctx->working))
            wait_for_turn(w->ctx, w->thread);
        uint64_t job = atomic_load(&w->ctx->job);
        run_tasks(w->ctx, w->thread);
        wait_for_work(w->ctx, job);
    }
    return NULL;
}

static void wait_for_done(et_context *ctx, int n) {
    for (int64_t end = et_now_ns() + SPIN_NS; et_now_ns() < end; relax())
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
    int shares = atomic_load(&ctx->working);
    if (n_tasks <= 1 || shares == 1 || getpid() != ctx->owner) {
        for (int i = 0; i < n_tasks; i++)
            task(arg, i, 0);
        return;
    }
    uint64_t job = atomic_load(&ctx->job) + 1;
    close_tickets(ctx);
    atomic_store(&ctx->task, task);
    atomic_store(&ctx->arg, arg);
    atomic_store(&ctx->n_tasks, n_tasks);
    atomic_store(&ctx->done, 0);
    for (int t = 0; t < shares; t++)
        atomic_store(&ctx->workers[t].ticket, job << 32 | (uint64_t)share_begin(t, shares, n_tasks));
    atomic_store(&ctx->job, job);
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
        struct worker *w = &ctx->workers[i];
        w->ctx = ctx;
        w->thread = i;
        if (pthread_create(&w->id, NULL, worker_main, w) != 0)
            break;
        ctx->started++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return ctx->started == ctx->threads - 1;
}

int et_pool_create(et_context **out, const struct et_kernel_set *kernels, enum et_precision precision, int threads,
                   float *scratch) {
    size_t bytes = sizeof(et_context) + (size_t)threads * sizeof(struct worker);
    et_context *ctx = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!ctx)
        return ET_NO_MEMORY;
    memset(ctx, 0, bytes);
    ctx->kernels = kernels;
    ctx->precision = precision;
    ctx->scratch = scratch;
    ctx->threads = threads;
    atomic_store(&ctx->working, threads);
    ctx->owner = getpid();
    pthread_mutex_init(&ctx->lock, NULL);
    pthread_cond_init(&ctx->work, NULL);
    pthread_cond_init(&ctx->finished, NULL);
    pthread_cond_init(&ctx->turn, NULL);
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
        pthread_cond_broadcast(&ctx->turn);
        pthread_mutex_unlock(&ctx->lock);
        for (int i = 1; i <= ctx->started; i++)
            pthread_join(ctx->workers[i].id, NULL);
        pthread_cond_destroy(&ctx->turn);
        pthread_cond_destroy(&ctx->finished);
        pthread_cond_destroy(&ctx->work);
        pthread_mutex_destroy(&ctx->lock);
    }
    free(ctx);
}

int et_context_set_threads(et_context *ctx, int threads) {
    if (threads < 1 || threads > ctx->threads)
        return ET_BAD_ARGUMENT;
    close_tickets(ctx);
    atomic_store(&ctx->working, threads);
    if (getpid() == ctx->owner) {
        pthread_mutex_lock(&ctx->lock);
        pthread_cond_broadcast(&ctx->turn);
        pthread_mutex_unlock(&ctx->lock);
    }
    return ET_OK;
}

int et_threads(const et_context *ctx) { return atomic_load(&ctx->working); }
float *et_shared(et_context *ctx) { return ctx->scratch; }
float *et_scratch(et_context *ctx, int thread) {
    return ctx->scratch + ET_SHARED_FLOATS + (size_t)thread * ET_THREAD_FLOATS;
}
void et_set_device(et_context *ctx, const struct et_device *device) { ctx->device = device; }
const struct et_device *et_device_of(const et_context *ctx) { return ctx->device; }
int et_failure(const et_context *ctx) { return ctx->failure; }
void et_fail(et_context *ctx, int code) { ctx->failure = ctx->failure ? ctx->failure : code; }
const struct et_kernel_set *et_context_kernels(const et_context *ctx) { return ctx->kernels; }
enum et_precision et_precision(const et_context *ctx) { return ctx->precision; }
void et_context_set_precision(et_context *ctx, enum et_precision precision) { ctx->precision = precision; }
