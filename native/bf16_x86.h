/* What bf16.h wants of x86, where it rounds and multiplies bf16 (AVX512-BF16): vectors are of 16 floats. The tile is in
 * bf16_amx.h where the CPU has AMX's, else in bf16_dot.h. */

#define ET_BF16_PRODUCTS
#define BF16_COLUMNS 32 /* of a tile */
#define BF16_RUN 32

_Static_assert(VL == 16, "vectors of AVX-512");

typedef uint16_t bf16 __attribute__((may_alias)); /* scratch is floats to others */

/* out [packed] = x [n] rounded, and zeros. */
static inline void round_row(bf16 *out, const float *x, int n, int packed) {
    int i = 0;
    for (; i + 32 <= n; i += 32)
        _mm512_storeu_si512(out + i, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + 16), _mm512_loadu_ps(x + i)));
    for (; i < packed; i += 32) {
        const __mmask32 there = (__mmask32)(((uint64_t)1 << max_int(n - i, 0)) - 1);
        const __mmask32 wanted = (__mmask32)(((uint64_t)1 << min_int(packed - i, 32)) - 1);
        __m512 low = _mm512_maskz_loadu_ps((__mmask16)there, x + i);
        __m512 high = _mm512_maskz_loadu_ps((__mmask16)(there >> 16), x + i + 16);
        _mm512_mask_storeu_epi16(out + i, wanted, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

/* out [BF16_RUN] = n values of an array, rounded if they are floats, and zeros. */
static inline void pack_run(bf16 *out, et_array x, int n) {
    if (x.type == ET_F32)
        round_row(out, x.data, n, BF16_RUN);
    else
        _mm512_storeu_si512(out, _mm512_maskz_loadu_epi16((__mmask32)(((uint64_t)1 << n) - 1), x.data));
}

static inline void scale_codes_bf16(bf16 *out, bytes first, float scale, float offset, bytes second, float scale2,
                                    float offset2) {
    __m512 x = scaled(first, scale, offset);
    __m512 y = scaled(second, scale2, offset2);
    _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(y, x));
}

/* dst (rows of ldd) = the transpose of 16 x 16 pairs: those of 16 rows from pair i on. Loads put lanes together, as
 * shuffling is the bottleneck. */
static inline void transpose_pairs(float *dst, ptrdiff_t ldd, const bf16 *const src[16], int i) {
    UNROLL for (int q = 0; q < 4; q++, dst += 4 * ldd) {
        __m512 r[4];
        UNROLL for (int j = 0; j < 4; j++) {
            r[j] = _mm512_castps128_ps512(_mm_loadu_ps((const float *)src[j] + i + 4 * q));
            UNROLL for (int lane = 1; lane < 4; lane++)
                r[j] = _mm512_mask_broadcast_f32x4(r[j], (__mmask16)(15 << 4 * lane),
                                                   _mm_loadu_ps((const float *)src[4 * lane + j] + i + 4 * q));
        }
        __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(r[0], r[1]));
        __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(r[0], r[1]));
        __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(r[2], r[3]));
        __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(r[2], r[3]));
        _mm512_storeu_pd(dst, _mm512_unpacklo_pd(low01, low23));
        _mm512_storeu_pd(dst + ldd, _mm512_unpackhi_pd(low01, low23));
        _mm512_storeu_pd(dst + 2 * ldd, _mm512_unpacklo_pd(high01, high23));
        _mm512_storeu_pd(dst + 3 * ldd, _mm512_unpackhi_pd(high01, high23));
    }
}

/* out [n, 2] = the values of two rows in turn, in as few shuffles as there are. */
static inline void pair_rows(float *out, const bf16 *even, const bf16 *odd, int n) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i upper_from = _mm512_slli_epi32(lane, 16);
    for (int i = 0; i < n; i += 16) {
        __m512i pairs = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(even + i)));
        __m512i y = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(odd + i)));
        _mm512_storeu_si512(out + i, _mm512_mask_permutexvar_epi16(pairs, 0xaaaaaaaa, upper_from, y));
    }
}

/* to [rows, n] = from, rows being ldt and ldf apart. */
static inline void copy_rows(float *to, ptrdiff_t ldt, const float *from, ptrdiff_t ldf, int rows, int n) {
    for (int i = 0; i < rows; i++)
        memcpy(to + i * ldt, from + i * ldf, sizeof *to * (size_t)n);
}

#ifdef __AMX_BF16__
#include "bf16_amx.h"
#else
#include "bf16_dot.h"
#endif
