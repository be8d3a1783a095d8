/* The loops of quant.h that make values of a format's blocks, once for each type of value that it wants: VALUE is the
 * type, UNPACK(format) the name, SCALE_CODES(out [16], codes, scale, min) and PUT_VALUES(out, values, n) what writes. */

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

static inline void UNPACK(Q4_0)(VALUE *restrict out, const block_Q4_0 *restrict b, int64_t n) {
    for (; n; n--, b++, out += 32) {
        float d = half_to_float(b->d);
        bytes q = load_bytes(b->qs);
        SCALE_CODES(out, (q & 15) - 8, d, 0);
        SCALE_CODES(out + 16, (q >> 4) - 8, d, 0);
    }
}

static inline void UNPACK(Q4_1)(VALUE *restrict out, const block_Q4_1 *restrict b, int64_t n) {
    for (; n; n--, b++, out += 32) {
        float d = half_to_float(b->d), m = half_to_float(b->m);
        bytes q = load_bytes(b->qs);
        SCALE_CODES(out, q & 15, d, -m);
        SCALE_CODES(out + 16, q >> 4, d, -m);
    }
}

static inline void UNPACK(Q5_0)(VALUE *restrict out, const block_Q5_0 *restrict b, int64_t n) {
    for (; n; n--, b++, out += 32) {
        float d = half_to_float(b->d);
        bytes q = load_bytes(b->qs);
        SCALE_CODES(out, ((q & 15) | fifth_bits(b->qh)) - 16, d, 0);
        SCALE_CODES(out + 16, ((q >> 4) | fifth_bits(b->qh + 2)) - 16, d, 0);
    }
}

static inline void UNPACK(Q5_1)(VALUE *restrict out, const block_Q5_1 *restrict b, int64_t n) {
    for (; n; n--, b++, out += 32) {
        float d = half_to_float(b->d), m = half_to_float(b->m);
        bytes q = load_bytes(b->qs);
        SCALE_CODES(out, (q & 15) | fifth_bits(b->qh), d, -m);
        SCALE_CODES(out + 16, (q >> 4) | fifth_bits(b->qh + 2), d, -m);
    }
}

static inline void UNPACK(Q8_0)(VALUE *restrict out, const block_Q8_0 *restrict b, int64_t n) {
    for (; n; n--, b++, out += 32) {
        float d = half_to_float(b->d);
        SCALE_CODES(out, load_bytes((const uint8_t *)b->qs), d, 0);
        SCALE_CODES(out + 16, load_bytes((const uint8_t *)b->qs + 16), d, 0);
    }
}

static inline void UNPACK(IQ4_NL)(VALUE *restrict out, const block_IQ4_NL *restrict b, int64_t n) {
    for (; n; n--, b++, out += 32) {
        float d = half_to_float(b->d);
        bytes q = load_bytes(b->qs);
        SCALE_CODES(out, nonlinear(q & 15), d, 0);
        SCALE_CODES(out + 16, nonlinear(q >> 4), d, 0);
    }
}

static inline void UNPACK(Q2_K)(VALUE *restrict out, const block_Q2_K *restrict b, int64_t n) {
    for (; n; n--, b++) {
        float d = half_to_float(b->d), dmin = half_to_float(b->dmin);
        for (int g = 0; g < 16; g++, out += 16)
            SCALE_CODES(out, crumbs(b->qs, g), d * (float)(b->scales[g] & 15), dmin * (float)(b->scales[g] >> 4));
    }
}

/* As Q2_K, with a third bit in hmask (absent: minus 4), signed 6-bit scales and no minimum. */
static inline void UNPACK(Q3_K)(VALUE *restrict out, const block_Q3_K *restrict b, int64_t n) {
    for (; n; n--, b++) {
        float d = half_to_float(b->d);
        for (int g = 0; g < 16; g++, out += 16) {
            int low = g < 8 ? b->scales[g] & 15 : b->scales[g - 8] >> 4;
            int high = b->scales[8 + g % 4] >> g / 4 * 2 & 3;
            bytes third = load_bytes(b->hmask + g % 2 * 16) >> (uint8_t)(g / 2) & 1;
            SCALE_CODES(out, (crumbs(b->qs, g) | third << 2) - 4, d * (float)((low | high << 4) - 32), 0);
        }
    }
}

static inline void UNPACK(Q4_K)(VALUE *restrict out, const block_Q4_K *restrict b, int64_t n) {
    for (; n; n--, b++) {
        float d = half_to_float(b->d), dmin = half_to_float(b->dmin), scale, min;
        for (int g = 0; g < 8; g++, out += 32) {
            scale_min_K(b->scales, g, &scale, &min);
            for (int j = 0; j < 32; j += 16)
                SCALE_CODES(out + j, load_bytes(b->qs + g / 2 * 32 + j) >> (uint8_t)(g % 2 * 4) & 15, d * scale,
                            dmin * min);
        }
    }
}

/* As Q4_K, with a fifth bit: bit g of qh. */
static inline void UNPACK(Q5_K)(VALUE *restrict out, const block_Q5_K *restrict b, int64_t n) {
    for (; n; n--, b++) {
        float d = half_to_float(b->d), dmin = half_to_float(b->dmin), scale, min;
        for (int g = 0; g < 8; g++, out += 32) {
            scale_min_K(b->scales, g, &scale, &min);
            for (int j = 0; j < 32; j += 16) {
                bytes low = load_bytes(b->qs + g / 2 * 32 + j) >> (uint8_t)(g % 2 * 4) & 15;
                bytes fifth = load_bytes(b->qh + j) >> (uint8_t)g & 1;
                SCALE_CODES(out + j, low | fifth << 4, d * scale, dmin * min);
            }
        }
    }
}

/* 16 groups of 16 with 8-bit scales; codes of 4 low and 2 high bits, minus 32. Of each 128 weights, quarter c has its
 * low bits in nibble c / 2 of 32 bytes of ql, and its high bits at 2c in qh. */
static inline void UNPACK(Q6_K)(VALUE *restrict out, const block_Q6_K *restrict b, int64_t n) {
    for (; n; n--, b++) {
        float d = half_to_float(b->d);
        for (int g = 0; g < 16; g++, out += 16) {
            int half = g / 8, c = g % 8 / 2;
            bytes low = load_bytes(b->ql + half * 64 + c % 2 * 32 + g % 2 * 16) >> (uint8_t)(c / 2 * 4) & 15;
            bytes high = load_bytes(b->qh + half * 32 + g % 2 * 16) >> (uint8_t)(c * 2) & 3;
            SCALE_CODES(out, (low | high << 4) - 32, d * (float)b->scales[g], 0);
        }
    }
}

/* out [n] = weights i .. i+n-1 of w; i and n multiples of the block */
static inline void UNPACK(any)(VALUE *out, const void *w, int format, int64_t i, int64_t n) {
    switch (format) {
#define FORMAT(name, block, bytes)                                                                                     \
    case ET_##name:                                                                                                    \
        UNPACK(name)(out, (const block_##name *)w + i / (block), n / (block));                                         \
        break;
        ET_FORMATS(FORMAT)
#undef FORMAT
    }
}

#undef VALUE
#undef UNPACK
#undef SCALE_CODES
#undef PUT_VALUES
