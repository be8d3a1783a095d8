/* The weight formats of GGUF: block struct, size, unpack to float.
 *
 * A format is one line of ET_FORMATS, a struct, and a loop. The loops are plain C that compilers vectorise. They hold
 * for arbitrary bytes: every code is masked to the size of what it indexes, and a scale that is NaN or infinite makes
 * values that are. Structs are packed, so blocks may lie at any address.
 *
 * Source: the format definitions of ggml (ggml-common.h, dequantize_row_*) as the GGUF specification cites them.
 */
#ifndef ET_QUANT_H
#define ET_QUANT_H

#include <math.h>
#include <stdint.h>
#include <string.h>

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

static inline void unpack_Q4_0(float *restrict out, const block_Q4_0 *restrict b, int64_t n) {
    for (; n; n--, b++, out += 32) {
        float d = half_to_float(b->d);
        for (int j = 0; j < 16; j++) {
            out[j] = d * (float)((b->qs[j] & 15) - 8);
            out[j + 16] = d * (float)((b->qs[j] >> 4) - 8);
        }
    }
}

static inline void unpack_Q4_1(float *restrict out, const block_Q4_1 *restrict b, int64_t n) {
    for (; n; n--, b++, out += 32) {
        float d = half_to_float(b->d), m = half_to_float(b->m);
        for (int j = 0; j < 16; j++) {
            out[j] = d * (float)(b->qs[j] & 15) + m;
            out[j + 16] = d * (float)(b->qs[j] >> 4) + m;
        }
    }
}

/* The fifth bits of 32 weights, as a word. */
static inline uint32_t high_bits(const uint8_t qh[4]) {
    return (uint32_t)qh[0] | (uint32_t)qh[1] << 8 | (uint32_t)qh[2] << 16 | (uint32_t)qh[3] << 24;
}

static inline void unpack_Q5_0(float *restrict out, const block_Q5_0 *restrict b, int64_t n) {
    for (; n; n--, b++, out += 32) {
        float d = half_to_float(b->d);
        uint32_t h = high_bits(b->qh);
        for (int j = 0; j < 16; j++) {
            out[j] = d * (float)((int)((b->qs[j] & 15u) | (h >> j & 1) << 4) - 16);
            out[j + 16] = d * (float)((int)((b->qs[j] >> 4u) | (h >> (j + 16) & 1) << 4) - 16);
        }
    }
}

static inline void unpack_Q5_1(float *restrict out, const block_Q5_1 *restrict b, int64_t n) {
    for (; n; n--, b++, out += 32) {
        float d = half_to_float(b->d), m = half_to_float(b->m);
        uint32_t h = high_bits(b->qh);
        for (int j = 0; j < 16; j++) {
            out[j] = d * (float)(int)((b->qs[j] & 15u) | (h >> j & 1) << 4) + m;
            out[j + 16] = d * (float)(int)((b->qs[j] >> 4u) | (h >> (j + 16) & 1) << 4) + m;
        }
    }
}

