/* Products in bf16: both sides rounded to nearest when they are packed, summed in float.
 *
 * A panel of B is [inner / 2, width, 2]: the pairs of inner elements that are multiplied together lie side by side, as
 * the instruction wants them. A panel of A is its rows, in runs of BF16_RUN inner elements. Intrinsics, because there is no
 * portable spelling, and compiled only where the row's flags allow them.
 */

#ifdef __AMX_BF16__
#define BF16_ROWS 32
#define BF16_UNIT 32
#define BF16_RUN 32
#define BF16_A(r, k) ((k) * BF16_ROWS + (r) * BF16_RUN)
#else
#define BF16_ROWS 12
#define BF16_UNIT 2
#define BF16_RUN BF16_INNER
#define BF16_A(r, k) ((r) * BF16_RUN + (k))
#endif
#define BF16_COLUMNS 32
#define BF16_INNER (2 * KC)  /* values half as wide */
#define BF16_PACK_INNER (BF16_UNIT > 8 ? BF16_UNIT : 8)

_Static_assert(VL == 16 && MC % BF16_ROWS == 0 && NC % BF16_COLUMNS == 0 && BF16_INNER % BF16_UNIT == 0, "whole tiles");

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

static void pack_a_bf16(const struct product *p, int m, int rows) {
    bf16 *panel = (bf16 *)a_panel(p, m);
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < p->packed; k += BF16_RUN)
            round_row(panel + BF16_A(r, k), a_rows(p, m + r) + k, min_int(p->kc - k, BF16_RUN),
                      min_int(p->packed - k, BF16_RUN));
}

static inline int bf16_width(int columns) { return (columns + 15) / 16 * 16; }

/* Pairs of a row are dwords, so this is a transposition of dwords. */
static void pack_b_bf16_transposed(const struct product *p, float *tmp, int task) {
    int n = task * BF16_COLUMNS, columns = min_int(p->nc - n, BF16_COLUMNS), width = bf16_width(columns);
    float *panel = b_panel(p, n), *pairs = tmp + KC * 2;
    int ld = p->packed / 2;
    for (int j = 0; j < columns; j += 8) {
        int rows = min_int(columns - j, 8);
        for (int r = 0; r < rows; r++)
            round_row((bf16 *)(pairs + r * ld), weights(p, tmp, p->n + n + j + r, p->k, p->kc), p->kc, p->packed);
        pack_transposed(panel + j, width, pairs, ld, rows, ld);
    }
    pack_zeros(panel, width, columns, ld);
}

/* out [16, 2] = x and y, rounded, side by side. */
static inline void round_pairs(float *out, __m512 x, __m512 y) {
    const __m512i zip = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    _mm512_storeu_si512(out, _mm512_permutexvar_epi16(zip, (__m512i)_mm512_cvtne2ps_pbh(y, x)));
}

