/* The weight formats of GGUF: block struct, size, unpack to float.
 *
 * A format is a line of formats.def, a struct here, and a loop in unpack.h. The loops hold for arbitrary bytes: every
 * code is masked to the size of what it indexes, and a scale that is NaN or infinite makes values that are. Structs are
 * packed, so blocks may lie at any address.
 *
 * Source: the format definitions of ggml (ggml-common.h, dequantize_row_*) as the GGUF specification cites them. MXFP4
 * is of OCP Microscaling Formats 1.0: codes E2M1, a scale E8M0 for 32 of them.
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

#if defined __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#if defined __clang__ || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (__typeof__((a) < (b))){__VA_ARGS__})
#endif

#define PACKED __attribute__((packed))
// clang-format off
typedef struct PACKED { float x; } block_F32;
typedef struct PACKED { uint16_t x; } block_F16;
typedef struct PACKED { uint16_t x; } block_BF16;
typedef struct PACKED { uint16_t d; uint8_t qs[16]; } block_Q4_0;
typedef struct PACKED { uint16_t d, m; uint8_t qs[16]; } block_Q4_1;
typedef struct PACKED { uint16_t d; uint8_t qh[4], qs[16]; } block_Q5_0;
typedef struct PACKED { uint16_t d, m; uint8_t qh[4], qs[16]; } block_Q5_1;
typedef struct PACKED { uint16_t d; int8_t qs[32]; } block_Q8_0;
typedef struct PACKED { uint16_t d; uint8_t qs[16]; } block_IQ4_NL;
typedef struct PACKED { uint8_t e, qs[16]; } block_MXFP4;
typedef struct PACKED { uint16_t d; uint8_t qs[16]; } block_Q2_0;
typedef struct PACKED { uint8_t scales[16], qs[64]; uint16_t d, dmin; } block_Q2_K;
typedef struct PACKED { uint8_t hmask[32], qs[64], scales[12]; uint16_t d; } block_Q3_K;
typedef struct PACKED { uint16_t d, dmin; uint8_t scales[12], qs[128]; } block_Q4_K;
typedef struct PACKED { uint16_t d, dmin; uint8_t scales[12], qh[32], qs[128]; } block_Q5_K;
typedef struct PACKED { uint8_t ql[128], qh[64]; int8_t scales[16]; uint16_t d; } block_Q6_K;
typedef struct PACKED { uint16_t d, scales_h; uint8_t scales_l[4], qs[128]; } block_IQ4_XS;
// clang-format on

#define FORMAT(name, number, block, bytes, ...) _Static_assert(sizeof(block_##name) == (bytes), "block_" #name);
#include "formats.def"
#undef FORMAT

/* What scales a block's codes; formats.def has the words. */
enum et_scales { ET_VALUES, ET_ONE, ET_ONE_AND_MINIMUM, ET_EXPONENT, ET_GROUPS };

/* Weights a block, or ET_BAD_FORMAT. */
static inline int format_block(int format) {
    switch (format) {
#define FORMAT(name, number, block, ...)                                                                               \
    case number:                                                                                                       \
        return block;
#include "formats.def"
#undef FORMAT
    }
    return ET_BAD_FORMAT;
}

/* Bytes a block, or ET_BAD_FORMAT. */
static inline int format_bytes(int format) {
    switch (format) {
#define FORMAT(name, number, block, bytes, ...)                                                                        \
    case number:                                                                                                       \
        return bytes;
#include "formats.def"
#undef FORMAT
    }
    return ET_BAD_FORMAT;
}

static inline enum et_scales format_scales(int format) {
    switch (format) {
#define FORMAT(name, number, block, bytes, scales, ...)                                                                \
    case number:                                                                                                       \
        return ET_##scales;
#include "formats.def"
#undef FORMAT
    }
    return ET_VALUES;
}

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
    uint32_t bits = float_to_bits(x);
    uint32_t nan = (bits & 0x7fffffff) > 0x7f800000;
    return (uint16_t)(nan ? bits >> 16 | 64 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Half to float; where there is no instruction, without a branch, so that loops over it vectorise. */
static inline float half_to_float(uint16_t h) {
#if defined __F16C__
    return _cvtsh_ss(h);
#endif
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t rest = (uint32_t)(h & 0x7fff);
    float normal = bits_to_float((rest << 13) + (224u << 23)) * 0x1p-112f; /* all ones in the exponent stay so */
    float subnormal = (float)rest * 0x1p-24f;
    return bits_to_float(sign | float_to_bits(rest < 0x400 ? subnormal : normal));
}

/* Makes the compiler believe that an array's values come from memory. A load broadcasts one for nothing, where it would
 * be shuffled out of the register that it was computed in, and shuffling is the bottleneck. */
#define IN_MEMORY(array, n) __asm__("" : "+m"(*(float (*)[n])(array)))

/* Quantized formats are read 16 bytes at a time, in vectors of bytes: compilers make too varied things of loops. */
typedef uint8_t bytes __attribute__((vector_size(16)));
typedef int8_t signed_bytes __attribute__((vector_size(16)));
typedef uint32_t words __attribute__((vector_size(16)));

static inline uint32_t load_word(const uint8_t *p) {
    uint32_t x;
    memcpy(&x, p, 4);
    return x;
}

static inline bytes load_bytes(const uint8_t *p) {
    bytes x;
    memcpy(&x, p, 16);
    return x;
}

#if defined __AVX512F__
/* scale * (signed) codes + offset */
static inline __m512 scaled(bytes codes, float scale, float offset) {
    __m512 x = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)codes));
    return _mm512_fmadd_ps(_mm512_set1_ps(scale), x, _mm512_set1_ps(offset));
}
#endif

