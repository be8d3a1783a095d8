/* Products in 8-bit integers: packing and tile, under the driver of matmul.h. Only for kernel sets that have dot
 * products of bytes; elsewhere floats are as quick.
 *
 * Both sides are rounded along the inner dimension in blocks of 32: codes, and a scale that is a 127th of the block's
 * largest magnitude. Weights whose blocks have one scale, read along them, keep the codes and scales that they have,
 * and the minima, whose products with the sums of A's codes are a product of floats of a 32nd of the size.
 *
 * A panel is, for each block of 32, the codes, of B [32 / INT8_STEP, width, INT8_STEP] and of A [32 / INT8_RUN, rows,
 * INT8_RUN], then the scales [width]; then what sums begin with, of B, and the minima; of A, what minima are multiplied
 * with.
 *
 * A kernel set brings `dot_step` (sums of a group of rows += dot products of INT8_STEP bytes of each with nv vectors of
 * columns) and `dot_end` (which puts sums in their places), the tile's sizes, INT8_RUN, `round_to_ints`, `max_ints`,
 * `store_bytes` (32 codes of A, as the dot product wants them), and INT8_OFFSET, by which these are moved up.
 */

static inline ivec load_ints(const void *p) { return (ivec)vload(p); }

static inline int lanes_sum_ints(ivec x) {
#ifdef __AVX512F__
    return _mm512_reduce_add_epi32((__m512i)x);
#else
    int sum = 0;
    for (int i = 0; i < VL; i++)
        sum += x[i];
    return sum;
#endif
}

/* The largest of integers that are bits of floats from 0 on. */
static inline float lanes_max_ints(ivec x) {
#ifdef __AVX512F__
    int most = _mm512_reduce_max_epi32((__m512i)x);
#else
    int most = x[0];
    for (int i = 1; i < VL; i++)
        most = x[i] > most ? x[i] : most;
#endif
    float value;
    memcpy(&value, &most, sizeof value);
    return value;
}

#if defined __AVX512VNNI__ || defined __AVXVNNI__
#include "vnni.h"
#elif defined __ARM_FEATURE_DOTPROD
#include "armdot.h"
#endif

#ifdef ET_DOT

#define INT8_COLUMNS (INT8_VECTORS * VL)
#define INT8_INNER (2 * KC)
#define INT8_BITS (8 + 3) /* a code, and for 32 of them three numbers of 32 bits */
#define INT8_CHUNK 256      /* weights that are unpacked at once: whole blocks of every format */

_Static_assert((INT8_INNER * K_FACTOR_BF16 * INT8_BITS / 32 + LOW_RANK) * (256 + NR + LEAST_STRIPS * 36) <=
                   ET_SHARED_FLOATS,
               "packed blocks must fit the shared scratch");
_Static_assert(INT8_COLUMNS <= NR && INT8_ROWS <= MOST_ROWS && INT8_ROWS % INT8_GROUP == 0, "whole tiles");
_Static_assert(INT8_INNER % 32 == 0 && NC % INT8_COLUMNS == 0 && INT8_CHUNK % VL == 0, "whole blocks, panels, vectors");
_Static_assert((INT8_COLUMNS + INT8_ROWS) * INT8_INNER * K_FACTOR_BF16 <= ET_THREAD_FLOATS &&
                   32 * INT8_CHUNK <= ET_THREAD_FLOATS && 2 * INT8_COLUMNS * INT8_CHUNK <= ET_THREAD_FLOATS,
               "unpacked rows must fit");

struct int8_block {
    int8_t *codes;
    float *scales, *sums, *minima; /* sums of B are integers */
};

static inline struct int8_block int8_block(const float *panel, int width, int block) {
    float *p = (float *)(uintptr_t)panel + (ptrdiff_t)block * width * INT8_BITS;
    float *scales = p + 8 * width;
    return (struct int8_block){(int8_t *)p, scales, scales + width, scales + 2 * width};
}

