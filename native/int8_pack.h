/* Packing for products in 8-bit integers: activations and weights to the panels of int8.h. */

#define INT8_CHUNK 256                /* weights that are unpacked at once: whole blocks of every format; */
#define INT8_AHEAD 32                 /* rows of weights that are fetched before they are unpacked */
#define INT8_STRIDE (INT8_CHUNK + 16) /* in rows so far apart that a column does not fall into few sets of a cache */

_Static_assert(INT8_CHUNK % VL == 0, "whole vectors");
_Static_assert((INT8_COLUMNS + INT8_ROWS) * INT8_INNER * K_FACTOR_BF16 <= ET_THREAD_FLOATS &&
                   32 * INT8_CHUNK <= ET_THREAD_FLOATS && 2 * INT8_COLUMNS * INT8_CHUNK <= ET_THREAD_FLOATS &&
                   INT8_LONG * INT8_STRIDE <= ET_THREAD_FLOATS,
               "unpacked rows must fit");

typedef int8_t code_vec __attribute__((vector_size(4 * VL)));

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

/* Row r of a run of A: n values of x. */
INLINE void quantize_row(struct int8_block out, int r, et_array x, int n, const int minima) {
    ivec most = {0};
    ivec sum = {0};
    for (int k = 0; k < n; k += VL) /* as integers NaN is above all numbers */
        most = max_ints(most, (ivec)load_part(x, k, VL) & 0x7fffffff);
    float highest = lanes_max_ints(most);
    float scale = int8_scale(highest);
    float inverse = int8_inverse(highest);
    for (int k = 0; k < n; k += 32) {
        ivec codes[32 / VL];
        UNROLL for (int i = 0; i < 32 / VL; i++) {
            codes[i] = round_to_ints(load_part(x, k + i * VL, VL) * inverse);
            sum += codes[i];
        }
        if (INT8_RUN == 32) {
            store_bytes(out.codes + k * INT8_ROWS + r * 32, codes);
            continue;
        }
        int8_t bytes[32];
        store_bytes(bytes, codes);
        for (int j = 0; j < 32; j += INT8_RUN)
            memcpy(out.codes + (k + j) * INT8_ROWS + r * INT8_RUN, bytes + j, INT8_RUN);
    }
    out.scales[r] = scale;
    if (minima)
        out.sums[r] = scale * (float)lanes_sum_ints(sum);
}

INLINE void quantize_rows(const float *panel, et_array a, ptrdiff_t stride, int rows, int K, const int run,
                          const int minima) {
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < K; k += run) {
            int n = run == 32 ? 32 : min_int(K - k, run);
            struct int8_block out = int8_block(panel, INT8_ROWS, k, n, run == 32 ? INT8_BITS : INT8_LONG_BITS);
            quantize_row(out, r, array_at(a, r * stride + k), n, minima);
        }
}

INLINE void pack_rows_int8(const struct product *p, const struct segment *s, float *panel, int m, int rows,
                           const int run, const int minima) {
    et_array a = a_rows(p, s, m);
    if (s->bits == 32) {
        pack_panel(panel, INT8_ROWS, a.data, s->a_rs, 1, rows, s->kc);
        return;
    }
    if (rows < INT8_ROWS)
        memset(panel, 0, (size_t)(INT8_ROWS * panel_floats(s, s->packed)) * sizeof *panel);
    EITHER(a, quantize_rows(panel, a, s->a_rs, rows, s->packed, run, minima));
}

#define PACK_A_INT8(name, run, minima)                                                                                 \
    static void name(const struct product *p, const struct segment *s, float *panel, float *tmp, int m, int rows) {    \
        (void)tmp;                                                                                                     \
        pack_rows_int8(p, s, panel, m, rows, run, minima);                                                             \
    }
PACK_A_INT8(pack_a_int8, 32, 0)
PACK_A_INT8(pack_a_int8_minima, 32, 1)
PACK_A_INT8(pack_a_int8_long, INT8_LONG, 0)

