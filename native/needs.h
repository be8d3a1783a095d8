#ifndef ET_NEEDS_H
#define ET_NEEDS_H

/* CPU_*: features that a kernel set may need beyond its architecture's baseline. cpu.h asks CPU and OS for them.
 * ET_NEEDS: the bits of all that the compiler was allowed to use in this file. */
enum {
    CPU_AVX2 = 1 << 0,
    CPU_FMA = 1 << 1,
    CPU_AVX512F = 1 << 2,
    CPU_AVX512BW = 1 << 3,
    CPU_AVX512VL = 1 << 4,
    CPU_AVX512DQ = 1 << 5,
    CPU_AVX512VNNI = 1 << 6,
    CPU_AVX512BF16 = 1 << 7,
    CPU_AMX_BF16 = 1 << 8,
    CPU_F16C = 1 << 9,
    CPU_AVXVNNI = 1 << 10,
    CPU_ATOMICS = 1 << 16,
    CPU_DOTPROD = 1 << 17,
    CPU_I8MM = 1 << 18,
    CPU_BF16 = 1 << 19,
};

enum {
    ET_NEEDS = 0
#ifdef __AVX2__
    | CPU_AVX2
#endif
#ifdef __FMA__
    | CPU_FMA
#endif
#ifdef __F16C__
    | CPU_F16C
#endif
#ifdef __AVXVNNI__
    | CPU_AVXVNNI
#endif
#ifdef __AVX512F__
    | CPU_AVX512F
#endif
#ifdef __AVX512BW__
    | CPU_AVX512BW
#endif
#ifdef __AVX512VL__
    | CPU_AVX512VL
#endif
#ifdef __AVX512DQ__
    | CPU_AVX512DQ
#endif
#ifdef __AVX512VNNI__
    | CPU_AVX512VNNI
#endif
#ifdef __AVX512BF16__
    | CPU_AVX512BF16
#endif
#ifdef __AMX_BF16__
    | CPU_AMX_BF16
#endif
#ifdef __ARM_FEATURE_ATOMICS
    | CPU_ATOMICS
#endif
#ifdef __ARM_FEATURE_DOTPROD
    | CPU_DOTPROD
#endif
#ifdef __ARM_FEATURE_MATMUL_INT8
    | CPU_I8MM
#endif
#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
    | CPU_BF16
#endif
};

#endif