/* out [16] = scale * (signed) codes + offset. GCC makes a poor thing of every portable spelling, hence intrinsics. */
static inline void scale_16(float *restrict out, bytes codes, float scale, float offset) {
#if defined __AVX512F__
    _mm512_storeu_ps(out, scaled(codes, scale, offset));
#elif defined __AVX2__ && defined __FMA__
    for (int i = 0; i < 16; i += 8, codes = (bytes)_mm_srli_si128((__m128i)codes, 8)) {
        __m256 x = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32((__m128i)codes));
        _mm256_storeu_ps(out + i, _mm256_fmadd_ps(_mm256_set1_ps(scale), x, _mm256_set1_ps(offset)));
    }
#elif defined __ARM_NEON
    int16x8_t half[2] = {vmovl_s8(vget_low_s8((int8x16_t)codes)), vmovl_s8(vget_high_s8((int8x16_t)codes))};
    for (int i = 0; i < 2; i++) {
        float32x4_t low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(half[i])));
        float32x4_t high = vcvtq_f32_s32(vmovl_s16(vget_high_s16(half[i])));
        vst1q_f32(out + i * 8, low * scale + offset);
        vst1q_f32(out + i * 8 + 4, high * scale + offset);
    }
#else
    int8_t c[16];
    memcpy(c, &codes, 16);
    for (int j = 0; j < 16; j++)
        out[j] = scale * (float)c[j] + offset;
#endif
}

/* Two groups of 16, each with its scale and offset. */
static inline void scale_codes(float *restrict out, bytes first, float scale, float offset, bytes second, float scale2,
                               float offset2) {
    scale_16(out, first, scale, offset);
    scale_16(out + 16, second, scale2, offset2);
}

/* out [16] = d * (signed) codes: scales of groups. */
static inline void group_scales(float out[16], bytes codes, float d) {
    scale_16(out, codes, d, 0);
    IN_MEMORY(out, 16);
}

/* The signed values that 16 codes below 16 stand for. */
static inline bytes values_of(const int8_t values[16], bytes codes) {
#if defined __SSSE3__
    return (bytes)_mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)values), (__m128i)codes);
#elif defined __ARM_NEON
    return (bytes)vqtbl1q_s8(vld1q_s8(values), (uint8x16_t)codes);
#else
    bytes sum = (bytes){0} + (uint8_t)values[0]; /* of steps: to be looked up, codes would leave their register */
    UNROLL for (int i = 1; i < 16; i++)
        sum += (bytes)((signed_bytes)codes >= (int8_t)i) & (uint8_t)(values[i] - values[i - 1]);
    return sum;
#endif
}

/* Of IQ4_NL and IQ4_XS. */
static inline bytes nonlinear(bytes codes) {
    static const int8_t values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    return values_of(values, codes);
}

/* Twice what E2M1 stands for: a sign, two bits of exponent, one of mantissa. */
static inline bytes e2m1(bytes codes) {
    static const int8_t values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    return values_of(values, codes);
}

/* Half of what E8M0 stands for, 2^(e - 128); the two least are subnormal. ggml has no NaN among them. */
static inline float e8m0_half(uint8_t e) { return bits_to_float(e < 2 ? 0x00200000u << e : (e - 1u) << 23); }

