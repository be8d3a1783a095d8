/* Products in 8-bit integers: packing and tile, under the driver of matmul.h. Only for rows that have dot products of
 * bytes; elsewhere floats are as quick.
 *
 * Both sides are rounded along the inner dimension in blocks of 32: codes, and a scale that is a 127th of the block's
 * largest magnitude. Weights that are read along their own blocks of 32 keep the codes and scales that they have, and
 * the minima, whose products with the sums of A's codes are a product of floats of a 32nd of the size.
 *
 * A panel: the codes [inner / INT8_STEP, width, INT8_STEP], then for each block of 32 the scales [inner / 32, width]; then
 * what sums begin with, of B, and the minima; of A, what minima are multiplied with.
 *
 * A row brings `dot_step` (sums of a group of rows += dot products of INT8_STEP bytes of each with nv vectors of columns)
 * and `dot_end` (which puts sums in their places), the tile's sizes, `round_to_ints`, and INT8_OFFSET, by which codes of A
 * are moved up.
 */

static inline ivec load_ints(const void *p) { return (ivec)vload(p); }

#if defined __AVX512VNNI__ || defined __AVXVNNI__
#include "vnni.h"
#elif defined __ARM_FEATURE_DOTPROD
#include "armdot.h"
#endif

#ifdef ET_DOT

#define INT8_COLUMNS (INT8_VECTORS * VL)
#define INT8_INNER (2 * KC) /* an element takes less than two bytes */
#define INT8_CHUNK 256      /* weights that are unpacked at once: whole blocks of every format */

_Static_assert(INT8_COLUMNS <= NR && INT8_ROWS <= MOST_ROWS && INT8_ROWS % INT8_GROUP == 0, "whole tiles");
_Static_assert(INT8_INNER % 32 == 0 && NC % INT8_COLUMNS == 0 && INT8_CHUNK % VL == 0, "whole blocks, panels, vectors");
_Static_assert((INT8_COLUMNS + INT8_ROWS) * INT8_INNER * LONGER <= ET_THREAD_FLOATS && 32 * INT8_CHUNK <= ET_THREAD_FLOATS &&
                   2 * INT8_COLUMNS * INT8_CHUNK <= ET_THREAD_FLOATS,
               "unpacked rows must fit");

struct int8_panel {
    int8_t *codes;
    float *scales, *sums, *minima; /* sums of B are integers */
};

static inline struct int8_panel int8_panel(const float *panel, int width, int K) {
    float *p = (float *)(uintptr_t)panel, *scales = p + (ptrdiff_t)K * width / 4;
    ptrdiff_t part = (ptrdiff_t)K * width / 32;
    return (struct int8_panel){(int8_t *)p, scales, scales + part, scales + 2 * part};
}

/* Four codes, from k of a block on, of each of n <= VL columns from j on. */
static inline void place_codes(float *codes, int width, int block, int j, int k, uvec four, int n) {
    if (INT8_STEP == 4) {
        vstore_part(codes + (block * 8 + k / 4) * width + j, (vec)four, n);
        return;
    }
    for (int i = 0; i < n; i++)
        codes[((block * 4 + k / 8) * width + j + i) * 2 + k / 4 % 2] = ((vec)four)[i];
}

#define INT8_LEAST 0x1p-100f /* where scales would be denormal, all is rounded to zero */

/* The first n <= VL of VL columns of a panel, from column j on, of one block: x [32, ld] rounded. Returns the sums of the
 * codes, which are written moved up by `offset`. */
static inline __attribute__((always_inline)) ivec quantize(struct int8_panel p, int width, int block, int j,
                                                           const float *x, ptrdiff_t ld, int offset, int n) {
    ivec most = {0}, sums = {0};
    for (int k = 0; k < 32; k++) { /* as integers NaN is above all numbers */
        ivec size = load_ints(x + k * ld) & 0x7fffffff;
        most = (ivec)blend(size > most, (vec)size, (vec)most);
    }
    vec inverse = (vec)((ivec)(127 / (vec)most) & ((vec)most >= INT8_LEAST));
    vstore_part(p.scales + block * width + j, (vec)most / 127, n);
    for (int k = 0; k < 32; k += 4) {
        uvec four = {0};
        UNROLL for (int i = 0; i < 4; i++) {
            ivec q = round_to_ints(vload(x + (k + i) * ld) * inverse);
            sums += q;
            four |= ((uvec)q & 255) << 8 * i;
        }
        four ^= (uint32_t)offset * 0x01010101u;
        place_codes((float *)p.codes, width, block, j, k, four, n);
    }
    return sums;
}

/* Every row of A's panel. */
static inline void quantize_a(struct int8_panel panel, int block, const float *x, ptrdiff_t ld) {
    UNROLL for (int r = 0; r < INT8_ROWS; r += VL) {
        const int n = INT8_ROWS - r < VL ? INT8_ROWS - r : VL;
        ivec sums = quantize(panel, INT8_ROWS, block, r, x + r, ld, INT8_OFFSET, n);
        vec scales = vload_part(panel.scales + block * INT8_ROWS + r, n);
        vstore_part(panel.sums + block * INT8_ROWS + r, scales * __builtin_convertvector(sums, vec), n);
    }
}