static void pack_b_bf16_straight(const struct product *p, float *tmp, int task) {
    int end = min_int((task + 1) * BF16_PACK_INNER, p->packed);
    for (int k = task * BF16_PACK_INNER; k < end; k += 2) {
        const float *x = k < p->kc ? weights(p, tmp, p->k + k, p->n, p->nc) : NULL;
        const float *y = k + 1 < p->kc ? weights(p, tmp + NC, p->k + k + 1, p->n, p->nc) : NULL;
        for (int n = 0; n < p->nc; n += 16) {
            int columns = p->nc - n, panel = n / BF16_COLUMNS * BF16_COLUMNS;
            float *out = b_panel(p, panel) + k / 2 * bf16_width(min_int(p->nc - panel, BF16_COLUMNS)) + n - panel;
            __mmask16 mask = (__mmask16)(columns < 16 ? (1 << columns) - 1 : 0xffff);
            round_pairs(out, x ? _mm512_maskz_loadu_ps(mask, x + n) : _mm512_setzero_ps(),
                        y ? _mm512_maskz_loadu_ps(mask, y + n) : _mm512_setzero_ps());
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
 * columns or rows. Both are constants where this is inlined. */
static inline __attribute__((always_inline)) void bf16_sums(const struct tile *t, const int right, const int low) {
    const bf16 *a = (const bf16 *)t->a.p;
    const float *b = t->b.p;
    const size_t a_stride = 64, b_stride = right ? 128 : 64;
    for (int k = t->K; k > 0; k -= 32, a += 32 * 32, b += b_stride * 4) {
        _tile_loadd(4, a, a_stride);
        _tile_loadd(6, b, b_stride);
        _tile_dpbf16ps(0, 4, 6);
        if (right) {
            _tile_loadd(7, b + 16, b_stride);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (low) {
            _tile_loadd(5, a + 16 * 32, a_stride);
            _tile_dpbf16ps(2, 5, 6);
            if (right)
                _tile_dpbf16ps(3, 5, 7);
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

/* A whole tile, where C is as the CPU's tiles want it. */
static void bf16_in_place(const struct tile *t) {
    const size_t stride = (size_t)t->c_rs;
    for (int i = 0; i < 32; i++) {
        __builtin_prefetch(t->c + i * t->c_rs, 1);
        __builtin_prefetch(t->c + i * t->c_rs + 16, 1);
    }
    if (t->accumulate) {
        _tile_loadd(0, t->c, stride * 4);
        _tile_loadd(1, t->c + 16, stride * 4);
        _tile_loadd(2, t->c + 16 * stride, stride * 4);
        _tile_loadd(3, t->c + 16 * stride + 16, stride * 4);
    } else
        bf16_zero();
    bf16_sums(t, 1, 1);
    bf16_store(t->c, stride);
}

static void tile_bf16(const struct tile *t) {
    if (t->rows == 32 && t->columns == 32 && t->c_cs == 1 && t->alpha == 1) {
        bf16_in_place(t);
        return;
    }
    _Alignas(64) float sums[32 * 32];
    bf16_zero();
    if (t->columns > 16)
        bf16_sums(t, 1, t->rows > 16);
    else
        bf16_sums(t, 0, t->rows > 16);
    bf16_store(sums, 32);
    for (int i = 0; i < t->rows; i++)
        store_row(t, i, sums + i * 32);
}

#else

static inline vec dot_pairs(vec sum, float a, __m512i b) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_castps_si512(_mm512_set1_ps(a)), (__m512bh)b);
}

/* nv is a constant where this is inlined. */
static inline __attribute__((always_inline)) void bf16_sums(const struct tile *t, const int nv) {
    vec acc[BF16_ROWS][2] = {0};
    const float *a = t->a.p, *b = t->b.p;
    for (int k = t->K / 2; k > 0; k--, a++, b += nv * VL) {
        __m512i bv[2];
        UNROLL for (int j = 0; j < nv; j++) bv[j] = _mm512_loadu_si512(b + j * VL);
        UNROLL for (int i = 0; i < BF16_ROWS; i++) {
            UNROLL for (int j = 0; j < nv; j++) acc[i][j] = dot_pairs(acc[i][j], a[i * BF16_INNER / 2], bv[j]);
        }
    }
    tile_store(t, acc[0], BF16_ROWS, 2, nv);
}

static void tile_bf16(const struct tile *t) {
    if (t->columns > VL)
        bf16_sums(t, 2);
    else
        bf16_sums(t, 1);
}

#endif

static const struct kernel bf16_kernel = {
    .rows = BF16_ROWS, .columns = BF16_COLUMNS, .inner = BF16_INNER, .unit = BF16_UNIT, .bytes = 2,
    .pack_inner = BF16_PACK_INNER, .pack_a = pack_a_bf16, .pack_b_transposed = pack_b_bf16_transposed,
    .pack_b_straight = pack_b_bf16_straight, .tile = tile_bf16,
#ifdef __AMX_BF16__
    .begin = bf16_begin, .end = bf16_end,
#endif
};
