/* The weight formats of GGUF: block struct, size, unpack to float.
 *
 * A format is one line of ET_FORMATS, a struct, and a loop. The loops hold for arbitrary bytes: every code is masked to
 * the size of what it indexes, and a scale that is NaN or infinite makes values that are. Structs are packed, so blocks
 * may lie at any address.
 *
 * Source: the format definitions of ggml (ggml-common.h, dequantize_row_*) as the GGUF specification cites them.
 */
#ifndef ET_QUANT_H
#define ET_QUANT_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined __AVX2__
#include <immintrin.h>
#elif defined __ARM_NEON
#include <arm_neon.h>
#endif

#include "et.h"

/* FORMAT(name, weights a block, bytes a block) */
#define ET_FORMATS(FORMAT)                                                                                             \
    FORMAT(F32, 1, 4)                                                                                                  \
    FORMAT(F16, 1, 2)                                                                                                  \
    FORMAT(BF16, 1, 2)                                                                                                 \
    FORMAT(Q4_0, 32, 18)                                                                                               \
    FORMAT(Q4_1, 32, 20)                                                                                               \
    FORMAT(Q5_0, 32, 22)                                                                                               \
    FORMAT(Q5_1, 32, 24)                                                                                               \
    FORMAT(Q8_0, 32, 34)                                                                                               \
    FORMAT(IQ4_NL, 32, 18)                                                                                             \
    FORMAT(Q2_K, 256, 84)                                                                                              \
    FORMAT(Q3_K, 256, 110)                                                                                             \
    FORMAT(Q4_K, 256, 144)                                                                                             \
    FORMAT(Q5_K, 256, 176)                                                                                             \
    FORMAT(Q6_K, 256, 210)

#define PACKED __attribute__((packed))
typedef struct PACKED { float x; } block_F32;
typedef struct PACKED { uint16_t x; } block_F16;
typedef struct PACKED { uint16_t x; } block_BF16;
typedef struct PACKED { uint16_t d; uint8_t qs[16]; } block_Q4_0;
typedef struct PACKED { uint16_t d, m; uint8_t qs[16]; } block_Q4_1;
typedef struct PACKED { uint16_t d; uint8_t qh[4], qs[16]; } block_Q5_0;
typedef struct PACKED { uint16_t d, m; uint8_t qh[4], qs[16]; } block_Q5_1;
typedef struct PACKED { uint16_t d; int8_t qs[32]; } block_Q8_0;
typedef struct PACKED { uint16_t d; uint8_t qs[16]; } block_IQ4_NL;
typedef struct PACKED { uint8_t scales[16], qs[64]; uint16_t d, dmin; } block_Q2_K;
typedef struct PACKED { uint8_t hmask[32], qs[64], scales[12]; uint16_t d; } block_Q3_K;
typedef struct PACKED { uint16_t d, dmin; uint8_t scales[12], qs[128]; } block_Q4_K;
typedef struct PACKED { uint16_t d, dmin; uint8_t scales[12], qh[32], qs[128]; } block_Q5_K;
typedef struct PACKED { uint8_t ql[128], qh[64]; int8_t scales[16]; uint16_t d; } block_Q6_K;

#define FORMAT(name, block, bytes) _Static_assert(sizeof(block_##name) == (bytes), "block_" #name);
ET_FORMATS(FORMAT)
#undef FORMAT

static inline float bits_to_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline uint32_t float_to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

/* To bf16, to nearest and even; NaN stays NaN. */
static inline uint16_t float_to_bf16(float x) {
    uint32_t bits = float_to_bits(x), nan = (bits & 0x7fffffff) > 0x7f800000;
    return (uint16_t)(nan ? bits >> 16 | 64 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Half to float without a branch, so that loops over it vectorise. */
static inline float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff);
    float normal = bits_to_float((rest << 13) + (224u << 23)) * 0x1p-112f; /* all ones in the exponent stay so */
    float subnormal = (float)rest * 0x1p-24f;
    return bits_to_float(sign | float_to_bits(rest < 0x400 ? subnormal : normal));
}