/* Four codes, from k of a block on, of each of VL columns from j on. */
static inline void place_codes(float *codes, int width, int j, int k, uvec four) {
    if (INT8_STEP == 4) {
        vstore(codes + k / 4 * width + j, (vec)four);
        return;
    }
    for (int i = 0; i < VL; i++)
        codes[(k / 8 * width + j + i) * 2 + k / 4 % 2] = ((vec)four)[i];
}

#define INT8_LEAST 0x1p-100f /* where scales would be denormal, all is rounded to zero */

/* 127ths of the largest magnitude, and what makes codes of values. */
static inline float int8_scale(float most) { return most / 127; }
static inline float int8_inverse(float most) { return most >= INT8_LEAST ? 127 / most : 0; }

/* Row r of a block of A: 32 values of x. */
INLINE void quantize_row(struct int8_block out, int r, et_array x, const int minima) {
    enum { N = 32 / VL };
    vec values[N];
    ivec most = {0};
    ivec codes[N];
    ivec sum = {0};
    UNROLL for (int i = 0; i < N; i++) { /* as integers NaN is above all numbers */
        values[i] = load_part(x, i * VL, VL);
        most = max_ints(most, (ivec)values[i] & 0x7fffffff);
    }
    float highest = lanes_max_ints(most);
    float scale = int8_scale(highest);
    float inverse = int8_inverse(highest);
    UNROLL for (int i = 0; i < N; i++) {
        codes[i] = round_to_ints(values[i] * inverse);
        sum += codes[i];
    }
    if (INT8_RUN == 32)
        store_bytes(out.codes + r * 32, codes);
    else {
        int8_t bytes[32];
        store_bytes(bytes, codes);
        for (int k = 0; k < 32; k += INT8_RUN)
            memcpy(out.codes + k * INT8_ROWS + r * INT8_RUN, bytes + k, INT8_RUN);
    }
    out.scales[r] = scale;
    if (minima)
        out.sums[r] = scale * (float)lanes_sum_ints(sum);
}

INLINE void quantize_rows(const float *panel, et_array a, ptrdiff_t stride, int rows, int K, const int minima) {
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < K; k += 32)
            quantize_row(int8_block(panel, INT8_ROWS, k / 32), r, array_at(a, r * stride + k), minima);
}

INLINE void pack_rows_int8(const struct product *p, const struct segment *s, float *panel, int m, int rows,
                           const int minima) {
    et_array a = a_rows(p, s, m);
    if (s->bits == 32) {
        pack_panel(panel, INT8_ROWS, a.data, s->a_rs, 1, rows, s->kc);
        return;
    }
    if (rows < INT8_ROWS)
        memset(panel, 0, (size_t)(INT8_ROWS * panel_floats(s, s->packed)) * sizeof *panel);
    EITHER(a, quantize_rows(panel, a, s->a_rs, rows, s->packed, minima));
}

static void pack_a_int8(const struct product *p, const struct segment *s, float *panel, float *tmp, int m, int rows) {
    (void)tmp;
    pack_rows_int8(p, s, panel, m, rows, 0);
}

static void pack_a_int8_minima(const struct product *p, const struct segment *s, float *panel, float *tmp, int m,
                               int rows) {
    (void)tmp;
    pack_rows_int8(p, s, panel, m, rows, 1);
}

/* VL columns of a block of B, from column j on: x [32, ld] rounded. */
static inline void quantize_b(struct int8_block out, int width, int j, const float *x, ptrdiff_t ld) {
    ivec most = {0};
    ivec sums = {0};
    for (int k = 0; k < 32; k++)
        most = max_ints(most, load_ints(x + k * ld) & 0x7fffffff);
    vec inverse = (vec)((ivec)(127 / (vec)most) & ((vec)most >= INT8_LEAST));
    vstore(out.scales + j, (vec)most / 127);
    for (int k = 0; k < 32; k += 4) {
        uvec four = {0};
        UNROLL for (int i = 0; i < 4; i++) {
            ivec q = round_to_ints(vload(x + (k + i) * ld) * inverse);
            sums += q;
            four |= ((uvec)q & 255) << 8 * i;
        }
        place_codes((float *)out.codes, width, j, k, four);
    }
    vstore(out.sums + j, (vec)(sums * -INT8_OFFSET));
}

