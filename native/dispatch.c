/* The door: what the CPU can run, which kernel set that is, and every argument check there is. The kernels assert
 * nothing. */
#define _GNU_SOURCE /* for cpu.h */
#include <stdlib.h>
#include <string.h>
#include <time.h> /* nanosleep */

#include "cpu.h"
#include "cuda/device.h"
#include "dispatch.h"

/* ---- formats ----------------------------------------------------------------------------------------------- */

int et_format_block(int format) { return format_block(format); }
int et_format_bytes(int format) { return format_bytes(format); }

const char *et_cpu_features(void) {
    static _Thread_local char text[256];
    text[0] = 0;
    FEATURES(list);
    for (const struct feature *f = list; f->name; f++)
        if (f->present) {
            strcat(text, text[0] ? " " : "");
            strcat(text, f->name);
        }
    return text;
}

/* ---- kernel sets ------------------------------------------------------------------------------------------- */

#define SET(name) extern const struct et_kernel_set et_kernel_set_##name;
#include "sets.def" /* those of isas.def that were compiled; CMake writes it */
#undef SET

static const struct et_kernel_set *const sets[] = {
#define SET(name) &et_kernel_set_##name,
#include "sets.def"
#undef SET
};
#define SETS ((int)(sizeof sets / sizeof sets[0]))

/* 1 if `name` is in the comma list EDGETUNE_ISA, or there is none. */
static int allowed(const char *name) {
    const char *list = getenv("EDGETUNE_ISA");
    size_t n = strlen(name);
    if (!list || !*list)
        return 1;
    for (const char *p = list; p; p = strchr(p, ',')) {
        p += *p == ',';
        if (strncmp(p, name, n) == 0 && (p[n] == 0 || p[n] == ','))
            return 1;
    }
    return 0;
}

const char *et_isa_name(int i) { return i >= 0 && i < SETS ? sets[i]->name : NULL; }

int et_isa_usable(int i) { return i >= 0 && i < SETS && !(sets[i]->needs & ~cpu_bits()) && allowed(sets[i]->name); }

/* ---- context ----------------------------------------------------------------------------------------------- */

#define MAX_THREADS 1024

size_t et_scratch_bytes(int threads) {
    if (threads < 1 || threads > MAX_THREADS)
        return 0;
    return (ET_SHARED_FLOATS + (size_t)threads * ET_THREAD_FLOATS) * sizeof(float) + 64;
}

int et_context_create(et_context **ctx, const char *isa, enum et_precision precision, int threads, void *scratch,
                      size_t scratch_bytes) {
    if (!ctx || threads < 1 || threads > MAX_THREADS || (unsigned)precision > ET_INT8)
        return ET_BAD_ARGUMENT;
    if (!scratch || scratch_bytes < et_scratch_bytes(threads))
        return ET_NO_MEMORY;
    float *aligned = (float *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    for (int slow = 0; slow < 2; slow++)
        for (int i = 0; i < SETS; i++)
            if (et_isa_usable(i) && (isa ? strcmp(isa, sets[i]->name) == 0 : cpu_is_slow_at(sets[i]->needs) == slow))
                return et_pool_create(ctx, sets[i], precision, threads, aligned);
    return ET_NO_ISA;
}

extern const struct et_kernel_set et_kernel_set_cuda;

int et_context_create_on(et_context **ctx, const struct et_device *device, enum et_precision precision, void *scratch,
                         size_t scratch_bytes) {
    if (!ctx || !device || (unsigned)precision > ET_INT8)
        return ET_BAD_ARGUMENT;
    if (!scratch || scratch_bytes < et_scratch_bytes(1))
        return ET_NO_MEMORY;
    float *aligned = (float *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    int code = et_pool_create(ctx, &et_kernel_set_cuda, precision, 1, aligned);
    if (code == ET_OK)
        et_set_device(*ctx, device);
    return code;
}

/* The code with which the device has ended; ET_BUSY where it hangs. It is asked often at first, as passes are short. */
static int ended(const struct et_device *device) {
    const struct timespec nap = {.tv_nsec = 50 * 1000};
    int64_t begun = et_now_ns();
    int code;
    while ((code = device->query(device->stream)) == ET_BUSY) {
        double waited = 1e-9 * (double)(et_now_ns() - begun);
        if (waited > device->patience)
            break;
        if (waited > 1e-3)
            nanosleep(&nap, NULL);
    }
    return code;
}

int et_context_synchronize(et_context *ctx) {
    const struct et_device *device = et_device_of(ctx);
    if (device && !et_failure(ctx) && ended(device))
        et_fail(ctx, ET_DEVICE);
    return et_failure(ctx);
}

const char *et_context_isa(const et_context *ctx) { return et_context_kernels(ctx)->name; }

const char *et_context_product(const et_context *ctx, int backward) {
    return et_context_kernels(ctx)->product(et_precision(ctx), backward);
}

struct register_loop {
    const et_context *ctx;
    int backward;
    int64_t n;
    double operations;
};

static void register_loop_task(void *arg, int task, int thread) {
    struct register_loop *p = arg;
    double operations = et_context_kernels(p->ctx)->peak(et_precision(p->ctx), p->backward, p->n);
    (void)thread;
    if (task == 0)
        p->operations = operations * et_threads(p->ctx);
}

double et_register_loop(et_context *ctx, int backward, int64_t n) {
    struct register_loop p = {ctx, backward, n, 0};
    et_parallel(ctx, register_loop_task, &p, et_threads(ctx));
    return p.operations;
}