static inline void unpack_F32(float *restrict out, const block_F32 *restrict b, int64_t n) {
    memcpy(out, b, (size_t)n * 4);
}

static inline void unpack_F16(float *restrict out, const block_F16 *restrict b, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        out[i] = half_to_float(b[i].x);
}

static inline void unpack_BF16(float *restrict out, const block_BF16 *restrict b, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        out[i] = bits_to_float((uint32_t)b[i].x << 16);
}

/* Quantized formats are read 16 bytes at a time, in vectors of bytes: compilers make too varied things of loops. */
typedef uint8_t bytes __attribute__((vector_size(16)));

static inline bytes load_bytes(const uint8_t *p) {
    bytes x;
    memcpy(&x, p, 16);
    return x;
}

/* out [16] = scale * (signed) codes - min. GCC makes a poor thing of every portable spelling, hence intrinsics. */
static inline void scale_codes(float *restrict out, bytes codes, float scale, float min) {
#if defined __AVX512F__
    __m512 x = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)codes));
    _mm512_storeu_ps(out, _mm512_fmsub_ps(_mm512_set1_ps(scale), x, _mm512_set1_ps(min)));
#elif defined __AVX2__ && defined __FMA__
    for (int i = 0; i < 16; i += 8, codes = (bytes)_mm_srli_si128((__m128i)codes, 8)) {
        __m256 x = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32((__m128i)codes));
        _mm256_storeu_ps(out + i, _mm256_fmsub_ps(_mm256_set1_ps(scale), x, _mm256_set1_ps(min)));
    }
#elif defined __ARM_NEON
    int16x8_t half[2] = {vmovl_s8(vget_low_s8((int8x16_t)codes)), vmovl_s8(vget_high_s8((int8x16_t)codes))};
    for (int i = 0; i < 2; i++) {
        float32x4_t low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(half[i])));
        float32x4_t high = vcvtq_f32_s32(vmovl_s16(vget_high_s16(half[i])));
        vst1q_f32(out + i * 8, low * scale - min);
        vst1q_f32(out + i * 8 + 4, high * scale - min);
    }
#else
    int8_t c[16];
    memcpy(c, &codes, 16);
    for (int j = 0; j < 16; j++)
        out[j] = scale * (float)c[j] - min;
#endif
}

static inline void unpack_Q4_0(float *restrict out, const block_Q4_0 *restrict b, int64_t n) {
    for (; n; n--, b++, out += 32) {
        float d = half_to_float(b->d);
        bytes q = load_bytes(b->qs);
        scale_codes(out, (q & 15) - 8, d, 0);
        scale_codes(out + 16, (q >> 4) - 8, d, 0);
    }
}

static inline void unpack_Q4_1(float *restrict out, const block_Q4_1 *restrict b, int64_t n) {
    for (; n; n--, b++, out += 32) {
        float d = half_to_float(b->d), m = half_to_float(b->m);
        bytes q = load_bytes(b->qs);
        scale_codes(out, q & 15, d, -m);
        scale_codes(out + 16, q >> 4, d, -m);
    }
}

/* 16 in byte j where bit j of two bytes is set: the fifth bits of 16 codes. */
static inline bytes fifth_bits(const uint8_t *qh) {
    typedef uint64_t halves __attribute__((vector_size(16)));
    const bytes bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    halves spread = {qh[0] * 0x0101010101010101u, qh[1] * 0x0101010101010101u};
    return (bytes)(((bytes)spread & bit) != 0) & 16;
}

static inline void unpack_Q5_0(float *restrict out, const block_Q5_0 *restrict b, int64_t n) {
    for (; n; n--, b++, out += 32) {
        float d = half_to_float(b->d);
        bytes q = load_bytes(b->qs);
        scale_codes(out, ((q & 15) | fifth_bits(b->qh)) - 16, d, 0);
        scale_codes(out + 16, ((q >> 4) | fifth_bits(b->qh + 2)) - 16, d, 0);
    }
}