static inline void store_codes(int8_t *out, bytes first, float scale, float offset, bytes second, float scale2,
                               float offset2) {
    (void)scale, (void)offset, (void)scale2, (void)offset2;
    memcpy(out, &first, 16);
    memcpy(out + 16, &second, 16);
}

/* The codes of formats whose blocks have one scale (keeps_codes). */
#define VALUE int8_t
#define UNPACK(format) unpack_codes_##format
#define SCALE_CODES store_codes
#define PUT_VALUES(out, values, n) memset(out, 0, (size_t)(n))
#include "unpack.h"

/* Columns of a panel of weights whose blocks have one scale. */
static void pack_b_codes(const float *panel, int width, const struct segment *s, float *tmp, int n, int columns) {
    int8_t *codes = (int8_t *)tmp;
    const int size = format_block(s->format);
    const int bytes = format_bytes(s->format);
    const int exponent = format_scales(s->format) == ET_EXPONENT;
    const int ld = s->packed;
    for (int r = 0; r < columns; r++)
        unpack_codes_any(codes + r * ld, s->w, s->format, (n + r) * s->ldw + s->k, ld);
    for (int i = 0; i < ld / 32; i++) {
        struct int8_block block = int8_block(panel, width, i);
        const uint8_t *w = (const uint8_t *)s->w + (n * s->ldw + s->k + i * 32) / size * bytes;
        for (int r = 0; r < columns; r++, w += s->ldw / size * bytes) {
            uint16_t header[2];
            int sum = 0;
            memcpy(header, w, 4);
            for (int k = 0; k < 32; k++)
                sum += codes[r * ld + i * 32 + k];
            sum *= -INT8_OFFSET;
            block.scales[r] = exponent ? e8m0_half(*w) : half_to_float(header[0]);
            memcpy(&block.sums[r], &sum, 4);
            block.minima[r] = half_to_float(header[1]);
        }
        if (INT8_STEP == 4)
            pack_transposed((float *)block.codes, width, tmp + i * 8, ld / 4, columns, 8);
        for (int k = 0; INT8_STEP != 4 && k < 32; k += INT8_STEP)
            for (int r = 0; r < columns; r++)
                memcpy(block.codes + k * width + r * INT8_STEP, codes + r * ld + i * 32 + k, INT8_STEP);
        pack_zeros((float *)block.codes, width * INT8_STEP / 4, columns * INT8_STEP / 4, 32 / INT8_STEP);
        pack_zeros(block.scales, width, columns, 3); /* and what lies behind them */
    }
}

static void pack_b_int8_transposed(const struct product *p, const struct segment *s, float *tmp, int task) {
    int n = task * INT8_COLUMNS;
    int columns = min_int(p->nc - n, INT8_COLUMNS);
    int width = panel_vectors(columns) * VL;
    float *panel = b_panel(s, n);
    float *x = tmp + INT8_COLUMNS * INT8_CHUNK;
    if (s->bits == 32) {
        pack_panel(panel, width, (const float *)s->w + (p->n + n) * s->ldw + s->k, s->ldw, 1, columns, s->kc);
        return;
    }
    if (keeps_codes(s->format)) {
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
                quantize_b(int8_block(panel, width, (k + i) / 32), width, j, x + i * width + j, width);
    }
}

/* All panels of LoRA's part. */
static void pack_b_floats(const struct product *p, const struct segment *s) {
    for (int n = 0; n < p->nc; n += INT8_COLUMNS) {
        int columns = min_int(p->nc - n, INT8_COLUMNS);
        int width = panel_vectors(columns) * VL;
        pack_panel(b_panel(s, n), width, (const float *)s->w + s->k * s->ldw + p->n + n, 1, s->ldw, columns, s->kc);
    }
}

