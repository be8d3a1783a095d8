/* Activations in either type, a vector at a time: arithmetic is in float, the type is how they are stored. */

#include "either.h"

typedef uint16_t half_vec __attribute__((vector_size(2 * VL)));
typedef uint16_t half_vec_unaligned __attribute__((vector_size(2 * VL), aligned(2), may_alias));

/* GCC 12 makes several instructions of these conversions where x86 has one. */
static inline uvec widen(half_vec x) {
#if defined __AVX512F__
    return (uvec)_mm512_cvtepu16_epi32((__m256i)x);
#elif defined __AVX2__
    return (uvec)_mm256_cvtepu16_epi32((__m128i)x);
#else
    return __builtin_convertvector(x, uvec);
#endif
}

/* The upper halves. */
static inline half_vec upper(uvec x) {
    x >>= 16;
#if defined __AVX512F__
    return (half_vec)_mm512_cvtepi32_epi16((__m512i)x);
#elif defined __AVX2__
    return (half_vec)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
#else
    return __builtin_convertvector(x, half_vec);
#endif
}

static inline vec bf16_to_vec(half_vec x) { return (vec)(widen(x) << 16); }

/* To nearest and even; NaN stays a NaN. */
static inline half_vec vec_to_bf16(vec x) {
#ifdef __AVX512BF16__
    return (half_vec)_mm512_cvtneps_pbh((__m512)x);
#else
    uvec bits = (uvec)x;
    uvec rounded = bits + 0x7fff + (bits >> 16 & 1);
    return upper(rounded | (uvec)(x != x));
#endif
}

/* Ops are compiled for the types that their arrays may have: what depends on a type is decided once a task.
 * EITHER runs the statement with the array's type a constant, so what it calls must be INLINE. */
#define INLINE static inline __attribute__((always_inline))

/* The statement for each vector of [begin, end): its first element is i, and it has n, VL but at the end. */
#define EACH_VECTOR(i, n, begin, end, ...)                                                                             \
    do {                                                                                                               \
        const int64_t end_ = (end);                                                                                    \
        int64_t i = (begin);                                                                                           \
        for (const int64_t n = VL; i + n <= end_; i += n)                                                              \
            __VA_ARGS__;                                                                                               \
        const int64_t n = end_ - i;                                                                                    \
        if (n > 0)                                                                                                     \
            __VA_ARGS__;                                                                                               \
    } while (0)

/* The array from element i on. */
static inline et_array array_at(et_array a, int64_t i) {
    return (et_array){(char *)a.data + i * (a.type == ET_F32 ? 4 : 2), a.type};
}

/* Elements i .. i + n - 1, n <= VL; zeros behind them. */
static inline vec load_part(et_array a, int64_t i, int64_t n) {
    if (a.type == ET_F32)
        return vload_part((const float *)a.data + i, n);
    half_vec x = {0};
    if (n >= VL)
        x = *(const half_vec_unaligned *)((const uint16_t *)a.data + i);
    else
        memcpy(&x, (const uint16_t *)a.data + i, (size_t)n * 2);
    return bf16_to_vec(x);
}

static inline void store_part(et_array a, int64_t i, vec x, int64_t n) {
    if (a.type == ET_F32) {
        vstore_part((float *)a.data + i, x, n);
        return;
    }
    half_vec y = vec_to_bf16(x);
    if (n >= VL)
        *(half_vec_unaligned *)((uint16_t *)a.data + i) = y;
    else
        memcpy((uint16_t *)a.data + i, &y, (size_t)n * 2);
}
