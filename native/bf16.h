/* Products in bf16: both sides rounded to nearest when they are packed, summed in float. Only for kernel sets whose
 * flags allow to multiply bf16.
 *
 * A panel of B is [inner / 2, width, 2]: the pairs of inner elements that are multiplied together lie side by side, as
 * the instruction wants them. A panel of A is [inner / BF16_RUN, rows, BF16_RUN]; rows of activations that are bf16
 * already are read where they lie.
 *
 * An architecture brings the type `bf16`, BF16_RUN, and what there is no portable spelling of: `round_row` and
 * `pack_run` (floats rounded), `scale_codes_bf16` (as SCALE_CODES of unpack.h), `transpose_pairs` and `pair_rows`
 * (pairs of B). Its tile brings BF16_ROWS and BF16_COLUMNS, BF16_TILES_PER_TASK and BF16_K_PART (product.h),
 * `bf16_begin` and `bf16_end` around a thread's use, `tile_bf16`, two products for attention, and `bf16_peak`
 * (peak.h):
 *
 *     strip_product: c [rows, N] (accumulate: +)= a [rows, K] . b, b [K / 2, N] in pairs; rows are at most 32, N and K
 *     multiples of 32. strip_product_down: c += the transpose of a [K / 2, rows] in pairs, by b. Both read all 32 rows of
 *     a, and the pairs of as many. Only between bf16_begin and bf16_end.
 */

#ifdef __AVX512BF16__
#include "bf16_x86.h"
#endif

#ifdef ET_BF16_PRODUCTS

#define BF16_CHUNK 256      /* weights of a row that are unpacked at once: whole blocks of any format */
#define BF16_AHEAD 32       /* rows of weights that are fetched before they are packed */
#define BF16_INNER (2 * KC) /* values half as wide */

#ifdef __AVX512BF16__
#include "bf16_nibbles.h"
#endif

_Static_assert(MC % BF16_ROWS == 0 && NC % BF16_COLUMNS == 0 && BF16_INNER % BF16_RUN == 0, "whole tiles");
_Static_assert(BF16_RUN / 2 * BF16_CHUNK <= ET_THREAD_FLOATS, "unpacked rows must fit");

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

#define VALUE bf16
#define UNPACK(format) unpack_bf16_##format
#define SCALE_CODES scale_codes_bf16
#define PUT_VALUES(out, values, n) round_row(out, values, (int)(n), (int)(n))
#define SCALED 1
#include "unpack.h"

static inline int bf16_width(int columns) { return (columns + 15) / 16 * 16; }

/* `count` weights of row r from column i, rounded, and zeros up to `packed`: in `out`, or where they lie. */
static inline const bf16 *pack_weights(bf16 *out, const struct segment *s, int r, int i, int count, int packed) {
    int64_t first = r * s->ldw + i;
    if (s->format == ET_BF16 && count == packed)
        return (const bf16 *)s->w + first;
    if (floats_in_place(s)) {
        round_row(out, (const float *)s->w + first, count, packed);
        return out;
    }
    if (s->format == ET_BF16)
        memcpy(out, (const bf16 *)s->w + first, (size_t)count * 2);
    else
        unpack_bf16_any(out, s->w, s->format, first, count);
    if (packed > count)
        memset(out + count, 0, (size_t)(packed - count) * 2);
    return out;
}

/* rows [n]: `count` weights from column i of row r and of the rows behind it, `present` of them, and zeros up to n and
 * up to `packed`. The memory of rows that are wanted soon is fetched on the way: weights come from far away. */
static inline void pack_rows(const bf16 **rows, bf16 *tmp, const struct segment *s, int r, int present, int n, int i,
                             int count, int packed) {
    const ptrdiff_t ld = weight_bytes(s, s->ldw);
    const ptrdiff_t size = weight_bytes(s, count);
    const uint8_t *ahead = (const uint8_t *)s->w + (r + BF16_AHEAD) * ld + weight_bytes(s, i);
    for (int j = 0; j < n; j++, tmp += BF16_CHUNK, ahead += ld) {
        if (j >= present) {
            rows[j] = memset(tmp, 0, (size_t)packed * 2);
            continue;
        }
        fetch(ahead, size);
        rows[j] = pack_weights(tmp, s, r + j, i, count, packed);
    }
}

/* 16 columns, and as much of each as the nearest cache holds, at a time. */
static void pack_b_bf16_transposed(const struct product *p, const struct segment *s, float *tmp, int task) {
    int n = task * BF16_COLUMNS;
    int columns = min_int(p->nc - n, BF16_COLUMNS);
    int width = bf16_width(columns);
    float *panel = b_panel(s, n);
    for (int j = 0; j < width; j += 16)
        for (int k = 0; k < s->packed; k += BF16_CHUNK) {
            int count = min_int(s->kc - k, BF16_CHUNK);
            int packed = min_int(s->packed - k, BF16_CHUNK);
            const bf16 *rows[16];
            if (columns - j >= 16 &&
                pack_nibbles_transposed(panel + (ptrdiff_t)k / 2 * width + j, width, s, p->n + n + j, s->k + k, count))
                continue;
            pack_rows(rows, (bf16 *)tmp, s, p->n + n + j, columns - j, 16, s->k + k, count, packed);
            for (int i = 0; i < packed / 2; i += 16)
                transpose_pairs(panel + (ptrdiff_t)(k / 2 + i) * width + j, width, rows, i);
        }
}

/* BF16_RUN rows, and as much of each as the nearest cache holds. */
static void pack_b_bf16_straight(const struct product *p, const struct segment *s, float *tmp, int task) {
    int k = piece_inner(p, s, task);
    int n = piece_column(p, s, task);
    int count = min_int(p->nc - n, BF16_CHUNK);
    int packed = bf16_width(count);
    const bf16 *rows[BF16_RUN];
    if (s->kc - k >= BF16_RUN && pack_nibbles_straight(s, s->k + k, k, n, p->n + n, count))
        return;
    pack_rows(rows, (bf16 *)tmp, s, s->k + k, s->kc - k, BF16_RUN, p->n + n, count, packed);
    for (int i = 0; i < packed; i += BF16_COLUMNS) {
        int width = min_int(packed - i, BF16_COLUMNS);
        float *out = b_panel(s, n + i) + (ptrdiff_t)k / 2 * width;
        for (int r = 0; r < BF16_RUN; r += 2, out += width)
            pair_rows(out, rows[r] + i, rows[r + 1] + i, width);
    }
}

static const struct kernel bf16_kernel = {
    .tile = {.rows = BF16_ROWS,
             .columns = BF16_COLUMNS,
             .k_run = BF16_RUN,
             .direct = ET_BF16,
             .compute = tile_bf16,
             .begin = bf16_begin,
             .end = bf16_end},
    .packing = {.unit = BF16_RUN,
                .bits = 16,
                .a = pack_a_bf16,
                .b_transposed = pack_b_bf16_transposed,
                .b_straight = pack_b_bf16_straight},
    .scheduling = {.inner = BF16_INNER,
                   .k_part = BF16_K_PART,
                   .tiles_per_task = BF16_TILES_PER_TASK,
                   .pack_inner = BF16_RUN,
                   .pack_columns = BF16_CHUNK},
};

#endif
