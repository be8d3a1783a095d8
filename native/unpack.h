/* The loops of quant.h that make values of a format's blocks, once for each type of value that it wants: VALUE is the
 * type, UNPACK(format) the name, SCALE_CODES(out [32], codes of 16, their scale and offset, as much of the next 16) and
 * PUT_VALUES(out, values, n) what writes; SCALED 0: scales are not wanted. */

#define PLAIN(format)                                                                                                  \
    static inline void UNPACK(format)(VALUE *restrict out, const block_##format *restrict b, int64_t n) {              \
        float values[64];                                                                                              \
        for (int64_t i = 0; i < n; i += 64) {                                                                          \
            int count = n - i < 64 ? (int)(n - i) : 64;                                                                \
            values_##format(values, b + i, count);                                                                     \
            PUT_VALUES(out + i, values, count);                                                                        \
        }                                                                                                              \
    }
PLAIN(F32)
PLAIN(F16)
PLAIN(BF16)
#undef PLAIN

/* Blocks of 32 that begin with the scale d, and perhaps m; q are the nibbles of the codes. */
#define OF_32(format, FIRST, SECOND, OFFSET)                                                                           \
    static inline void UNPACK(format)(VALUE *restrict out, const block_##format *restrict b, int64_t n) {              \
        float header[2 * HEADERS] = {0};                                                                               \
        for (; n > 0; n -= HEADERS) {                                                                                  \
            if (SCALED)                                                                                                \
                headers(header, b, sizeof *b, n);                                                                      \
            for (const float *d = header; d < header + 2 * (n < HEADERS ? n : HEADERS); d += 2, b++, out += 32) {      \
                bytes q = load_bytes((const uint8_t *)b->qs);                                                          \
                SCALE_CODES(out, FIRST, d[0], OFFSET, SECOND, d[0], OFFSET);                                           \
            }                                                                                                          \
        }                                                                                                              \
    }
OF_32(Q4_0, (q & 15) - 8, (q >> 4) - 8, 0)
OF_32(Q4_1, q & 15, q >> 4, d[1])
OF_32(Q5_0, ((q & 15) | fifth_bits(b->qh)) - 16, ((q >> 4) | fifth_bits(b->qh + 2)) - 16, 0)
OF_32(Q5_1, (q & 15) | fifth_bits(b->qh), (q >> 4) | fifth_bits(b->qh + 2), d[1])
OF_32(Q8_0, q, load_bytes((const uint8_t *)b->qs + 16), 0)
OF_32(IQ4_NL, nonlinear(q & 15), nonlinear(q >> 4), 0)
#undef OF_32

static inline void UNPACK(MXFP4)(VALUE *restrict out, const block_MXFP4 *restrict b, int64_t n) {
    for (; n; n--, b++, out += 32) {
        bytes q = load_bytes(b->qs);
        float d = e8m0_half(b->e);
        SCALE_CODES(out, e2m1(q & 15), d, 0, e2m1(q >> 4), d, 0);
    }
}

/* Codes of two bits in their order, minus 1. */
static inline void UNPACK(Q2_0)(VALUE *restrict out, const block_Q2_0 *restrict b, int64_t n) {
    float header[2 * HEADERS];
    for (; n > 0; n -= HEADERS) {
        headers(header, b, sizeof *b, n);
        for (const float *d = header; d < header + 2 * (n < HEADERS ? n : HEADERS); d += 2, b++) {
            UNROLL for (int i = 0; i < 2; i++, out += 32) {
                bytes four = nibbles(load_bytes(b->qs), i);
                SCALE_CODES(out, nibble_halves(four, 0) - 1, d[0], 0, nibble_halves(four, 1) - 1, d[0], 0);
            }
        }
    }
}

static inline void UNPACK(Q2_K)(VALUE *restrict out, const block_Q2_K *restrict b, int64_t n) {
    float scale[16], offset[16];
    for (; n; n--, b++) {
        bytes scales = load_bytes(b->scales);
        group_scales(scale, scales & 15, half_to_float(b->d));
        group_scales(offset, scales >> 4, -half_to_float(b->dmin));
        UNROLL for (int g = 0; g < 16; g += 2, out += 32)
            SCALE_CODES(out, crumbs(b->qs, g), scale[g], offset[g], crumbs(b->qs, g + 1), scale[g + 1], offset[g + 1]);
    }
}

/* As Q2_K, with a third bit in hmask (absent: minus 4), signed 6-bit scales and no minimum. */
static inline void UNPACK(Q3_K)(VALUE *restrict out, const block_Q3_K *restrict b, int64_t n) {
    float scale[16];
    for (; n; n--, b++) {
        group_scales(scale, scales_Q3_K(b->scales), half_to_float(b->d));
        UNROLL for (int g = 0; g < 16; g += 2, out += 32) {
            bytes third[2];
            UNROLL for (int i = 0; i < 2; i++)
                third[i] = load_bytes(b->hmask + i * 16) >> (uint8_t)(g / 2) & 1;
            SCALE_CODES(out, (crumbs(b->qs, g) | third[0] << 2) - 4, scale[g], 0,
                        (crumbs(b->qs, g + 1) | third[1] << 2) - 4, scale[g + 1], 0);
        }
    }
}

