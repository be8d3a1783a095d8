/* Every weight format's codes as values, for one thread: a run of 16 consecutive weights, which have one scale in all
 * formats. What a run needs is fetched first, and made values later, so that a thread can do something else while it
 * waits for memory. quant.h says how blocks are laid out, unpack.h how they are read on a CPU.
 *
 * Any bytes give values, as all codes are masked; a run of zero bytes gives zeros. Blocks may lie at any address: where
 * `aligned`, that of the row is a multiple of 16 in formats without blocks, that of all weights in the others. */
#ifndef ET_UNPACK_CUH
#define ET_UNPACK_CUH

#include "kernel.h"

#define ET_RUN 16

template <int format> struct format_size;
#define FORMAT(name, number, block_, bytes_, ...)                                                                      \
    template <> struct format_size<ET_##name> {                                                                        \
        enum { block = block_, bytes = bytes_ };                                                                       \
    };
#include "../formats.def"
#undef FORMAT

/* ---- loads ---- */

DEVICE uint32_t any_word(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

DEVICE float half_value(uint32_t half) { return half_to_float((uint16_t)half); }
DEVICE uint32_t half_at(const uint8_t *p, int aligned) {
    return aligned ? *(const uint16_t *)p : (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

/* out [4] = 16 bytes from an even address: in whole words but, where that is no multiple of 4, a half at each end. */
DEVICE void load_halves(uint32_t (&out)[4], const uint8_t *p) {
    int odd = (int)((uintptr_t)p & 2);
    const uint32_t *middle = (const uint32_t *)(p + odd);
    uint32_t first = half_at(odd ? p : p + 12, 1);
    uint32_t last = half_at(p + 14, 1);
    uint32_t x[3] = {middle[0], middle[1], middle[2]};
    out[0] = odd ? first | x[0] << 16 : x[0];
    out[1] = odd ? x[0] >> 16 | x[1] << 16 : x[1];
    out[2] = odd ? x[1] >> 16 | x[2] << 16 : x[2];
    out[3] = odd ? x[2] >> 16 | last << 16 : first | last << 16;
}

/* out [n] = the words at byte `where` of a block, and some multiple of 16 bytes on. */
template <int format, int where, int n>
DEVICE void load(uint32_t (&out)[n], const uint8_t *block, int on, int aligned) {
    constexpr int all = format_size<format>::bytes | where | 16;
    constexpr int unit = all & -all; /* divides the address if aligned */
    constexpr int each = unit < 4 ? 1 : unit / 4 < n ? unit / 4 : n;
    const uint8_t *p = block + where + on;
    if (!aligned || unit == 1)
        for (int i = 0; i < n; i++)
            out[i] = any_word(p + 4 * i);
    else if constexpr (unit == 2)
        load_halves(out, p);
    else
        for (int i = 0; i < n; i += each) {
            words<each> piece = *(const words<each> *)(p + 4 * i);
            for (int j = 0; j < each; j++)
                out[i + j] = piece.x[j];
        }
}

/* ---- codes, four to a word ---- */

/* out = scale * (code - bias) + offset. A byte in the last bits of 2^23 is that number more: this spares a conversion
 * to float, which cards do at a quarter of the speed. */
DEVICE void scale_codes(float (&out)[ET_RUN], const uint32_t (&codes)[4], int bias, float scale, float offset) {
    for (int i = 0; i < ET_RUN; i++) {
        uint32_t code = codes[i / 4] >> (i % 4 * 8) & 255;
        out[i] = scale * (bits_to_float(0x4b000000 | code) - (float)(0x800000 + bias)) + offset;
    }
}

/* `bits` of each byte, from bit `first` on. */
DEVICE uint32_t bits_of_bytes(uint32_t word, int first, int bits) {
    return word >> first & ((1u << bits) - 1) * 0x01010101u;
}

/* Bits 0 .. 3 as the lowest of four bytes. */
DEVICE uint32_t spread_bits(uint32_t four) { return (four & 15) * 0x204081u & 0x01010101u; }
/* Pairs of bits of a byte as the lowest of four bytes. */
DEVICE uint32_t spread_pairs(uint32_t byte) { return (byte | byte << 6 | byte << 12 | byte << 18) & 0x03030303u; }

/* The bytes of a table that four codes below 16 stand for; low and high are its first and last eight. */
DEVICE uint32_t look_up(uint32_t codes, uint64_t low, uint64_t high) {
    uint32_t found = 0;
    for (int shift = 0; shift < 32; shift += 8) {
        uint64_t half = codes >> shift & 8 ? high : low;
        found |= ((uint32_t)(half >> ((codes >> shift & 7) * 8)) & 255) << shift;
    }
    return found;
}

/* Of IQ4_NL and IQ4_XS, plus 128. */
DEVICE uint32_t nonlinear(uint32_t codes) { return look_up(codes, 0x766a5d4f3f2d1801u, 0xf1d9c5b5a6998d81u); }
/* Twice what E2M1 stands for, plus 16. */
DEVICE uint32_t e2m1(uint32_t codes) { return look_up(codes, 0x1c18161413121110u, 0x04080a0c0d0e0f10u); }
/* Half of what E8M0 stands for. */
DEVICE float e8m0_half(uint32_t e) { return bits_to_float(e < 2 ? 0x00200000u << e : (e - 1) << 23); }

/* ---- runs: fetch(run of zeros, block, the first weight's place in it, how many there are, aligned), values ---- */

template <int format> struct run;

/* n words of a format without blocks, of whose bytes `count` exist. */
template <int n> DEVICE void load_values(uint32_t (&x)[n], const uint8_t *p, int count, int aligned) {
    for (int i = 0; i < n; i += 4)
        if (aligned && 4 * i + 16 <= count) {
            words<4> piece = *(const words<4> *)(p + 4 * i);
            for (int j = 0; j < 4; j++)
                x[i + j] = piece.x[j];
        } else
            for (int b = 4 * i; b < 4 * i + 16; b += 2)
                if (b < count)
                    x[b / 4] |= half_at(p + b, 0) << (b % 4 * 8);
}

#define PLAIN(format, n, VALUE)                                                                                        \
    template <> struct run<ET_##format> {                                                                              \
        uint32_t x[n];                                                                                                 \
    };                                                                                                                 \
    DEVICE void fetch(run<ET_##format> &r, const uint8_t *p, int, int count, int aligned) {                            \
        load_values(r.x, p, count * (n / 4), aligned);                                                                 \
    }                                                                                                                  \
    DEVICE void values(float (&out)[ET_RUN], const run<ET_##format> &r) {                                              \
        for (int i = 0; i < ET_RUN; i++)                                                                               \
            out[i] = VALUE;                                                                                            \
    }
PLAIN(F32, 16, bits_to_float(r.x[i]))
PLAIN(F16, 8, half_to_float((uint16_t)(r.x[i / 2] >> (i % 2 * 16))))
PLAIN(BF16, 8, bits_to_float(i % 2 ? r.x[i / 2] & 0xffff0000u : r.x[i / 2] << 16))
#undef PLAIN

/* Blocks of 32: a half-precision scale, perhaps a minimum, perhaps the fifth bits of codes, and from byte `where` on
 * their nibbles, of which the upper are the second half of the block. CODES are of q, nibbles. */
#define OF_32(format, where, minimum, fifth, bias, CODES)                                                              \
    template <> struct run<ET_##format> {                                                                              \
        uint32_t nibbles[4], header[1], bits;                                                                          \
        int at;                                                                                                        \
    };                                                                                                                 \
    DEVICE void fetch(run<ET_##format> &r, const uint8_t *b, int at, int, int aligned) {                               \
        load<ET_##format, where>(r.nibbles, b, 0, aligned);                                                            \
        if constexpr (minimum)                                                                                         \
            load<ET_##format, 0>(r.header, b, 0, aligned);                                                             \
        else                                                                                                           \
            r.header[0] = half_at(b, aligned);                                                                         \
        r.bits = fifth ? half_at(b + where - 4 + at / 8, aligned) : 0;                                                 \
        r.at = at;                                                                                                     \
    }                                                                                                                  \
    DEVICE void values(float (&out)[ET_RUN], const run<ET_##format> &r) {                                              \
        uint32_t codes[4];                                                                                             \
        for (int i = 0; i < 4; i++) {                                                                                  \
            uint32_t q = bits_of_bytes(r.nibbles[i], r.at / 4, 4);                                                     \
            codes[i] = CODES;                                                                                          \
        }                                                                                                              \
        scale_codes(out, codes, bias, half_value(r.header[0]), half_value(r.header[0] >> 16));                         \
    }
OF_32(Q4_0, 2, 0, 0, 8, q)
OF_32(Q4_1, 4, 1, 0, 0, q)
OF_32(Q5_0, 6, 0, 1, 16, q | spread_bits(r.bits >> (4 * i)) << 4)
OF_32(Q5_1, 8, 1, 1, 0, q | spread_bits(r.bits >> (4 * i)) << 4)
OF_32(IQ4_NL, 2, 0, 0, 128, nonlinear(q))
#undef OF_32

template <> struct run<ET_MXFP4> {
    uint32_t nibbles[4], e;
    int at;
};
DEVICE void fetch(run<ET_MXFP4> &r, const uint8_t *b, int at, int, int aligned) {
    load<ET_MXFP4, 1>(r.nibbles, b, 0, aligned);
    r.e = b[0];
    r.at = at;
}
DEVICE void values(float (&out)[ET_RUN], const run<ET_MXFP4> &r) {
    uint32_t codes[4];
    for (int i = 0; i < 4; i++)
        codes[i] = e2m1(bits_of_bytes(r.nibbles[i], r.at / 4, 4));
    scale_codes(out, codes, 16, e8m0_half(r.e), 0);
}

template <> struct run<ET_Q8_0> {
    uint32_t x[4], d;
};
DEVICE void fetch(run<ET_Q8_0> &r, const uint8_t *b, int at, int, int aligned) {
    load<ET_Q8_0, 2>(r.x, b, at, aligned);
    r.d = half_at(b, aligned);
}
DEVICE void values(float (&out)[ET_RUN], const run<ET_Q8_0> &r) {
    uint32_t codes[4];
    for (int i = 0; i < 4; i++)
        codes[i] = r.x[i] ^ 0x80808080u;
    scale_codes(out, codes, 128, half_value(r.d), 0);
}

/* Codes of two bits in their order, minus 1. */
template <> struct run<ET_Q2_0> {
    uint32_t x, d;
};
DEVICE void fetch(run<ET_Q2_0> &r, const uint8_t *b, int at, int, int aligned) {
    const uint8_t *q = b + 2 + at / 4;
    r.x = half_at(q, aligned) | half_at(q + 2, aligned) << 16;
    r.d = half_at(b, aligned);
}
DEVICE void values(float (&out)[ET_RUN], const run<ET_Q2_0> &r) {
    uint32_t codes[4];
    for (int i = 0; i < 4; i++)
        codes[i] = spread_pairs(r.x >> (8 * i) & 255);
    scale_codes(out, codes, 1, half_value(r.d), 0);
}

/* K formats have 16 groups of 16 codes, or 8 of 32. Two bits of each of 32 bytes are one run of 32 codes; the runs of
 * 2-bit codes, and the nibbles, of the same bytes follow each other. */

/* Where the 2-bit codes of group g of 16 begin in their 64 bytes, and with which bit. */
DEVICE int crumbs_at(int g) { return g / 8 * 32 + g % 2 * 16; }
DEVICE int crumbs_bit(int g) { return g % 8 / 2 * 2; }

template <> struct run<ET_Q2_K> {
    uint32_t x[4], halves[1], scales; /* halves: d, dmin */
    int g;
};
DEVICE void fetch(run<ET_Q2_K> &r, const uint8_t *b, int at, int, int aligned) {
    r.g = at / 16;
    load<ET_Q2_K, 16>(r.x, b, crumbs_at(r.g), aligned);
    r.scales = b[r.g];
    load<ET_Q2_K, 80>(r.halves, b, 0, aligned);
}
DEVICE void values(float (&out)[ET_RUN], const run<ET_Q2_K> &r) {
    uint32_t codes[4];
    for (int i = 0; i < 4; i++)
        codes[i] = bits_of_bytes(r.x[i], crumbs_bit(r.g), 2);
    scale_codes(out, codes, 0, half_value(r.halves[0]) * (float)(r.scales & 15),
                -half_value(r.halves[0] >> 16) * (float)(r.scales >> 4));
}

/* As Q2_K, with a third bit in hmask (absent: minus 4), signed 6-bit scales and no minimum. */
template <> struct run<ET_Q3_K> {
    uint32_t x[4], third[4], d, low, high;
    int g;
};
DEVICE void fetch(run<ET_Q3_K> &r, const uint8_t *b, int at, int, int aligned) {
    r.g = at / 16;
    load<ET_Q3_K, 0>(r.third, b, r.g % 2 * 16, aligned);
    load<ET_Q3_K, 32>(r.x, b, crumbs_at(r.g), aligned);
    r.low = b[96 + r.g % 8];
    r.high = b[104 + r.g % 4];
    r.d = half_at(b + 108, aligned);
}
DEVICE void values(float (&out)[ET_RUN], const run<ET_Q3_K> &r) {
    uint32_t codes[4];
    for (int i = 0; i < 4; i++)
        codes[i] = bits_of_bytes(r.x[i], crumbs_bit(r.g), 2) | bits_of_bytes(r.third[i], r.g / 2, 1) << 2;
    uint32_t scale = (r.low >> (r.g / 8 * 4) & 15) | (r.high >> (r.g / 4 * 2) & 3) << 4;
    scale_codes(out, codes, 4, half_value(r.d) * (float)((int)scale - 32), 0);
}

/* out = codes of Q4_K or Q5_K with what is in the first 16 bytes of a block: two halves, d and dmin, and in 12 bytes
 * the 6-bit scales and minima of 8 groups of 32. */
DEVICE void scale_codes_K(float (&out)[ET_RUN], const uint32_t (&codes)[4], const uint32_t (&header)[4], int g) {
    uint32_t part[3];
    for (int i = 0; i < 3; i++)
        part[i] = header[1 + i] >> (g % 4 * 8) & 255;
    uint32_t scale = g < 4 ? part[0] & 63 : (part[2] & 15) | part[0] >> 6 << 4;
    uint32_t minimum = g < 4 ? part[1] & 63 : part[2] >> 4 | part[1] >> 6 << 4;
    scale_codes(out, codes, 0, half_value(header[0]) * (float)scale, -half_value(header[0] >> 16) * (float)minimum);
}

template <> struct run<ET_Q4_K> {
    uint32_t x[4], header[4];
    int g;
};
DEVICE void fetch(run<ET_Q4_K> &r, const uint8_t *b, int at, int, int aligned) {
    load<ET_Q4_K, 16>(r.x, b, at / 64 * 32 + at % 32, aligned);
    load<ET_Q4_K, 0>(r.header, b, 0, aligned);
    r.g = at / 32;
}
DEVICE void values(float (&out)[ET_RUN], const run<ET_Q4_K> &r) {
    uint32_t codes[4];
    for (int i = 0; i < 4; i++)
        codes[i] = bits_of_bytes(r.x[i], r.g % 2 * 4, 4);
    scale_codes_K(out, codes, r.header, r.g);
}

/* As Q4_K, with a fifth bit: that of the group in each of 32 bytes. */
template <> struct run<ET_Q5_K> {
    uint32_t x[4], fifth[4], header[4];
    int g;
};
DEVICE void fetch(run<ET_Q5_K> &r, const uint8_t *b, int at, int, int aligned) {
    load<ET_Q5_K, 16>(r.fifth, b, at % 32, aligned);
    load<ET_Q5_K, 48>(r.x, b, at / 64 * 32 + at % 32, aligned);
    load<ET_Q5_K, 0>(r.header, b, 0, aligned);
    r.g = at / 32;
}
DEVICE void values(float (&out)[ET_RUN], const run<ET_Q5_K> &r) {
    uint32_t codes[4];
    for (int i = 0; i < 4; i++)
        codes[i] = bits_of_bytes(r.x[i], r.g % 2 * 4, 4) | bits_of_bytes(r.fifth[i], r.g, 1) << 4;
    scale_codes_K(out, codes, r.header, r.g);
}

/* 16 groups of 16 with 8-bit scales; codes of 4 low and 2 high bits, minus 32. Of each 128 weights, quarter c has its
 * low bits in nibble c / 2 of 32 bytes of ql, and its high bits at 2c in qh. */
template <> struct run<ET_Q6_K> {
    uint32_t low[4], high[4], d;
    int scale, quarter;
};
DEVICE void fetch(run<ET_Q6_K> &r, const uint8_t *b, int at, int, int aligned) {
    r.quarter = at % 128 / 32;
    load<ET_Q6_K, 0>(r.low, b, at / 128 * 64 + r.quarter % 2 * 32 + at % 32, aligned);
    load<ET_Q6_K, 128>(r.high, b, at / 128 * 32 + at % 32, aligned);
    r.scale = (int8_t)b[192 + at / 16];
    r.d = half_at(b + 208, aligned);
}
DEVICE void values(float (&out)[ET_RUN], const run<ET_Q6_K> &r) {
    uint32_t codes[4];
    for (int i = 0; i < 4; i++)
        codes[i] = bits_of_bytes(r.low[i], r.quarter / 2 * 4, 4) | bits_of_bytes(r.high[i], r.quarter * 2, 2) << 4;
    scale_codes(out, codes, 32, half_value(r.d) * (float)r.scale, 0);
}

/* As IQ4_NL, with 6-bit scales of 8 groups of 32. */
template <> struct run<ET_IQ4_XS> {
    uint32_t nibbles[4], header[2]; /* d and the upper bits of scales, the lower */
    int at;
};
DEVICE void fetch(run<ET_IQ4_XS> &r, const uint8_t *b, int at, int, int aligned) {
    r.at = at;
    load<ET_IQ4_XS, 8>(r.nibbles, b, at / 32 * 16, aligned);
    load<ET_IQ4_XS, 0>(r.header, b, 0, aligned);
}
DEVICE void values(float (&out)[ET_RUN], const run<ET_IQ4_XS> &r) {
    uint32_t codes[4];
    int g = r.at / 32;
    for (int i = 0; i < 4; i++)
        codes[i] = nonlinear(bits_of_bytes(r.nibbles[i], r.at % 32 / 4, 4));
    uint32_t scale = (r.header[1] >> (4 * g) & 15) | (r.header[0] >> (16 + 2 * g) & 3) << 4;
    scale_codes(out, codes, 128, half_value(r.header[0]) * (float)((int)scale - 32), 0);
}

/* The run of weights k .. k + 15 of a row of `columns`; of those beyond it, zeros. */
template <int format> DEVICE run<format> fetch_run(const uint8_t *row, int k, int columns, int aligned) {
    run<format> r = {};
    if (k < columns) {
        constexpr int block = format_size<format>::block;
        const uint8_t *b = row + (int64_t)(k / block) * format_size<format>::bytes;
        fetch(r, b, k % block, columns - k, aligned);
    }
    return r;
}

/* Bytes of a row. */
template <int format> DEVICE int64_t row_bytes(int columns) {
    return (int64_t)(columns / format_size<format>::block) * format_size<format>::bytes;
}

#endif