static inline void unpack_Q5_1(float *restrict out, const block_Q5_1 *restrict b, int64_t n) {
    for (; n; n--, b++, out += 32) {
        float d = half_to_float(b->d), m = half_to_float(b->m);
        bytes q = load_bytes(b->qs);
        scale_codes(out, (q & 15) | fifth_bits(b->qh), d, -m);
        scale_codes(out + 16, (q >> 4) | fifth_bits(b->qh + 2), d, -m);
    }
}

static inline void unpack_Q8_0(float *restrict out, const block_Q8_0 *restrict b, int64_t n) {
    for (; n; n--, b++, out += 32) {
        float d = half_to_float(b->d);
        scale_codes(out, load_bytes((const uint8_t *)b->qs), d, 0);
        scale_codes(out + 16, load_bytes((const uint8_t *)b->qs + 16), d, 0);
    }
}

static inline void unpack_IQ4_NL(float *restrict out, const block_IQ4_NL *restrict b, int64_t n) {
    static const float values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    for (; n; n--, b++, out += 32) {
        float d = half_to_float(b->d);
        for (int j = 0; j < 16; j++) {
            out[j] = d * values[b->qs[j] & 15];
            out[j + 16] = d * values[b->qs[j] >> 4];
        }
    }
}

/* K formats have 16 groups of 16 codes, or 8 of 32. Two bits of each of 32 bytes are one run of 32 codes; the runs of
 * 2-bit codes, and the nibbles, of the same bytes follow each other. */

/* The 2-bit codes of group g of 16 in 64 bytes. */
static inline bytes crumbs(const uint8_t qs[64], int g) {
    return load_bytes(qs + g / 8 * 32 + g % 2 * 16) >> (uint8_t)(g % 8 / 2 * 2) & 3;
}

static inline void unpack_Q2_K(float *restrict out, const block_Q2_K *restrict b, int64_t n) {
    for (; n; n--, b++) {
        float d = half_to_float(b->d), dmin = half_to_float(b->dmin);
        for (int g = 0; g < 16; g++, out += 16)
            scale_codes(out, crumbs(b->qs, g), d * (float)(b->scales[g] & 15), dmin * (float)(b->scales[g] >> 4));
    }
}

/* As Q2_K, with a third bit in hmask (absent: minus 4), signed 6-bit scales and no minimum. */
static inline void unpack_Q3_K(float *restrict out, const block_Q3_K *restrict b, int64_t n) {
    for (; n; n--, b++) {
        float d = half_to_float(b->d);
        for (int g = 0; g < 16; g++, out += 16) {
            int low = g < 8 ? b->scales[g] & 15 : b->scales[g - 8] >> 4;
            int high = b->scales[8 + g % 4] >> g / 4 * 2 & 3;
            bytes third = load_bytes(b->hmask + g % 2 * 16) >> (uint8_t)(g / 2) & 1;
            scale_codes(out, (crumbs(b->qs, g) | third << 2) - 4, d * (float)((low | high << 4) - 32), 0);
        }
    }
}

/* The 6-bit scale and minimum of group g of 8, as Q4_K and Q5_K hold them in 12 bytes. */
static inline void scale_min_K(const uint8_t s[12], int g, float *scale, float *min) {
    *scale = (float)(g < 4 ? s[g] & 63 : (s[g + 4] & 15) | s[g - 4] >> 6 << 4);
    *min = (float)(g < 4 ? s[g + 4] & 63 : s[g + 4] >> 4 | s[g] >> 6 << 4);
}

static inline void unpack_Q4_K(float *restrict out, const block_Q4_K *restrict b, int64_t n) {
    for (; n; n--, b++) {
        float d = half_to_float(b->d), dmin = half_to_float(b->dmin), scale, min;
        for (int g = 0; g < 8; g++, out += 32) {
            scale_min_K(b->scales, g, &scale, &min);
            for (int j = 0; j < 32; j += 16)
                scale_codes(out + j, load_bytes(b->qs + g / 2 * 32 + j) >> (uint8_t)(g % 2 * 4) & 15, d * scale,
                            dmin * min);
        }
    }
}

