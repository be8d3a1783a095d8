/* Products in bf16: both sides rounded to nearest when they are packed, summed in float.
 *
 * A panel of B is [inner / 2, width, 2]: the pairs of inner elements that are multiplied together lie side by side, as
 * the instruction wants them. A panel of A is [inner / 32, rows, 32]; rows of activations that are bf16 already are read
 * where they lie. Intrinsics, because there is no portable spelling, and compiled only where the row's flags allow them.
 */

#ifdef __AMX_BF16__
#define BF16_ROWS 32
#define BF16_STRIPS 4
#define BF16_PART 288 /* a part of a panel of B, one of A and four tiles' sums fit 48 KB */
#else
#define BF16_ROWS 12
#define BF16_STRIPS 3
#define BF16_PART 0
#endif
#define BF16_COLUMNS 32
#define BF16_RUN 32
#define BF16_INNER (2 * KC)  /* values half as wide */

_Static_assert(VL == 16 && MC % BF16_ROWS == 0 && NC % BF16_COLUMNS == 0 && BF16_INNER % BF16_RUN == 0, "whole tiles");

typedef uint16_t bf16 __attribute__((may_alias)); /* scratch is floats to others */

/* out [packed] = x [n] rounded, and zeros. */
static inline void round_row(bf16 *out, const float *x, int n, int packed) {
    int i = 0;
    for (; i + 32 <= n; i += 32)
        _mm512_storeu_si512(out + i, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + 16), _mm512_loadu_ps(x + i)));
    for (; i < n; i++)
        out[i] = float_to_bf16(x[i]);
    for (; i < packed; i++)
        out[i] = 0;
}

/* out [packed] = n values of an array, rounded if they are floats, and zeros. */
static inline void pack_row(bf16 *out, et_array x, int n, int packed) {
    if (x.type == ET_F32) {
        round_row(out, x.data, n, packed);
        return;
    }
    memcpy(out, x.data, (size_t)n * 2);
    memset(out + n, 0, (size_t)(packed - n) * 2);
}

/* A whose rows lie side by side, as LoRA's do when its gradients are made: transposed in `tmp`. */
static struct side a_transposed(const struct product *p, const struct segment *s, float *tmp, int m, int rows) {
    struct side a = a_floats(p, s, tmp, m, rows);
    float *out = tmp + (ptrdiff_t)BF16_ROWS * s->kc;
    pack_transposed(out, s->kc, a.p, a.ks, s->kc, rows);
    return (struct side){out, s->kc, 1, 0};
}

static void pack_a_bf16(const struct product *p, const struct segment *s, float *panel, float *tmp, int m, int rows) {
    et_array a = a_rows(p, s, m);
    ptrdiff_t ld = s->a_rs;
    if (s->a_cs != 1) {
        struct side t = a_transposed(p, s, tmp, m, rows);
        a = (et_array){(void *)t.p, ET_F32};
        ld = t.rs;
    }
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < s->packed; k += BF16_RUN)
            pack_row((bf16 *)panel + k * BF16_ROWS + r * BF16_RUN, array_at(a, r * ld + k), min_int(s->kc - k, BF16_RUN),
                     BF16_RUN);
}

/* out [16] = scale * (signed) codes - min, rounded. */
static inline void scale_codes_bf16(bf16 *out, bytes codes, float scale, float min) {
    __m512 x = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)codes));
    x = _mm512_fmsub_ps(_mm512_set1_ps(scale), x, _mm512_set1_ps(min));
    _mm256_storeu_si256((__m256i *)out, (__m256i)_mm512_cvtneps_pbh(x));
}

#define VALUE bf16
#define UNPACK(format) unpack_bf16_##format
#define SCALE_CODES scale_codes_bf16
#define PUT_VALUES(out, values, n) round_row(out, values, (int)(n), (int)(n))
#include "unpack.h"

static inline int bf16_width(int columns) { return (columns + 15) / 16 * 16; }

/* out [packed] = `count` weights of row r from column i, rounded, and zeros. */
static inline void pack_weights(bf16 *out, const struct segment *s, int r, int i, int count, int packed) {
    int64_t first = r * s->ldw + i;
    if (s->format == ET_BF16)
        memcpy(out, (const bf16 *)s->w + first, (size_t)count * 2);
    else
        unpack_bf16_any(out, s->w, s->format, first, count);
    memset(out + count, 0, (size_t)(packed - count) * 2);
}