static void pack_a_int8(const struct product *p, const struct segment *s, float *at, float *tmp, int m, int rows) {
    enum { WIDTH = (INT8_ROWS + VL - 1) / VL * VL };
    struct int8_panel panel = int8_panel(at, INT8_ROWS, s->packed);
    float *x = tmp;
    struct side a = a_floats(p, s, tmp + INT8_CHUNK * WIDTH, m, rows);
    memset(x, 0, INT8_CHUNK * WIDTH * sizeof *x);
    for (int k = 0; k < s->packed; k += INT8_CHUNK) {
        int count = min_int(s->packed - k, INT8_CHUNK);
        pack_transposed(x, WIDTH, a.p + k, a.rs, rows, count);
        for (int i = 0; i < count; i += 32)
            quantize_a(panel, (k + i) / 32, x + i * WIDTH, WIDTH);
    }
}

/* VL columns of B, from column j on. */
static inline void quantize_b(struct int8_panel panel, int width, int block, int j, const float *x, ptrdiff_t ld) {
    ivec sums = quantize(panel, width, block, j, x, ld, 0, VL);
    vstore(panel.sums + block * width + j, (vec)(sums * -INT8_OFFSET));
}

static inline void store_codes(int8_t *out, bytes first, float scale, float offset, bytes second, float scale2,
                               float offset2) {
    (void)scale, (void)offset, (void)scale2, (void)offset2;
    memcpy(out, &first, 16);
    memcpy(out + 16, &second, 16);
}

/* The codes of formats with blocks of 32. */
#define VALUE int8_t
#define UNPACK(format) unpack_codes_##format
#define SCALE_CODES store_codes
#define PUT_VALUES(out, values, n) memset(out, 0, (size_t)(n))
#include "unpack.h"

/* Columns of a panel whose formats have codes and scales for blocks of 32. */
static void pack_b_codes(struct int8_panel panel, int width, const struct segment *s, float *tmp, int n, int columns) {
    int8_t *codes = (int8_t *)tmp;
    int bytes = et_format_bytes(s->format), ld = s->packed;
    for (int r = 0; r < columns; r++) {
        int64_t first = (n + r) * s->ldw + s->k;
        const uint8_t *w = (const uint8_t *)s->w + first / 32 * bytes;
        unpack_codes_any(codes + r * ld, s->w, s->format, first, ld);
        for (int block = 0; block < ld / 32; block++, w += bytes) {
            uint16_t header[2];
            int sum = 0;
            memcpy(header, w, 4);
            for (int i = 0; i < 32; i++)
                sum += codes[r * ld + block * 32 + i];
            sum *= -INT8_OFFSET;
            panel.scales[block * width + r] = half_to_float(header[0]);
            memcpy(&panel.sums[block * width + r], &sum, 4);
            panel.minima[block * width + r] = half_to_float(header[1]);
        }
    }
    if (INT8_STEP == 4)
        pack_transposed((float *)panel.codes, width, tmp, ld / 4, columns, ld / 4);
    for (int k = 0; INT8_STEP != 4 && k < ld; k += INT8_STEP)
        for (int r = 0; r < columns; r++)
            memcpy(panel.codes + k * width + r * INT8_STEP, codes + r * ld + k, INT8_STEP);
    pack_zeros((float *)panel.codes, width * INT8_STEP / 4, columns * INT8_STEP / 4, ld / INT8_STEP);
    pack_zeros(panel.scales, width, columns, 3 * ld / 32); /* and what lies behind them */
}

static void pack_b_int8_transposed(const struct product *p, const struct segment *s, float *tmp, int task) {
    int n = task * INT8_COLUMNS, columns = min_int(p->nc - n, INT8_COLUMNS), width = panel_vectors(columns) * VL;
    struct int8_panel panel = int8_panel(b_panel(p, s, n), width, s->packed);
    float *x = tmp + INT8_COLUMNS * INT8_CHUNK;
    if (et_format_block(s->format) == 32) {
        pack_b_codes(panel, width, s, tmp, p->n + n, columns);
        return;
    }
    for (int k = 0; k < s->packed; k += INT8_CHUNK) {
        int count = min_int(s->packed - k, INT8_CHUNK);
        for (int r = 0; r < columns; r++)
            weights(s, tmp + r * INT8_CHUNK, p->n + n + r, s->k + k, count);
        pack_transposed(x, width, tmp, INT8_CHUNK, columns, count);
        pack_zeros(x, width, columns, count);
        for (int i = 0; i < count; i += 32)
            for (int j = 0; j < width; j += VL)
                quantize_b(panel, width, (k + i) / 32, j, x + i * width + j, width);
    }
}