static inline void UNPACK(Q4_K)(VALUE *restrict out, const block_Q4_K *restrict b, int64_t n) {
    float scale[16], offset[16];
    for (; n; n--, b++) {
        bytes scales = scales_mins_K(b->scales);
        group_scales(scale, scales, half_to_float(b->d));
        group_scales(offset, scales, -half_to_float(b->dmin));
        UNROLL for (int g = 0; g < 8; g += 2, out += 64) {
            bytes q = load_bytes(b->qs + g * 16);
            bytes r = load_bytes(b->qs + g * 16 + 16);
            SCALE_CODES(out, q & 15, scale[g], offset[8 + g], r & 15, scale[g], offset[8 + g]);
            SCALE_CODES(out + 32, q >> 4, scale[g + 1], offset[9 + g], r >> 4, scale[g + 1], offset[9 + g]);
        }
    }
}

/* As Q4_K, with a fifth bit: bit g of qh. */
static inline void UNPACK(Q5_K)(VALUE *restrict out, const block_Q5_K *restrict b, int64_t n) {
    float scale[16], offset[16];
    for (; n; n--, b++) {
        bytes scales = scales_mins_K(b->scales);
        bytes fifth = load_bytes(b->qh);
        bytes fifth2 = load_bytes(b->qh + 16);
        group_scales(scale, scales, half_to_float(b->d));
        group_scales(offset, scales, -half_to_float(b->dmin));
        UNROLL for (int g = 0; g < 8; g++, out += 32) {
            bytes q = load_bytes(b->qs + g / 2 * 32) >> (uint8_t)(g % 2 * 4) & 15;
            bytes r = load_bytes(b->qs + g / 2 * 32 + 16) >> (uint8_t)(g % 2 * 4) & 15;
            SCALE_CODES(out, q | (fifth >> (uint8_t)g & 1) << 4, scale[g], offset[8 + g],
                        r | (fifth2 >> (uint8_t)g & 1) << 4, scale[g], offset[8 + g]);
        }
    }
}

/* 16 groups of 16 with 8-bit scales; codes of 4 low and 2 high bits, minus 32. Of each 128 weights, quarter c has its
 * low bits in nibble c / 2 of 32 bytes of ql, and its high bits at 2c in qh. */
static inline void UNPACK(Q6_K)(VALUE *restrict out, const block_Q6_K *restrict b, int64_t n) {
    float scale[16];
    for (; n; n--, b++) {
        group_scales(scale, load_bytes((const uint8_t *)b->scales), half_to_float(b->d));
        UNROLL for (int g = 0; g < 16; g += 2, out += 32) {
            int half = g / 8;
            int c = g % 8 / 2;
            bytes codes[2];
            UNROLL for (int i = 0; i < 2; i++) {
                bytes low = load_bytes(b->ql + half * 64 + c % 2 * 32 + i * 16) >> (uint8_t)(c / 2 * 4) & 15;
                bytes high = load_bytes(b->qh + half * 32 + i * 16) >> (uint8_t)(c * 2) & 3;
                codes[i] = (low | high << 4) - 32;
            }
            SCALE_CODES(out, codes[0], scale[g], 0, codes[1], scale[g + 1], 0);
        }
    }
}

/* As IQ4_NL, with 6-bit scales of 8 groups of 32. */
static inline void UNPACK(IQ4_XS)(VALUE *restrict out, const block_IQ4_XS *restrict b, int64_t n) {
    float scale[16];
    for (; n; n--, b++) {
        group_scales(scale, scales_IQ4_XS(b), half_to_float(b->d));
        UNROLL for (int g = 0; g < 8; g++, out += 32) {
            bytes q = load_bytes(b->qs + g * 16);
            SCALE_CODES(out, nonlinear(q & 15), scale[g], 0, nonlinear(q >> 4), scale[g], 0);
        }
    }
}

/* out [n] = weights i .. i+n-1 of w; i and n multiples of the block */
static inline void UNPACK(any)(VALUE *out, const void *w, int format, int64_t i, int64_t n) {
    switch (format) {
#define FORMAT(name, number, block, ...)                                                                               \
    case ET_##name:                                                                                                    \
        UNPACK(name)(out, (const block_##name *)w + i / (block), n / (block));                                         \
        break;
#include "formats.def"
#undef FORMAT
    }
}

#undef VALUE
#undef UNPACK
#undef SCALE_CODES
#undef PUT_VALUES
#undef SCALED
