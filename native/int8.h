/* Products in 8-bit integers: panels and tile, under the driver of matmul.h. Only for kernel sets that have dot products
 * of bytes; elsewhere floats are as quick. Packing is in int8_pack.h.
 *
 * Both sides are rounded along the inner dimension in runs of 32, or backward of 128, the last as long as it is: codes,
 * and a scale that is a 127th of the run's largest magnitude. The end of a run takes the tile a quarter to a third of
 * the time of 32 dot products, but forward, and of the head's probabilities, longer ones lose too much. Weights whose
 * blocks have one scale, read along them, keep the codes and scales that they have, and the minima, whose products with
 * the sums of A's codes are a product of floats of a 32nd of the size.
 *
 * A panel is, for each run, the codes, of B [run / INT8_STEP, width, INT8_STEP] and of A [run / INT8_RUN, rows,
 * INT8_RUN], then the scales [width]; then what sums begin with, of B, and the minima; of A, what minima are multiplied
 * with.
 *
 * A kernel set brings `dot_step` (sums of a group of rows += dot products of INT8_STEP bytes of each with nv vectors of
 * columns) and `dot_end` (which puts sums in their places), the tile's sizes, INT8_RUN, `round_to_ints`, `max_ints`,
 * `store_bytes` (32 codes of A, as the dot product wants them), and INT8_OFFSET, by which these are moved up.
 */

static inline ivec load_ints(const void *p) { return (ivec)vload(p); }

#if defined __AVX512VNNI__ || defined __AVXVNNI__
#include "vnni.h"
#elif defined __ARM_FEATURE_DOTPROD
#include "armdot.h"
#endif

#ifdef ET_DOT

#define INT8_COLUMNS (INT8_VECTORS * VL)
#define INT8_INNER (2 * KC)
#define INT8_LONG 128          /* a run, where gradients may be rounded so; */
#define INT8_LONG_INNER 640    /* a block of such runs: SmolLM2's width is in one */
#define INT8_BITS (8 + 3)      /* a code, and for 32 of them three numbers of 32 bits; */
#define INT8_LONG_BITS (8 + 2) /* two, also where the last run has no more */

_Static_assert((INT8_INNER * K_FACTOR_BF16 * INT8_BITS / 32 + LOW_RANK) * (256 + NR + LEAST_STRIPS * 36) <=
                   ET_SHARED_FLOATS,
               "packed blocks must fit the shared scratch");
_Static_assert(INT8_COLUMNS <= NR && INT8_ROWS <= MOST_ROWS && INT8_ROWS % INT8_GROUP == 0, "whole tiles");
_Static_assert(INT8_INNER % 32 == 0 && NC % INT8_COLUMNS == 0, "whole blocks, panels");
_Static_assert(INT8_LONG_INNER % INT8_LONG == 0 && INT8_LONG_INNER * INT8_LONG_BITS <= INT8_INNER * INT8_BITS * 5 / 4,
               "long runs must fit too");

struct int8_block {
    int8_t *codes;
    float *scales, *sums, *minima; /* sums of B are integers */
};

/* The run of n inner elements from k on. */
static inline struct int8_block int8_block(const float *panel, int width, int k, int n, int bits) {
    float *p = (float *)(uintptr_t)panel + (ptrdiff_t)k / 32 * width * bits;
    float *scales = p + n / 4 * width;
    return (struct int8_block){(int8_t *)p, scales, scales + width, scales + 2 * width};
}

#include "int8_pack.h"

/* acc [INT8_GROUP, nv] += what the run of n inner elements from k on sums to, of rows i .. of A. nv, long_runs and
 * minima are constants where this is inlined. */