/* VL columns of a run of B, from column j on: x [n, ld] rounded. */
static inline void quantize_b(struct int8_block out, int width, int j, const float *x, ptrdiff_t ld, int n) {
    ivec most = {0};
    uvec sums = {0}; /* a NaN rounds to the least int, and two of these would overflow one */
    for (int k = 0; k < n; k++)
        most = max_ints(most, load_ints(x + k * ld) & 0x7fffffff);
    vec inverse = (vec)((ivec)(127 / (vec)most) & ((vec)most >= INT8_LEAST));
    vstore(out.scales + j, (vec)most / 127);
    for (int k = 0; k < n; k += 4) {
        uvec four = {0};
        UNROLL for (int i = 0; i < 4; i++) {
            ivec q = round_to_ints(vload(x + (k + i) * ld) * inverse);
            sums += (uvec)q;
            four |= ((uvec)q & 255) << 8 * i;
        }
        place_codes((float *)out.codes, width, j, k, four);
    }
    vstore(out.sums + j, (vec)(sums * (unsigned)-INT8_OFFSET));
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
#define SCALED 0
#include "unpack.h"

/* Whether 16 bytes at the end of a block of 32 weights hold codes of four bits: of the first 16 weights in their low
 * halves, of the others in their high ones; and what codes stand for is so much more. */
static inline int has_nibbles(int format) { return INT8_STEP == 4 && (format == ET_Q4_0 || format == ET_Q4_1); }
static inline int nibble_least(int format) { return format == ET_Q4_0 ? -8 : 0; }

/* VL columns of a run of B, of which x has four codes in the low and four in the high halves of each number. */
static inline void place_nibbles(int8_t *codes, ptrdiff_t width, uvec x, int least) {
    const code_vec low = (code_vec)(x & 0x0f0f0f0f) + (int8_t)least;
    const code_vec high = (code_vec)(x >> 4 & 0x0f0f0f0f) + (int8_t)least;
    vstore((float *)codes, (vec)low);
    vstore((float *)codes + 4 * width, (vec)high);
}

/* Two runs of `columns` columns from run i on, of `runs`, whose nibbles lie in rows: they are put side by side as they
 * are, which is half the work. */
static inline void pack_nibble_runs(const float *panel, int width, const float *nibbles, ptrdiff_t ld, int i, int runs,
                                    int columns, int least) {
    float turned[8 * INT8_COLUMNS];
    pack_transposed(turned, width, nibbles + i * 4, ld, columns, 8);
    for (int q = 0; q < 8 && i + q / 4 < runs; q++) {
        int8_t *codes = int8_block(panel, width, (i + q / 4) * 32, 32, INT8_BITS).codes + q % 4 * width * 4;
        for (int j = 0; j < width; j += VL)
            place_nibbles(codes + j * 4, width, (uvec)vload(turned + q * width + j), least);
    }
}

/* The scales and minima of a run of `columns` columns, whose blocks are `row` bytes apart from w on. */
static inline void pack_scales(struct int8_block out, int format, const uint8_t *w, ptrdiff_t row, int columns) {
    const int exponent = format_scales(format) == ET_EXPONENT;
    for (int r = 0; r < columns; r += HEADERS) {
        float found[2 * HEADERS];
        headers(found, w + r * row, row, columns - r);
        for (int c = r; c < columns && c < r + HEADERS; c++) {
            out.scales[c] = exponent ? e8m0_half(w[c * row]) : found[2 * (c - r)];
            out.minima[c] = found[2 * (c - r) + 1];
        }
    }
}

/* The codes of a run of `columns` columns, which lie in rows of `ld` bytes. */
static inline void pack_code_run(int8_t *out, int width, const int8_t *codes, ptrdiff_t ld, int columns) {
    if (INT8_STEP == 4) {
        pack_transposed((float *)out, width, (const float *)codes, ld / 4, columns, 8);
        return;
    }
    for (int k = 0; k < 32; k += INT8_STEP)
        for (int r = 0; r < columns; r++)
            memcpy(out + k * width + r * INT8_STEP, codes + r * ld + k, INT8_STEP);
}

/* Columns of a panel of weights whose blocks have one scale. */
static void pack_b_codes(const float *panel, int width, const struct segment *s, float *tmp, int n, int columns) {
    int8_t *codes = (int8_t *)tmp;
    const int nibbles = has_nibbles(s->format);
    const int runs = s->packed / 32;
    const ptrdiff_t ld = nibbles ? (runs + 1) / 2 * 32 : s->packed;
    const ptrdiff_t row = weight_bytes(s, s->ldw);
    const ptrdiff_t size = weight_bytes(s, s->packed);
    const uint8_t *w = (const uint8_t *)s->w + n * row + weight_bytes(s, s->k);
    for (int r = 0; r < columns; r++) {
        fetch(w + (r + INT8_AHEAD) * row, size);
        if (!nibbles)
            unpack_codes_any(codes + r * ld, s->w, s->format, (n + r) * s->ldw + s->k, s->packed);
        for (int i = 0; nibbles && i < runs; i++)
            memcpy(codes + r * ld + i * 16, w + r * row + (i + 1) * (size / runs) - 16, 16);
    }
    for (int i = 0; nibbles && i < runs; i += 2)
        pack_nibble_runs(panel, width, tmp, ld / 4, i, runs, columns, nibble_least(s->format));
    for (int i = 0; i < runs; i++) {
        struct int8_block block = int8_block(panel, width, i * 32, 32, INT8_BITS);
        pack_scales(block, s->format, w + weight_bytes(s, i * 32), row, columns);
        if (!nibbles)
            pack_code_run(block.codes, width, codes + i * 32, ld, columns);
        pack_zeros((float *)block.codes, width * INT8_STEP / 4, columns * INT8_STEP / 4, 32 / INT8_STEP);
        pack_zeros(block.scales, width, columns, 3); /* and what lies behind them */
#if INT8_OFFSET
        for (int j = 0; j < width; j += VL)
            vstore(block.sums + j, (vec)(-INT8_OFFSET * column_sums(block.codes + j * INT8_STEP, width)));
#endif
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
                quantize_b(int8_block(panel, width, k + i, 32, INT8_BITS), width, j, x + i * width + j, width, 32);
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

/* Rows of w, rounded across: those of a run. */
static void pack_b_int8_straight(const struct product *p, const struct segment *s, float *tmp, int task) {
    int k = piece_inner(p, s, task);
    int c = piece_column(p, s, task);
    if (s->bits == 32) { /* it has few rows, which are little work: the first piece is all */
        if (task == 0)
            pack_b_floats(p, s);
        return;
    }
    int rows = min_int(s->packed - k, p->kernel->scheduling.pack_inner);
    int count = min_int(p->nc - c, INT8_CHUNK);
    int whole = ceil_div(count, VL) * VL;
    const ptrdiff_t ld = weight_bytes(s, s->ldw);
    const ptrdiff_t size = weight_bytes(s, count);
    const uint8_t *ahead = (const uint8_t *)s->w + (s->k + k + INT8_AHEAD) * ld + weight_bytes(s, p->n + c);
    for (int r = 0; r < rows; r++, ahead += ld) {
        float *row = tmp + r * INT8_STRIDE;
        fetch(ahead, size);
        const float *w = weights(s, row, s->k + k + r, p->n + c, count);
        if (w != row)
            memcpy(row, w, (size_t)count * sizeof *row);
        memset(row + count, 0, (size_t)(whole - count) * sizeof *row);
    }
    for (int j = 0; j < count; j += VL) {
        int n = (c + j) / INT8_COLUMNS * INT8_COLUMNS;
        int width = panel_vectors(min_int(p->nc - n, INT8_COLUMNS)) * VL;
        quantize_b(int8_block(b_panel(s, n), width, k, rows, s->bits), width, c + j - n, tmp + j, INT8_STRIDE, rows);
    }
}