/* 32 rows of w, rounded across: those of a block. */
static void pack_b_int8_straight(const struct product *p, const struct segment *s, float *tmp, int block) {
    for (int c = 0; c < p->nc; c += INT8_CHUNK) {
        int count = min_int(p->nc - c, INT8_CHUNK), whole = ceil_div(count, VL) * VL;
        for (int r = 0; r < 32; r++) {
            weights(s, tmp + r * INT8_CHUNK, s->k + block * 32 + r, p->n + c, count);
            memset(tmp + r * INT8_CHUNK + count, 0, (size_t)(whole - count) * sizeof *tmp);
        }
        for (int j = 0; j < count; j += VL) {
            int n = (c + j) / INT8_COLUMNS * INT8_COLUMNS, width = panel_vectors(min_int(p->nc - n, INT8_COLUMNS)) * VL;
            struct int8_panel panel = int8_panel(b_panel(p, s, n), width, s->packed);
            quantize_b(panel, width, block, c + j - n, tmp + j, INT8_CHUNK);
        }
    }
}

/* sums [INT8_GROUP, nv] of rows i .. of A times B. nv and minima are constants where this is inlined. */
static inline __attribute__((always_inline)) void int8_group(const struct tile *t, vec sums[][INT8_VECTORS], int i,
                                                             const int nv, const int minima) {
    const int K = t->s[0].K;
    const struct int8_panel a = int8_panel(t->s[0].a.p, INT8_ROWS, K), b = int8_panel(t->s[0].b.p, nv * VL, K);
    vec acc[INT8_GROUP][INT8_VECTORS] = {0};
    for (int block = 0; minima && block < K / 32; block++)
        UNROLL for (int r = 0; r < INT8_GROUP; r++) {
            UNROLL for (int j = 0; j < nv; j++)
                acc[r][j] += a.sums[block * INT8_ROWS + i + r] * vload(b.minima + (block * nv + j) * VL);
        }
    const int8_t *rows = a.codes + i * INT8_STEP, *columns = b.codes;
    for (int block = 0; block < K / 32; block++, rows += 32 * INT8_ROWS, columns += 32 * nv * VL) {
        ivec s[INT8_GROUP][INT8_VECTORS];
        UNROLL for (int j = 0; j < nv; j++) {
            ivec first = INT8_OFFSET ? load_ints(b.sums + (block * nv + j) * VL) : (ivec){0};
            UNROLL for (int r = 0; r < INT8_GROUP; r++) s[r][j] = first;
        }
        UNROLL for (int k = 0; k < 32; k += INT8_STEP) dot_step(s, rows + k * INT8_ROWS, columns + k * nv * VL, nv);
        dot_end(s, nv);
        UNROLL for (int j = 0; j < nv; j++) {
            vec scales = vload(b.scales + (block * nv + j) * VL);
            UNROLL for (int r = 0; r < INT8_GROUP; r++)
                acc[r][j] += __builtin_convertvector(s[r][j], vec) * (a.scales[block * INT8_ROWS + i + r] * scales);
        }
    }
    UNROLL for (int r = 0; r < INT8_GROUP; r++) {
        UNROLL for (int j = 0; j < nv; j++) sums[i + r][j] = acc[r][j];
    }
}

#define TILE_INT8(nv, minima)                                                                                          \
    static __attribute__((noinline)) void int8_##nv##_##minima(const struct tile *t) {                                 \
        vec sums[INT8_ROWS][INT8_VECTORS];                                                                             \
        for (int i = 0; i < INT8_ROWS; i += INT8_GROUP)                                                                \
            int8_group(t, sums, i, nv, minima);                                                                        \
        tile_store(t, sums[0], INT8_ROWS, INT8_VECTORS, nv);                                                           \
    }

TILE_INT8(1, 0)
TILE_INT8(1, 1)
TILE_INT8(2, 0)
TILE_INT8(2, 1)
#if INT8_VECTORS == 3
TILE_INT8(3, 0)
TILE_INT8(3, 1)
#else
#define int8_3_0 int8_2_0
#define int8_3_1 int8_2_1
#endif

/* The tiles as wide as they need to be. */
static void tile_int8(struct tile *t) {
    int nv = panel_vectors(t->columns);
    (nv == 1 ? int8_1_0 : nv == 2 ? int8_2_0 : int8_3_0)(t);
}

static void tile_int8_minima(struct tile *t) {
    int nv = panel_vectors(t->columns);
    (nv == 1 ? int8_1_1 : nv == 2 ? int8_2_1 : int8_3_1)(t);
}

#define INT8_KERNEL                                                                                                    \
    .rows = INT8_ROWS, .columns = INT8_COLUMNS, .inner = INT8_INNER, .unit = 32, .bytes = 2, .direct = -1, .rough = 1, \
    .strips = 36 / INT8_ROWS, .pack_inner = 32, .pack_a = pack_a_int8, .pack_b_transposed = pack_b_int8_transposed,    \
    .pack_b_straight = pack_b_int8_straight
static const struct kernel int8_kernel = {INT8_KERNEL, .tile = tile_int8};
static const struct kernel int8_minima_kernel = {INT8_KERNEL, .tile = tile_int8_minima};

static const struct kernel *int8_kernel_of(int format, int backward) {
    return !backward && (format == ET_Q4_1 || format == ET_Q5_1) ? &int8_minima_kernel : &int8_kernel;
}

#endif