INLINE void int8_run(const struct tile *t, vec acc[][INT8_VECTORS], int i, int k, int n, const int nv,
                     const int long_runs, const int minima) {
    const int bits = long_runs ? INT8_LONG_BITS : INT8_BITS;
    const struct int8_block a = int8_block(t->s[0].a.p, INT8_ROWS, k, n, bits);
    const struct int8_block b = int8_block(t->s[0].b.p, nv * VL, k, n, bits);
    ivec s[INT8_GROUP][INT8_VECTORS];
    UNROLL for (int j = 0; j < nv; j++) {
        ivec first = INT8_OFFSET ? load_ints(b.sums + j * VL) : (ivec){0};
        UNROLL for (int r = 0; r < INT8_GROUP; r++)
            s[r][j] = first;
    }
    for (int k0 = 0; k0 < n; k0 += 32) {
        const int8_t *rows = a.codes + k0 * INT8_ROWS + i * INT8_RUN;
        const int8_t *columns = b.codes + k0 * nv * VL;
        UNROLL for (int q = 0; q < 32; q += INT8_STEP)
            dot_step(s, rows + q / INT8_RUN * INT8_RUN * INT8_ROWS + q % INT8_RUN, columns + q * nv * VL, nv);
    }
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

/* sums [INT8_GROUP, nv] of rows i .. of A times B, and of LoRA's part, which is floats. Each loop is written as GCC 12
 * wants it to keep all sums in registers: long runs are 0.87 of the peak so, and 0.67 in the other's words. */
INLINE void int8_group(const struct tile *t, vec sums[][INT8_VECTORS], int i, const int nv, const int long_runs,
                       const int minima) {
    vec acc[INT8_GROUP][INT8_VECTORS] = {0};
    for (int block = 0; !long_runs && block < t->s[0].K / 32; block++)
        int8_run(t, acc, i, block * 32, 32, nv, 0, minima);
    for (int k = 0; long_runs && k < t->s[0].K; k += INT8_LONG)
        int8_run(t, acc, i, k, min_int(t->s[0].K - k, INT8_LONG), nv, 1, minima);
    const float *x = t->s[1].a.p + i;
    const float *y = t->s[1].b.p;
    for (int k = 0; k < t->s[1].K; k++, x += INT8_ROWS, y += nv * VL) {
        UNROLL for (int r = 0; r < INT8_GROUP; r++) {
            UNROLL for (int j = 0; j < nv; j++)
                acc[r][j] += x[r] * vload(y + j * VL);
        }
    }
    UNROLL for (int r = 0; r < INT8_GROUP; r++) {
        UNROLL for (int j = 0; j < nv; j++)
            sums[i + r][j] = acc[r][j];
    }
}

#define TILE_INT8(kind, nv, long_runs, minima)                                                                         \
    static __attribute__((noinline)) void int8_##kind##_##nv(const struct tile *t) {                                   \
        vec sums[INT8_ROWS][INT8_VECTORS] = {0};                                                                       \
        for (int i = 0; i < t->rows; i += INT8_GROUP)                                                                  \
            int8_group(t, sums, i, nv, long_runs, minima);                                                             \
        tile_store(t, sums[0], INT8_ROWS, INT8_VECTORS, nv);                                                           \
    }

/* The tiles as wide as they need to be. */
#if INT8_VECTORS == 3
#define TILES_INT8(kind, long_runs, minima)                                                                            \
    TILE_INT8(kind, 1, long_runs, minima)                                                                              \
    TILE_INT8(kind, 2, long_runs, minima)                                                                              \
    TILE_INT8(kind, 3, long_runs, minima)                                                                              \
    static void tile_int8_##kind(struct tile *t) {                                                                     \
        int nv = panel_vectors(t->columns);                                                                            \
        (nv == 1 ? int8_##kind##_1 : nv == 2 ? int8_##kind##_2 : int8_##kind##_3)(t);                                  \
    }
#else
#define TILES_INT8(kind, long_runs, minima)                                                                            \
    TILE_INT8(kind, 1, long_runs, minima)                                                                              \
    TILE_INT8(kind, 2, long_runs, minima)                                                                              \
    static void tile_int8_##kind(struct tile *t) {                                                                     \
        (panel_vectors(t->columns) == 1 ? int8_##kind##_1 : int8_##kind##_2)(t);                                       \
    }
#endif
TILES_INT8(plain, 0, 0)
TILES_INT8(minima, 0, 1)
TILES_INT8(long, 1, 0)

#define INT8_KERNEL(pack_a, tile_of, bits_of, block, run)                                                              \
    {                                                                                                                  \
        .tile = {.rows = INT8_ROWS, .columns = INT8_COLUMNS, .direct = -1, .compute = tile_of},                        \
        .packing = {.unit = 32,                                                                                        \
                    .bits = bits_of,                                                                                   \
                    .is_int8 = 1,                                                                                      \
                    .a = pack_a,                                                                                       \
                    .b_transposed = pack_b_int8_transposed,                                                            \
                    .b_straight = pack_b_int8_straight},                                                               \
        .scheduling = {.inner = block,                                                                                 \
                       .tiles_per_task = 36 / INT8_ROWS,                                                               \
                       .pack_inner = run,                                                                              \
                       .pack_columns = INT8_CHUNK},                                                                    \
    }
static const struct kernel int8_kernel = INT8_KERNEL(pack_a_int8, tile_int8_plain, INT8_BITS, INT8_INNER, 32);
static const struct kernel int8_minima_kernel =
    INT8_KERNEL(pack_a_int8_minima, tile_int8_minima, INT8_BITS, INT8_INNER, 32);
static const struct kernel int8_long_kernel =
    INT8_KERNEL(pack_a_int8_long, tile_int8_long, INT8_LONG_BITS, INT8_LONG_INNER, INT8_LONG);

/* ET_FAST's gradients need runs of 32. */
static const struct kernel *int8_kernel_of(int format, enum direction direction, enum et_precision precision) {
    if (direction == FORWARD && format_scales(format) == ET_ONE_AND_MINIMUM)
        return &int8_minima_kernel;
    return direction == BACKWARD && precision == ET_INT8 ? &int8_long_kernel : &int8_kernel;
}

#endif