/* The bytes of a and b in turn: of their first halves, or of their second. */
static inline bytes zip(bytes a, bytes b, const int second) {
    return second ? SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
                  : SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

/* Codes of four bits that follow one another, low bits first: those in one half of 16 bytes. */
static inline bytes nibbles(bytes packed, const int second) { return zip(packed & 15, packed >> 4, second); }
/* Codes of two bits that do, in a half of what nibbles gave. */
static inline bytes nibble_halves(bytes four, const int second) { return zip(four & 3, four >> 2, second); }

/* 16 in byte j where bit j of two bytes is set: the fifth bits of 16 codes. */
static inline bytes fifth_bits(const uint8_t *qh) {
#if defined __AVX512BW__ && defined __AVX512VL__
    return (bytes)_mm_maskz_set1_epi8((__mmask16)(qh[0] | qh[1] << 8), 16);
#else
    typedef uint64_t halves __attribute__((vector_size(16)));
    const bytes bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    halves spread = {qh[0] * 0x0101010101010101u, qh[1] * 0x0101010101010101u};
    return (bytes)(((bytes)spread & bit) != 0) & 16;
#endif
}

/* K formats have 16 groups of 16 codes, or 8 of 32. Two bits of each of 32 bytes are one run of 32 codes; the runs of
 * 2-bit codes, and the nibbles, of the same bytes follow each other. */

/* The 2-bit codes of group g of 16 in 64 bytes. */
static inline bytes crumbs(const uint8_t qs[64], int g) {
    return load_bytes(qs + g / 8 * 32 + g % 2 * 16) >> (uint8_t)(g % 8 / 2 * 2) & 3;
}

/* The 6-bit scales of Q4_K's and Q5_K's 8 groups, and behind them the minima, from 12 bytes. */
static inline bytes scales_mins_K(const uint8_t packed[12]) {
    uint32_t a = load_word(packed);
    uint32_t b = load_word(packed + 4);
    uint32_t c = load_word(packed + 8);
    words four = {a & 0x3f3f3f3f, (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030), b & 0x3f3f3f3f,
                  (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030)};
    return (bytes)four;
}

/* The 6-bit scales of Q3_K's 16 groups: 16 low halves, 16 high quarters. */
static inline bytes scales_Q3_K(const uint8_t packed[12]) {
    uint32_t a = load_word(packed);
    uint32_t b = load_word(packed + 4);
    uint32_t c = load_word(packed + 8);
    words low = {a, b, a >> 4, b >> 4};
    words high = {c << 4, c << 2, c, c >> 2};
    return (bytes)((low & 0x0f0f0f0f) | (high & 0x30303030)) - 32;
}

/* The 6-bit scales of IQ4_XS's 8 groups: low nibbles, high quarters. */
static inline bytes scales_IQ4_XS(const block_IQ4_XS *b) {
    words low = {load_word(b->scales_l)};
    words high = {b->scales_h};
    return (nibbles((bytes)low, 0) | nibble_halves(nibbles((bytes)high, 0), 0) << 4) - 32;
}

static inline void values_F32(float *out, const block_F32 *b, int n) { memcpy(out, b, (size_t)n * 4); }

static inline void values_F16(float *out, const block_F16 *b, int n) {
    int i = 0;
#if defined __AVX512F__
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(b + i))));
#endif
#if defined __F16C__
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(b + i))));
#endif
    for (; i < n; i++)
        out[i] = half_to_float(b[i].x);
}

static inline void values_BF16(float *out, const block_BF16 *b, int n) {
    for (int i = 0; i < n; i++)
        out[i] = bits_to_float((uint32_t)b[i].x << 16);
}

/* The two halves that each of n blocks begins with, at most HEADERS of them: many are converted in the time of one. Put
 * together in a register, as to load what was just stored in pieces would wait for all stores before. */
#define HEADERS 8
static inline void headers(float out[2 * HEADERS], const void *blocks, ptrdiff_t size, int64_t n) {
    const uint8_t *p = blocks;
#define HEADER(i) load_word(p + ((i) < n ? (i) : 0) * size)
    typedef uint32_t words8 __attribute__((vector_size(4 * HEADERS)));
    words8 h = {HEADER(0), HEADER(1), HEADER(2), HEADER(3), HEADER(4), HEADER(5), HEADER(6), HEADER(7)};
#undef HEADER
    block_F16 halves[2 * HEADERS];
    memcpy(halves, &h, sizeof h);
    values_F16(out, halves, 2 * HEADERS);
    IN_MEMORY(out, 2 * HEADERS);
}

/* Whether any 32 weights that an 8-bit product rounds together have codes and a scale in common already. */
static inline int keeps_codes(int format) {
    enum et_scales scales = format_scales(format);
    return scales == ET_ONE || scales == ET_ONE_AND_MINIMUM || scales == ET_EXPONENT;
}

#define FORMAT(name, number, block, bytes, scales, ...)                                                                \
    _Static_assert(ET_##scales == ET_VALUES ? (block) == 1 : (block) % 32 == 0,                                        \
                   "32 weights of " #name " are in one block");
#include "formats.def"
#undef FORMAT

#define VALUE float
#define UNPACK(format) unpack_##format
#define SCALE_CODES scale_codes
#define PUT_VALUES(out, values, n) memcpy(out, values, (size_t)(n) * 4)
#define SCALED 1
#include "unpack.h"
#define unpack unpack_any

#endif
