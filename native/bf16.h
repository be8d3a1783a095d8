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
#define BF16_CHUNK 256      /* weights of a row that are unpacked at once: whole blocks of any format */
#define BF16_AHEAD 32       /* rows of weights that are fetched before they are packed */
#define BF16_INNER (2 * KC) /* values half as wide */

_Static_assert(VL == 16 && MC % BF16_ROWS == 0 && NC % BF16_COLUMNS == 0 && BF16_INNER % BF16_RUN == 0, "whole tiles");
_Static_assert(BF16_RUN * BF16_CHUNK / 2 <= ET_THREAD_FLOATS, "unpacked rows must fit");

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

/* out [BF16_RUN] = n values of an array, rounded if they are floats, and zeros. */
static inline void pack_run(bf16 *out, et_array x, int n) {
    if (x.type == ET_F32)
        round_row(out, x.data, n, BF16_RUN);
    else
        _mm512_storeu_si512(out, _mm512_maskz_loadu_epi16((__mmask32)(((uint64_t)1 << n) - 1), x.data));
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
            pack_run((bf16 *)panel + k * BF16_ROWS + r * BF16_RUN, array_at(a, r * ld + k),
                     min_int(s->kc - k, BF16_RUN));
}

static inline void scale_codes_bf16(bf16 *out, bytes first, float scale, float offset, bytes second, float scale2,
                                    float offset2) {
    __m512 x = scaled(first, scale, offset), y = scaled(second, scale2, offset2);
    _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(y, x));
}

#define VALUE bf16
#define UNPACK(format) unpack_bf16_##format
#define SCALE_CODES scale_codes_bf16
#define PUT_VALUES(out, values, n) round_row(out, values, (int)(n), (int)(n))
#include "unpack.h"

static inline int bf16_width(int columns) { return (columns + 15) / 16 * 16; }

/* `count` weights of row r from column i, rounded, and zeros up to `packed`: in `out`, or where they lie. */
static inline const bf16 *pack_weights(bf16 *out, const struct segment *s, int r, int i, int count, int packed) {
    int64_t first = r * s->ldw + i;
    if (s->format == ET_BF16 && count == packed)
        return (const bf16 *)s->w + first;
    if (s->format == ET_BF16)
        memcpy(out, (const bf16 *)s->w + first, (size_t)count * 2);
    else
        unpack_bf16_any(out, s->w, s->format, first, count);
    if (packed > count)
        memset(out + count, 0, (size_t)(packed - count) * 2);
    return out;
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

/* rows [n]: `count` weights from column i of row r and of the rows behind it, `present` of them, and zeros up to n and
 * up to `packed`. The memory of rows that are wanted soon is fetched on the way: weights come from far away. */
static inline void pack_rows(const bf16 **rows, bf16 *tmp, const struct segment *s, int r, int present, int n, int i,
                             int count, int packed) {
    const int block = format_block(s->format), bytes = format_bytes(s->format);
    const ptrdiff_t ld = s->ldw / block * bytes, size = count / block * bytes;
    const char *ahead = (const char *)s->w + (r + BF16_AHEAD) * ld + i / block * bytes;
    for (int j = 0; j < n; j++, tmp += BF16_CHUNK, ahead += ld) {
        if (j >= present) {
            rows[j] = memset(tmp, 0, (size_t)packed * 2);
            continue;
        }
        for (ptrdiff_t line = 0; line < size; line += 64)
            __builtin_prefetch(ahead + line, 0, 2);
        rows[j] = pack_weights(tmp, s, r + j, i, count, packed);
    }
}

/* 16 columns, and as much of each as the nearest cache holds, at a time. */
static void pack_b_bf16_transposed(const struct product *p, const struct segment *s, float *tmp, int task) {
    int n = task * BF16_COLUMNS, columns = min_int(p->nc - n, BF16_COLUMNS), width = bf16_width(columns);
    float *panel = b_panel(s, n);
    for (int j = 0; j < width; j += 16)
        for (int k = 0; k < s->packed; k += BF16_CHUNK) {
            int count = min_int(s->kc - k, BF16_CHUNK), packed = min_int(s->packed - k, BF16_CHUNK);
            const bf16 *rows[16];
            pack_rows(rows, (bf16 *)tmp, s, p->n + n + j, columns - j, 16, s->k + k, count, packed);
            for (int i = 0; i < packed / 2; i += 16)
                transpose_pairs(panel + (ptrdiff_t)(k / 2 + i) * width + j, width, rows, i);
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

/* BF16_RUN rows, and as much of each as the nearest cache holds. */
static void pack_b_bf16_straight(const struct product *p, const struct segment *s, float *tmp, int task) {
    int k = piece_inner(p, s, task), n = piece_column(p, s, task);
    int count = min_int(p->nc - n, BF16_CHUNK), packed = bf16_width(count);
    const bf16 *rows[BF16_RUN];
    pack_rows(rows, (bf16 *)tmp, s, s->k + k, s->kc - k, BF16_RUN, p->n + n, count, packed);
    for (int i = 0; i < packed; i += BF16_COLUMNS) {
        int width = min_int(packed - i, BF16_COLUMNS);
        float *out = b_panel(s, n + i) + (ptrdiff_t)k / 2 * width;
        for (int r = 0; r < BF16_RUN; r += 2, out += width)
            pair_rows(out, rows[r] + i, rows[r + 1] + i, width);
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
        for (int k = t->s[s].K; k > 0; k -= BF16_RUN, run += a_ks) /* only LoRA's part may end within a run */
            for (const float *a = run; a < run + min_int(k + 1, BF16_RUN) / 2; a++, b += nv * VL) {
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
    .rows = BF16_ROWS, .columns = BF16_COLUMNS, .inner = BF16_INNER, .unit = BF16_RUN, .bits = 16, .run = BF16_RUN,
    .direct = ET_BF16, .part = BF16_PART, .strips = BF16_STRIPS, .pack_inner = BF16_RUN,
    .pack_columns = BF16_CHUNK, .pack_a = pack_a_bf16, .pack_b_transposed = pack_b_bf16_transposed,
    .pack_b_straight = pack_b_bf16_straight, .tile = tile_bf16,
#ifdef __AMX_BF16__
    .begin = bf16_begin, .end = bf16_end,
#endif
};
