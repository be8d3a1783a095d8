/* What this CPU can run. Define _GNU_SOURCE before any include: syscall. */
#ifndef ET_CPU_H
#define ET_CPU_H

#include <stddef.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "needs.h"

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

/* 1 if a later set than one of these needs is better. Intel's vdpbf16ps does half the work of its float multiply-add,
 * AMD's twice as much. */
static int cpu_is_slow_at(unsigned needs) {
#ifdef ET_X86
    return (needs & (CPU_AVX512BF16 | CPU_AMX_BF16)) == CPU_AVX512BF16 && __builtin_cpu_is("intel");
#else
    (void)needs;
    return 0;
#endif
}

#endif