/* As Q4_K, with a fifth bit: bit g of qh. */
static inline void unpack_Q5_K(float *restrict out, const block_Q5_K *restrict b, int64_t n) {
    for (; n; n--, b++) {
        float d = half_to_float(b->d), dmin = half_to_float(b->dmin), scale, min;
        for (int g = 0; g < 8; g++, out += 32) {
            scale_min_K(b->scales, g, &scale, &min);
            for (int j = 0; j < 32; j += 16) {
                bytes low = load_bytes(b->qs + g / 2 * 32 + j) >> (uint8_t)(g % 2 * 4) & 15;
                bytes fifth = load_bytes(b->qh + j) >> (uint8_t)g & 1;
                scale_codes(out + j, low | fifth << 4, d * scale, dmin * min);
            }
        }
    }
}

/* 16 groups of 16 with 8-bit scales; codes of 4 low and 2 high bits, minus 32. Of each 128 weights, quarter c has its
 * low bits in nibble c / 2 of 32 bytes of ql, and its high bits at 2c in qh. */
static inline void unpack_Q6_K(float *restrict out, const block_Q6_K *restrict b, int64_t n) {
    for (; n; n--, b++) {
        float d = half_to_float(b->d);
        for (int g = 0; g < 16; g++, out += 16) {
            int half = g / 8, c = g % 8 / 2;
            bytes low = load_bytes(b->ql + half * 64 + c % 2 * 32 + g % 2 * 16) >> (uint8_t)(c / 2 * 4) & 15;
            bytes high = load_bytes(b->qh + half * 32 + g % 2 * 16) >> (uint8_t)(c * 2) & 3;
            scale_codes(out, (low | high << 4) - 32, d * (float)b->scales[g], 0);
        }
    }
}

/* out [n] = weights i .. i+n-1 of w; i and n multiples of the block. */
static inline void unpack(float *out, const void *w, int format, int64_t i, int64_t n) {
    switch (format) {
#define FORMAT(name, block, bytes)                                                                                     \
    case ET_##name:                                                                                                    \
        unpack_##name(out, (const block_##name *)w + i / (block), n / (block));                                        \
        break;
        ET_FORMATS(FORMAT)
#undef FORMAT
    }
}

/* ---- 8-bit blocks of 32, for integer products: x = d * q + m ------------------------------------------------- */

static inline int8_t round_to_int8(float x) {
    x = x < 127 ? x : 127; /* NaN too */
    x = x > -128 ? x : -128;
    return (int8_t)rintf(x);
}

/* q [32] and d of x [32], m being 0. */
static inline void quantize_32(int8_t *q, float *d, const float *x) {
    float most = 0;
    for (int i = 0; i < 32; i++)
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    float inverse = most > 0 ? 127 / most : 0;
    for (int i = 0; i < 32; i++)
        q[i] = round_to_int8(x[i] * inverse);
    *d = most / 127;
}

/* q [32], d and m of the weights i .. i+31 of w, whose values are x: their own codes where the format has such blocks,
 * which all begin with d. */
static inline void weight_32(int8_t *q, float *d, float *m, const float *x, const void *w, int format, int64_t i) {
    int bytes = et_format_bytes(format), has_min = format == ET_Q4_1 || format == ET_Q5_1;
    *m = 0;
    if (et_format_block(format) != 32) {
        quantize_32(q, d, x);
        return;
    }
    uint16_t header[2];
    memcpy(header, (const uint8_t *)w + i / 32 * bytes, 4);
    *d = half_to_float(header[0]);
    if (has_min)
        *m = half_to_float(header[1]);
    float inverse = *d != 0 ? 1 / *d : 0, least = *m;
    for (int j = 0; j < 32; j++)
        q[j] = round_to_int8((x[j] - least) * inverse);
}

#endif
