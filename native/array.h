/* Activations in either type, a vector at a time: arithmetic is in float, the type is how they lie in memory. */

typedef uint16_t half_vec __attribute__((vector_size(2 * VL)));
typedef uint16_t half_vec_unaligned __attribute__((vector_size(2 * VL), aligned(2), may_alias));

static inline vec bf16_to_vec(half_vec x) {
    uvec bits = __builtin_convertvector(x, uvec) << 16;
    return (vec)bits;
}

/* To nearest and even; NaN stays NaN. */
static inline half_vec vec_to_bf16(vec x) {
#ifdef __AVX512BF16__
    return (half_vec)_mm512_cvtneps_pbh((__m512)x);
#else
    uvec bits = (uvec)x, rounded = bits + 0x7fff + (bits >> 16 & 1);
    return __builtin_convertvector((uvec)blend(x == x, (vec)rounded, (vec)(bits | 0x400000)) >> 16, half_vec);
#endif
}

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