/* 32 rows of w, rounded across: those of a block. */
static void pack_b_int8_straight(const struct product *p, const struct segment *s, float *tmp, int task) {
    int k = piece_inner(p, s, task);
    int c = piece_column(p, s, task);
    if (s->bits == 32) { /* it has few rows, which are little work: the first piece is all */
        if (task == 0)
            pack_b_floats(p, s);
        return;
    }
    int count = min_int(p->nc - c, INT8_CHUNK);
    int whole = ceil_div(count, VL) * VL;
    for (int r = 0; r < 32; r++) {
        weights(s, tmp + r * INT8_CHUNK, s->k + k + r, p->n + c, count);
        memset(tmp + r * INT8_CHUNK + count, 0, (size_t)(whole - count) * sizeof *tmp);
    }
    for (int j = 0; j < count; j += VL) {
        int n = (c + j) / INT8_COLUMNS * INT8_COLUMNS;
        int width = panel_vectors(min_int(p->nc - n, INT8_COLUMNS)) * VL;
        quantize_b(int8_block(b_panel(s, n), width, k / 32), width, c + j - n, tmp + j, INT8_CHUNK);
    }
}

/* sums [INT8_GROUP, nv] of rows i .. of A times B, and of LoRA's part, which is floats. nv and minima are constants
 * where this is inlined. */
static inline __attribute__((always_inline)) void int8_group(const struct tile *t, vec sums[][INT8_VECTORS], int i,
                                                             const int nv, const int minima) {
    vec acc[INT8_GROUP][INT8_VECTORS] = {0};
    for (int block = 0; block < t->s[0].K / 32; block++) {
        const struct int8_block a = int8_block(t->s[0].a.p, INT8_ROWS, block);
        const struct int8_block b = int8_block(t->s[0].b.p, nv * VL, block);
        ivec s[INT8_GROUP][INT8_VECTORS];
        UNROLL for (int j = 0; j < nv; j++) {
            ivec first = INT8_OFFSET ? load_ints(b.sums + j * VL) : (ivec){0};
            UNROLL for (int r = 0; r < INT8_GROUP; r++) s[r][j] = first;
        }
        UNROLL for (int k = 0; k < 32; k += INT8_STEP)
            dot_step(s, a.codes + k / INT8_RUN * INT8_RUN * INT8_ROWS + i * INT8_RUN + k % INT8_RUN,
                     b.codes + k * nv * VL, nv);
        dot_end(s, nv);
        UNROLL for (int j = 0; j < nv; j++) {
            vec scales = vload(b.scales + j * VL);
            UNROLL for (int r = 0; r < INT8_GROUP; r++) {
                acc[r][j] += __builtin_convertvector(s[r][j], vec) * (a.scales[i + r] * scales);
                if (minima)
                    acc[r][j] += a.sums[i + r] * vload(b.minima + j * VL);
            }
        }
    }
    const float *x = t->s[1].a.p + i;
    const float *y = t->s[1].b.p;
    for (int k = 0; k < t->s[1].K; k++, x += INT8_ROWS, y += nv * VL) {
        UNROLL for (int r = 0; r < INT8_GROUP; r++) {
            UNROLL for (int j = 0; j < nv; j++) acc[r][j] += x[r] * vload(y + j * VL);
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

#define INT8_KERNEL(pack_a, tile_of)                                                                                   \
    {                                                                                                                  \
        .tile = {.rows = INT8_ROWS, .columns = INT8_COLUMNS, .direct = -1, .compute = tile_of},                        \
        .packing = {.unit = 32, .bits = INT8_BITS, .is_int8 = 1, .a = pack_a,                                          \
                    .b_transposed = pack_b_int8_transposed, .b_straight = pack_b_int8_straight},                       \
        .scheduling = {.inner = INT8_INNER, .tiles_per_task = 36 / INT8_ROWS, .pack_inner = 32,                        \
                       .pack_columns = INT8_CHUNK},                                                                    \
    }
static const struct kernel int8_kernel = INT8_KERNEL(pack_a_int8, tile_int8);
static const struct kernel int8_minima_kernel = INT8_KERNEL(pack_a_int8_minima, tile_int8_minima);

static const struct kernel *int8_kernel_of(int format, int backward) {
    return !backward && format_scales(format) == ET_ONE_AND_MINIMUM ? &int8_minima_kernel : &int8_kernel;
}

#endif