/* Pairs of a row are dwords, so this is a transposition of dwords. */
static void pack_b_bf16_transposed(const struct product *p, const struct segment *s, float *tmp, int task) {
    int n = task * BF16_COLUMNS, columns = min_int(p->nc - n, BF16_COLUMNS), width = bf16_width(columns);
    float *panel = b_panel(p, s, n), *pairs = tmp;
    int ld = s->packed / 2;
    for (int j = 0; j < columns; j += 8) {
        int rows = min_int(columns - j, 8);
        for (int r = 0; r < rows; r++)
            pack_weights((bf16 *)(pairs + r * ld), s, p->n + n + j + r, s->k, s->kc, s->packed);
        pack_transposed(panel + j, width, pairs, ld, rows, ld);
    }
    pack_zeros(panel, width, columns, ld);
}

static void pack_b_bf16_straight(const struct product *p, const struct segment *s, float *tmp, int task) {
    int packed = ceil_div(p->nc, 16) * 16;
    bf16 *x = (bf16 *)tmp, *y = x + NC;
    for (int k = task * BF16_RUN; k < (task + 1) * BF16_RUN; k += 2) {
        for (int i = 0; i < 2; i++) {
            if (k + i < s->kc)
                pack_weights(i ? y : x, s, s->k + k + i, p->n, p->nc, packed);
            else
                memset(i ? y : x, 0, (size_t)packed * 2);
        }
        for (int n = 0; n < packed; n += 16) {
            int panel = n / BF16_COLUMNS * BF16_COLUMNS;
            float *out = b_panel(p, s, panel) + k / 2 * bf16_width(min_int(p->nc - panel, BF16_COLUMNS)) + n - panel;
            __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(x + n)));
            __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(y + n)));
            _mm512_storeu_si512(out, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
    }
}

#ifdef __AMX_BF16__

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
_Static_assert(sizeof(struct tile_config) == TILE_STATE, "as the CPU has it");

/* Two by two tiles of 16 x 16: 0 to 3 the sums, 4 and 5 of A, 6 and 7 of B. What the thread had before is restored by
 * end: llama.cpp sets its tiles up once a thread and relies on finding them so. */