static inline void unpack_Q8_0(float *restrict out, const block_Q8_0 *restrict b, int64_t n) {
    for (; n; n--, b++, out += 32) {
        float d = half_to_float(b->d);
        for (int j = 0; j < 32; j++)
            out[j] = d * (float)b->qs[j];
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

/* 16 groups of 16: 2-bit codes, four groups of 32 interleaved in 32 bytes; 4-bit scale and minimum a group. */
static inline void unpack_Q2_K(float *restrict out, const block_Q2_K *restrict b, int64_t n) {
    for (; n; n--, b++) {
        float d = half_to_float(b->d), dmin = half_to_float(b->dmin);
        for (int g = 0; g < 16; g++, out += 16) {
            const uint8_t *q = b->qs + g / 8 * 32 + g % 2 * 16;
            int shift = g % 8 / 2 * 2;
            float scale = d * (float)(b->scales[g] & 15), min = dmin * (float)(b->scales[g] >> 4);
            for (int j = 0; j < 16; j++)
                out[j] = scale * (float)(q[j] >> shift & 3) - min;
        }
    }
}

/* As Q2_K, with a third bit in hmask (absent: minus 4), signed 6-bit scales and no minimum. */
static inline void unpack_Q3_K(float *restrict out, const block_Q3_K *restrict b, int64_t n) {
    for (; n; n--, b++) {
        float d = half_to_float(b->d);
        for (int g = 0; g < 16; g++, out += 16) {
            const uint8_t *q = b->qs + g / 8 * 32 + g % 2 * 16, *h = b->hmask + g % 2 * 16;
            int shift = g % 8 / 2 * 2, bit = g / 2;
            int low = g < 8 ? b->scales[g] & 15 : b->scales[g - 8] >> 4;
            int high = b->scales[8 + g % 4] >> g / 4 * 2 & 3;
            float scale = d * (float)((low | high << 4) - 32);
            for (int j = 0; j < 16; j++)
                out[j] = scale * (float)((q[j] >> shift & 3) + (h[j] >> bit & 1) * 4 - 4);
        }
    }
}

/* The 6-bit scale and minimum of group g of 8, as Q4_K and Q5_K hold them in 12 bytes. */
static inline void scale_min_K(const uint8_t s[12], int g, int *scale, int *min) {
    if (g < 4) {
        *scale = s[g] & 63;
        *min = s[g + 4] & 63;
    } else {
        *scale = (s[g + 4] & 15) | s[g - 4] >> 6 << 4;
        *min = s[g + 4] >> 4 | s[g] >> 6 << 4;
    }
}

/* 8 groups of 32, two to 32 bytes: the even group in the low nibbles. */
static inline void unpack_Q4_K(float *restrict out, const block_Q4_K *restrict b, int64_t n) {
    for (; n; n--, b++) {
        float d = half_to_float(b->d), dmin = half_to_float(b->dmin);
        for (int g = 0; g < 8; g++, out += 32) {
            const uint8_t *q = b->qs + g / 2 * 32;
            int shift = g % 2 * 4, s, m;
            scale_min_K(b->scales, g, &s, &m);
            float scale = d * (float)s, min = dmin * (float)m;
            for (int j = 0; j < 32; j++)
                out[j] = scale * (float)(q[j] >> shift & 15) - min;
        }
    }
}

/* As Q4_K, with a fifth bit: bit g of qh. */
static inline void unpack_Q5_K(float *restrict out, const block_Q5_K *restrict b, int64_t n) {
    for (; n; n--, b++) {
        float d = half_to_float(b->d), dmin = half_to_float(b->dmin);
        for (int g = 0; g < 8; g++, out += 32) {
            const uint8_t *q = b->qs + g / 2 * 32;
            int shift = g % 2 * 4, s, m;
            scale_min_K(b->scales, g, &s, &m);
            float scale = d * (float)s, min = dmin * (float)m;
            for (int j = 0; j < 32; j++)
                out[j] = scale * (float)((q[j] >> shift & 15) | (b->qh[j] >> g & 1) << 4) - min;
        }
    }
}

/* 16 groups of 16 with 8-bit scales; codes of 4 low and 2 high bits, minus 32. Of 128 weights, quarter c has its low
 * bits in nibble c / 2 of 32 bytes of ql, and its high bits at 2c in qh. */
static inline void unpack_Q6_K(float *restrict out, const block_Q6_K *restrict b, int64_t n) {
    for (; n; n--, b++) {
        float d = half_to_float(b->d);
        for (int g = 0; g < 16; g++, out += 16) {
            int half = g / 8, c = g % 8 / 2, low = c / 2 * 4, high = c * 2;
            const uint8_t *ql = b->ql + half * 64 + c % 2 * 32 + g % 2 * 16, *qh = b->qh + half * 32 + g % 2 * 16;
            float scale = d * (float)b->scales[g];
            for (int j = 0; j < 16; j++)
                out[j] = scale * (float)(((ql[j] >> low & 15) | (qh[j] >> high & 3) << 4) - 32);
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
    for (int j = 0; j < 32; j++)
        q[j] = round_to_int8(*d != 0 ? (x[j] - *m) / *d : 0);
}

#endif
