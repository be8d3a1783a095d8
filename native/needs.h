/* ET_NEEDS: the CPU_* bits of all that the compiler was allowed to use in this file. */
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