static void bf16_begin(void *before) {
    static const struct tile_config config = {
        1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_storeconfig(before);
    _tile_loadconfig(&config);
}

static void bf16_end(const void *before) { _tile_loadconfig(before); }

/* The sums of a whole tile in the CPU's tiles 0 to 3, from what these hold; left and top alone where the others have no
 * columns or rows. Both are constants where this is inlined. C's lines are fetched on the way, a few at a time, as there
 * are more than the CPU can wait for at once. */
static inline __attribute__((always_inline)) void bf16_sums(const struct tile *t, const int right, const int low) {
    const char *c = t->c.data;
    const ptrdiff_t line = t->c_rs * (t->c.type == ET_F32 ? 4 : 2);
    int row = t->c_cs == 1 && !t->to_come ? 0 : t->rows;
    for (int s = 0; s < SEGMENTS; s++) {
        const bf16 *a = (const bf16 *)t->s[s].a.p;
        const float *b = t->s[s].b.p;
        const size_t a_stride = (size_t)t->s[s].a.rs * 2, b_stride = right ? 128 : 64;
        for (int k = t->s[s].K; k > 0; k -= BF16_RUN, a += t->s[s].a.ks, b += b_stride * 4) {
            _tile_loadd(4, a, a_stride);
            _tile_loadd(6, b, b_stride);
            _tile_dpbf16ps(0, 4, 6);
            for (int i = 0; i < 4 && row < t->rows; i++, row++) {
                __builtin_prefetch(c + row * line, 1);
                if (t->c.type == ET_F32)
                    __builtin_prefetch(c + row * line + 64, 1);
            }
            if (right) {
                _tile_loadd(7, b + 16, b_stride);
                _tile_dpbf16ps(1, 4, 7);
            }
            if (low) {
                _tile_loadd(5, a + 16 * t->s[s].a.rs, a_stride);
                _tile_dpbf16ps(2, 5, 6);
                if (right)
                    _tile_dpbf16ps(3, 5, 7);
            }
        }
    }
}

static inline void bf16_zero(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

static inline void bf16_store(float *c, size_t stride) {
    _tile_stored(0, c, stride * 4);
    _tile_stored(1, c + 16, stride * 4);
    _tile_stored(2, c + 16 * stride, stride * 4);
    _tile_stored(3, c + 16 * stride + 16, stride * 4);
}

static inline void bf16_load(const float *c, size_t stride) {
    _tile_loadd(0, c, stride * 4);
    _tile_loadd(1, c + 16, stride * 4);
    _tile_loadd(2, c + 16 * stride, stride * 4);
    _tile_loadd(3, c + 16 * stride + 16, stride * 4);
}

/* C from the sums of a tile. */
static void bf16_finish(const struct tile *t, int whole) {
    if (whole && t->c.type == ET_BF16 && !t->accumulate)
        for (int i = 0; i < 32; i++)
            round_row((bf16 *)t->c.data + i * t->c_rs, t->sums + i * 32, 32, 32);
    else
        for (int i = 0; i < t->rows; i++)
            store_row(t, i, t->sums + i * 32);
}

/* Where C is as the CPU's tiles want it, they begin and end with it. */
static void tile_bf16(struct tile *t) {
    int whole = t->rows == 32 && t->columns == 32 && t->c_cs == 1 && t->alpha == 1;
    int in_place = whole && t->c.type == ET_F32;
    if (t->resumed)
        bf16_load(t->sums, 32);
    else if (in_place && t->accumulate)
        bf16_load(t->c.data, (size_t)t->c_rs);
    else
        bf16_zero();
    if (t->columns > 16)
        bf16_sums(t, 1, t->rows > 16);
    else
        bf16_sums(t, 0, t->rows > 16);
    if (in_place && !t->to_come) {
        bf16_store(t->c.data, (size_t)t->c_rs);
        return;
    }
    bf16_store(t->sums, 32);
    if (!t->to_come)
        bf16_finish(t, whole);
}

#else

static inline vec dot_pairs(vec sum, float a, __m512i b) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_castps_si512(_mm512_set1_ps(a)), (__m512bh)b);
}

/* nv is a constant where this is inlined. */
static inline __attribute__((always_inline)) void bf16_sums(const struct tile *t, const int nv) {
    vec acc[BF16_ROWS][2] = {0};
    for (int s = 0; s < SEGMENTS; s++) {
        const float *run = t->s[s].a.p, *b = t->s[s].b.p;
        const ptrdiff_t a_rs = t->s[s].a.rs / 2, a_ks = t->s[s].a.ks / 2;
        for (int k = t->s[s].K; k > 0; k -= BF16_RUN, run += a_ks)
            for (const float *a = run; a < run + BF16_RUN / 2; a++, b += nv * VL) {
                __m512i bv[2];
                UNROLL for (int j = 0; j < nv; j++) bv[j] = _mm512_loadu_si512(b + j * VL);
                UNROLL for (int i = 0; i < BF16_ROWS; i++) {
                    UNROLL for (int j = 0; j < nv; j++) acc[i][j] = dot_pairs(acc[i][j], a[i * a_rs], bv[j]);
                }
            }
    }
    tile_store(t, acc[0], BF16_ROWS, 2, nv);
}

static void tile_bf16(struct tile *t) {
    if (t->columns > VL)
        bf16_sums(t, 2);
    else
        bf16_sums(t, 1);
}

#endif

static const struct kernel bf16_kernel = {
    .rows = BF16_ROWS, .columns = BF16_COLUMNS, .inner = BF16_INNER, .unit = BF16_RUN, .bytes = 2, .run = BF16_RUN,
    .direct = ET_BF16, .part = BF16_PART, .strips = BF16_STRIPS, .pack_inner = BF16_RUN, .pack_a = pack_a_bf16, .pack_b_transposed = pack_b_bf16_transposed,
    .pack_b_straight = pack_b_bf16_straight, .tile = tile_bf16,
#ifdef __AMX_BF16__
    .begin = bf16_begin, .end = bf16_end,
#endif
};
