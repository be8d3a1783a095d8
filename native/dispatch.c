/* The door: what the CPU can run, which kernel set that is, and every argument check there is. The kernels assert
 * nothing. */
#define _GNU_SOURCE /* syscall */
#include <stdlib.h>
#include <string.h>
#include <time.h> /* nanosleep */
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "cuda/device.h"
#include "dispatch.h"

/* ---- formats ----------------------------------------------------------------------------------------------- */

int et_format_block(int format) { return format_block(format); }
int et_format_bytes(int format) { return format_bytes(format); }

/* ---- features ---------------------------------------------------------------------------------------------- */

struct feature {
    const char *name;
    unsigned bit;
    unsigned long present;
};

/* __builtin_cpu_supports asks the CPU and, by xgetbv, the OS; so does HWCAP. */
#if defined __x86_64__ || defined __i386__
#define ET_X86
#include <cpuid.h>

static int f16c(void) {
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx") && __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}

/* GCC's name for it is not known to Clang 14. It needs no more of the OS than AVX2. */
static int avxvnni(void) {
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & 1 << 4;
}

/* Whether there are tiles that multiply bf16, and the OS lets this process use them: Linux wants to be asked, as each
 * thread's state grows by 8 KiB. */
static int amx_bf16(void) {
#if defined ET_EMULATED_TILES
    return 1;
#elif defined __x86_64__ && defined __linux__
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18, BF16_AND_TILE = 1 << 22 | 1 << 24 };
    unsigned a, b, c, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & BF16_AND_TILE) == BF16_AND_TILE &&
           syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return 0;
#endif
}

#define FEATURES(f)                                                                                                    \
    const struct feature f[] = {                                                                                       \
        {"avx2", CPU_AVX2, __builtin_cpu_supports("avx2")},                                                            \
        {"fma", CPU_FMA, __builtin_cpu_supports("fma")},                                                               \
        {"f16c", CPU_F16C, f16c()},                                                                                    \
        {"avxvnni", CPU_AVXVNNI, avxvnni()},                                                                           \
        {"avx512f", CPU_AVX512F, __builtin_cpu_supports("avx512f")},                                                   \
        {"avx512bw", CPU_AVX512BW, __builtin_cpu_supports("avx512bw")},                                                \
        {"avx512vl", CPU_AVX512VL, __builtin_cpu_supports("avx512vl")},                                                \
        {"avx512dq", CPU_AVX512DQ, __builtin_cpu_supports("avx512dq")},                                                \
        {"avx512vnni", CPU_AVX512VNNI, __builtin_cpu_supports("avx512vnni")},                                          \
        {"avx512bf16", CPU_AVX512BF16, __builtin_cpu_supports("avx512bf16")},                                          \
        {"amx_bf16", CPU_AMX_BF16, amx_bf16()},                                                                        \
        {NULL, 0, 0},                                                                                                  \
    }
#elif defined __aarch64__ && defined __linux__
#include <sys/auxv.h>
#define ET_ARM
#define FEATURES(f)                                                                                                    \
    const struct feature f[] = {                                                                                       \
        {"atomics", CPU_ATOMICS, getauxval(AT_HWCAP) >> 8 & 1},                                                        \
        {"dotprod", CPU_DOTPROD, getauxval(AT_HWCAP) >> 20 & 1},                                                       \
        {"i8mm", CPU_I8MM, getauxval(AT_HWCAP2) >> 13 & 1},                                                            \
        {"bf16", CPU_BF16, getauxval(AT_HWCAP2) >> 14 & 1},                                                            \
        {NULL, 0, 0},                                                                                                  \
    }
#else
#define FEATURES(f) const struct feature f[] = {{NULL, 0, 0}}
#endif

/* Each thread asks once: in a virtual machine the CPU takes microseconds for an answer, and a context needs many. */
static unsigned cpu_bits(void) {
    static _Thread_local unsigned bits;
    static _Thread_local int is_known;
    if (!is_known) {
        FEATURES(list);
        for (const struct feature *f = list; f->name; f++)
            bits |= f->present ? f->bit : 0;
        is_known = 1;
    }
    return bits;
}

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

#if defined ET_X86 && !defined ET_SCALAR
#define ISA_X86(name) ISA_ANY(name)
#else
#define ISA_X86(name)
#endif
#if defined ET_ARM && !defined ET_SCALAR
#define ISA_ARM(name) ISA_ANY(name)
#else
#define ISA_ARM(name)
#endif
#define ISA(architecture, name, flags) ISA_##architecture(name)

#define ISA_ANY(name) extern const struct et_kernel_set et_kernel_set_##name;
#include "isas.def"
#undef ISA_ANY

static const struct et_kernel_set *const sets[] = {
#define ISA_ANY(name) &et_kernel_set_##name,
#include "isas.def"
#undef ISA_ANY
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

/* 1 if a later set is better. Intel's vdpbf16ps does half the work of its float multiply-add, AMD's twice as much. */
static int slow_here(const struct et_kernel_set *set) {
#ifdef ET_X86
    return (set->needs & (CPU_AVX512BF16 | CPU_AMX_BF16)) == CPU_AVX512BF16 && __builtin_cpu_is("intel");
#else
    (void)set;
    return 0;
#endif
}

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
            if (et_isa_usable(i) && (isa ? strcmp(isa, sets[i]->name) == 0 : slow_here(sets[i]) == slow))
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
