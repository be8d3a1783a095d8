/* The forward product in 8-bit integers: packing and tile, under the driver of matmul.h.
 *
 * A packed panel lies where the float panel of the same rows and K would. First come the codes, [K/4, width, 4], so
 * that a dot product of four bytes finds its operands together; then, for each block of 32, the scales [K/32, width];
 * then, of B, the minima, and of A the sums that minima are multiplied with.
 *
 * An ISA with such instructions brings `sums` (VL sums), `dot4`, `sums_to_floats` and `first_sums` (what sums over a
 * block of 32, whose eight pieces of B lie `stride` apart, must begin with), and sets ET_DOT4.
 */

#ifndef ET_DOT4
typedef struct {
    int32_t lane[VL];
} sums;

/* s[i] += dot products of row i of a [4, 4] with the VL rows of b [VL, 4]. */
static inline void dot4(sums s[4], const int8_t *restrict a, const int8_t *restrict b) {
    for (int i = 0; i < 4; i++)
        for (int l = 0; l < VL; l++)
            for (int k = 0; k < 4; k++)
                s[i].lane[l] += a[4 * i + k] * b[4 * l + k];
}

static inline sums first_sums(const int8_t *b, ptrdiff_t stride) {
    (void)b, (void)stride;
    return (sums){{0}};
}

static inline vec sums_to_floats(sums s) {
    vec x;
    for (int l = 0; l < VL; l++)
        x[l] = (float)s.lane[l];
    return x;
}
#endif

struct int8_panel {
    int8_t *codes;
    float *scales, *extra;
};

static inline struct int8_panel int8_panel(const float *panel, int width, int K) {
    float *p = (float *)(uintptr_t)panel, *scales = p + (ptrdiff_t)K * width / 4;
    return (struct int8_panel){(int8_t *)p, scales, scales + (ptrdiff_t)K * width / 32};
}

/* Puts the codes of one block of 32 of row r where the tile reads them. */
static inline void place_codes(struct int8_panel p, int width, int r, int block, const int8_t q[32]) {
    for (int k = 0; k < 8; k++)
        memcpy(p.codes + (((ptrdiff_t)block * 8 + k) * width + r) * 4, q + 4 * k, 4);
}

/* Rows `rows` .. width - 1 become zero. */
static inline void int8_zeros(struct int8_panel p, int width, int rows, int K) {
    static const int8_t zeros[32];
    for (int r = rows; r < width; r++)
        for (int block = 0; block < K / 32; block++) {
            place_codes(p, width, r, block, zeros);
            p.scales[block * width + r] = p.extra[block * width + r] = 0;
        }
}

static void pack_a_int8(const struct product *p, const struct segment *s, float *at, float *tmp, int m, int rows) {
    struct int8_panel panel = int8_panel(at, MR, s->packed);
    int8_t q[32];
    (void)p;
    for (int r = 0; r < rows; r++) {
        const float *x = array_floats(array_at(a_rows(p, s, m), r * s->a_rs), tmp, s->kc);
        for (int block = 0; block < s->packed / 32; block++) {
            float *scale = &panel.scales[block * MR + r];
            int sum = 0;
            quantize_32(q, scale, x + block * 32);
            for (int i = 0; i < 32; i++)
                sum += q[i];
            panel.extra[block * MR + r] = *scale * (float)sum;
            place_codes(panel, MR, r, block, q);
        }
    }
    int8_zeros(panel, MR, rows, s->packed);
}

static void pack_b_int8(const struct product *p, const struct segment *s, float *tmp, int task) {
    int n = task * NR, columns = min_int(p->nc - n, NR), width = panel_vectors(columns) * VL;
    struct int8_panel panel = int8_panel(b_panel(p, s, n), width, s->packed);
    int8_t q[32];
    for (int r = 0; r < columns; r++) {
        const float *x = weights(s, tmp, p->n + n + r, s->k, s->kc);
        int64_t first = (p->n + n + r) * s->ldw + s->k;
        for (int block = 0; block < s->packed / 32; block++) {
            weight_32(q, &panel.scales[block * width + r], &panel.extra[block * width + r], x + block * 32, s->w,
                      s->format, first + block * 32);
            place_codes(panel, width, r, block, q);
        }
    }
    int8_zeros(panel, width, columns, s->packed);
}

/* acc [4, nv] += rows i .. i+3 of A times B over one block of 32. */
static inline __attribute__((always_inline)) void tile_int8_block(vec acc[4][NV], struct int8_panel a,
                                                                  struct int8_panel b, int i, int block, const int nv) {
    sums s[NV][4];
    UNROLL for (int j = 0; j < nv; j++) {
        sums first = first_sums(b.codes + ((ptrdiff_t)block * 8 * nv + j) * VL * 4, nv * VL * 4);
        UNROLL for (int r = 0; r < 4; r++) s[j][r] = first;
    }
    for (int k = block * 8; k < block * 8 + 8; k++)
        UNROLL for (int j = 0; j < nv; j++)
            dot4(s[j], a.codes + ((ptrdiff_t)k * MR + i) * 4, b.codes + ((ptrdiff_t)k * nv + j) * VL * 4);
    UNROLL for (int j = 0; j < nv; j++) {
        vec scales = vload(b.scales + (block * nv + j) * VL), minima = vload(b.extra + (block * nv + j) * VL);
        UNROLL for (int r = 0; r < 4; r++)
            acc[r][j] += sums_to_floats(s[j][r]) * (a.scales[block * MR + i + r] * scales) +
                         a.extra[block * MR + i + r] * minima;
    }
}

#define TILE_INT8(nv)                                                                                                  \
    static __attribute__((noinline)) void int8_##nv(const struct tile *t) {                                            \
        vec acc[MR][NV];                                                                                               \
        for (int i = 0; i < MR; i += 4) {                                                                              \
            vec rows[4][NV] = {0};                                                                                     \
            for (int s = 0; s < SEGMENTS; s++) {                                                                       \
                int K = t->s[s].K;                                                                                     \
                struct int8_panel a = int8_panel(t->s[s].a.p, MR, K), b = int8_panel(t->s[s].b.p, nv * VL, K);         \
                for (int block = 0; block < K / 32; block++)                                                           \
                    tile_int8_block(rows, a, b, i, block, nv);                                                         \
            }                                                                                                          \
            memcpy(acc + i, rows, sizeof rows);                                                                        \
        }                                                                                                              \
        tile_store(t, acc[0], MR, NV, nv);                                                                             \
    }
#define INT8_CASE(nv)                                                                                                  \
    case nv:                                                                                                           \
        int8_##nv(t);                                                                                                  \
        break;

FOR_EACH_NV(TILE_INT8)

/* The tile as wide as it needs to be. */
static void tile_int8(struct tile *t) {
    switch (panel_vectors(t->columns)) { FOR_EACH_NV(INT8_CASE) }
}

static const struct kernel int8_kernel = {
    .rows = MR, .columns = NR, .inner = KC, .unit = 32, .bytes = 4, .direct = -1, .strips = 32 / MR, .pack_a = pack_a_int8,
    .pack_b_transposed = pack_b_int8, .tile = tile_int8,
};
