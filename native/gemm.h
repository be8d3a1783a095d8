/* The tile, and a product on one thread made of it.
 *
 * The tile is MR rows of A by nv vectors of B. It is plain C on vectors: the accumulators stay in registers because
 * every loop over them has constant bounds and is unrolled. A and B come as packed panels, [K, MR] and [K, nv * VL], or
 * straight from a float matrix when packing would not pay.
 */

/* Vectors that a panel of `columns` columns needs, at most NV. */
static inline int panel_vectors(int columns) { return min_int((columns + VL - 1) / VL, NV); }

/* A side of a product: element (r, k) is p[r * rs + k * ks]. A tile of floats may find B in bf16. */
struct side {
    const float *p;
    ptrdiff_t rs, ks;
    int half;
};

#define SEGMENTS 2

/* A tile: C [rows <= MR, columns <= NR] (accumulate: +)= alpha * (the sum of A . B over K of all segments); element
 * (i, j) of C is c[i * c_rs + j * c_cs], and b.rs is 1. C is float where c_cs is not 1. */
struct tile {
    et_array c;
    ptrdiff_t c_rs, c_cs;
    struct {
        struct side a, b;
        int K;
    } s[SEGMENTS];
    int rows, columns, accumulate;
    float alpha;
    float *sums;          /* of a tile that is computed in parts: whole vectors, kept from one to the next; */
    int resumed, to_come; /* whether there was one before, and will be another */
};

#define MOST_ROWS 12 /* of any tile */
_Static_assert(MR <= MOST_ROWS, "rows of a tile");

/* The MR values of A for one k: ARM multiplies by a lane of a vector, others broadcast from memory. */
#ifdef __aarch64__
#define LOAD_A(a)                                                                                                      \
    vec4 a_quads[MR / 4] = {0};                                                                                        \
    UNROLL for (int q = 0; q < MR / 4; q++)                                                                            \
        if (packed)                                                                                                    \
    a_quads[q] = *(const vec4_unaligned *)((a) + 4 * q)
#define PACKED_A(a, i) a_quads[(i) / 4][(i) % 4]
#else
#define LOAD_A(a)
#define PACKED_A(a, i) (a)[i]
#endif
_Static_assert(MR % 4 == 0, "rows of a tile come in fours");

/* C's next n <= VL values from (i, j) on, where columns lie side by side. */
static inline void store_sums(const struct tile *t, int i, int j, vec x, int n) {
    x *= t->alpha;
    int64_t at = i * t->c_rs + j;
    store_part(t->c, at, t->accumulate ? load_part(t->c, at, n) + x : x, n);
}

/* Row i of a tile whose sums, `columns` of them or more up to whole vectors, are in memory. */
static inline void store_row(const struct tile *t, int i, const float *sums) {
    if (t->c_cs == 1) {
        for (int j = 0; j < t->columns; j += VL)
            store_sums(t, i, j, vload(sums + j), min_int(t->columns - j, VL));
        return;
    }
    float *c = (float *)t->c.data + i * t->c_rs;
    for (int j = 0; j < t->columns; j++)
        c[j * t->c_cs] = (t->accumulate ? c[j * t->c_cs] : 0) + t->alpha * sums[j];
}

/* Stores `nv` vectors of each of mr rows of acc [mr, stride], all constants where this is inlined. */
static inline __attribute__((always_inline)) void tile_store(const struct tile *t, vec *acc, const int mr,
                                                             const int stride, const int nv) {
    if (t->rows == mr && t->columns == nv * VL && t->c_cs == 1 && t->c.type == ET_F32) {
        const float alpha = t->alpha;
        float *c = t->c.data;
        UNROLL for (int i = 0; i < mr; i++, c += t->c_rs) {
            UNROLL for (int j = 0; j < nv; j++) {
                vec x = alpha * acc[i * stride + j];
                vstore(c + j * VL, t->accumulate ? vload(c + j * VL) + x : x);
            }
        }
        return;
    }
    vec sums[MOST_ROWS][NV]; /* so that acc is never indexed by a variable and can stay in registers */
    UNROLL for (int i = 0; i < mr; i++) {
        UNROLL for (int j = 0; j < nv; j++)
            sums[i][j] = acc[i * stride + j];
    }
    for (int i = 0; i < t->rows; i++)
        store_row(t, i, (const float *)sums[i]);
}

/* How a tile finds its sides: both packed, or where they lie, B as floats or as bf16. */
enum { SIDES_PACKED, SIDES_DIRECT, SIDES_HALF };

static inline vec load_b(const float *b, ptrdiff_t i, const int how) {
    return how == SIDES_HALF ? bf16_to_vec(*(const half_vec_unaligned *)((const uint16_t *)(const void *)b + i))
                             : vload(b + i);
}

#define HALF_AHEAD 32 /* rows that are fetched before they are wanted */

/* Asks for a panel's part of a row that lies far from the one before, so that no CPU foresees it, and for the next
 * panel's part of this row. */
static inline void fetch_half(const float *b, ptrdiff_t k, ptrdiff_t b_ks, ptrdiff_t columns) {
    const uint16_t *row = (const uint16_t *)(const void *)b + k * b_ks;
    __builtin_prefetch(row + HALF_AHEAD * b_ks, 0, 3);
    __builtin_prefetch(row + HALF_AHEAD * b_ks + columns - 1, 0, 3);
    __builtin_prefetch(row + columns + 31, 0, 2);
}

/* nv and how are constants where this is inlined. */
static inline __attribute__((always_inline)) void tile(const struct tile *t, const int nv, const int how) {
    const int packed = how == SIDES_PACKED;
    vec acc[MR][NV] = {0};
    for (int s = 0; s < SEGMENTS; s++) {
        const float *a = t->s[s].a.p;
        const float *b = t->s[s].b.p;
        const ptrdiff_t a_rs = t->s[s].a.rs;
        const ptrdiff_t a_ks = packed ? MR : t->s[s].a.ks;
        const ptrdiff_t b_ks = packed ? nv * VL : t->s[s].b.ks;
        for (int k = 0; k < t->s[s].K; k++, a += a_ks) {
            vec bv[NV];
            LOAD_A(a);
            if (how == SIDES_HALF)
                fetch_half(b, k, b_ks, nv * VL);
            UNROLL for (int j = 0; j < nv; j++)
                bv[j] = load_b(b, k * b_ks + j * VL, how);
            UNROLL for (int i = 0; i < MR; i++) {
                UNROLL for (int j = 0; j < nv; j++)
                    acc[i][j] += (packed ? PACKED_A(a, i) : a[i * a_rs]) * bv[j];
            }
        }
    }
    tile_store(t, acc[0], MR, NV, nv);
}

/* X(1) .. X(NV) */
#if NV == 1
#define FOR_EACH_NV(X) X(1)
#elif NV == 2
#define FOR_EACH_NV(X) X(1) X(2)
#elif NV == 3
#define FOR_EACH_NV(X) X(1) X(2) X(3)
#else
#define FOR_EACH_NV(X) X(1) X(2) X(3) X(4)
#endif

#define TILE(nv)                                                                                                       \
    static __attribute__((noinline)) void tile_##nv(const struct tile *t) { tile(t, nv, SIDES_PACKED); }               \
    static __attribute__((noinline)) void direct_##nv(const struct tile *t) { tile(t, nv, SIDES_DIRECT); }             \
    static __attribute__((noinline)) void half_##nv(const struct tile *t) { tile(t, nv, SIDES_HALF); }
#define TILE_CASE(nv)                                                                                                  \
    case nv:                                                                                                           \
        if (packed)                                                                                                    \
            tile_##nv(t);                                                                                              \
        else if (t->s[0].b.half)                                                                                       \
            half_##nv(t);                                                                                              \
        else                                                                                                           \
            direct_##nv(t);                                                                                            \
        break;

FOR_EACH_NV(TILE)

/* The tile as wide as it needs to be. */
static void tile_any(struct tile *t) {
    int nv = panel_vectors(t->columns);
    int packed = 1;
    for (int s = 0; s < SEGMENTS; s++)
        packed &= !t->s[s].K || (t->s[s].a.rs == 1 && t->s[s].a.ks == MR && t->s[s].b.ks == nv * VL && !t->s[s].b.half);
    switch (nv) { FOR_EACH_NV(TILE_CASE) }
}

/* The panel of `rows` rows and K columns of a float matrix, as pack_panel makes it in `panel`. */
static inline struct side packed_side(float *panel, int width, struct side src, int rows, int K) {
    pack_panel(panel, width, src.p, src.rs, src.ks, rows, K);
    return (struct side){panel, 1, width, 0};
}

/* Floats of work space that gemm needs in `pack`, 64-byte aligned. */
static inline size_t gemm_pack_floats(int N, int K) { return (size_t)K * (size_t)(MR + (N + NR - 1) / NR * NR); }

/* C [M, N] (accumulate: +)= alpha * A [M, K] . B, row i of C at c + i * ldc. A has strides, one of them 1: element
 * (i, k) is a[i * a_rs + k * a_cs]. B is [K, N], row k at b + k * ldb; or, b_transposed, [N, K], row n at
 * b + n * ldb. */
static void gemm(float *c, ptrdiff_t ldc, const float *a, ptrdiff_t a_rs, ptrdiff_t a_cs, const float *b, ptrdiff_t ldb,
                 int b_transposed, int M, int N, int K, float alpha, int accumulate, float *pack) {
    float *a_panel = pack;
    float *b_panels = pack + (ptrdiff_t)MR * K;
    struct side b_side = {b, b_transposed ? ldb : 1, b_transposed ? 1 : ldb, 0};
    for (int n = 0; n < N; n += NR, b_side.p += NR * b_side.rs)
        packed_side(b_panels + (ptrdiff_t)n * K, panel_vectors(N - n) * VL, b_side, min_int(N - n, NR), K);
    struct tile t = {.c_rs = ldc, .c_cs = 1, .s[0].K = K, .accumulate = accumulate, .alpha = alpha};
    for (int m = 0; m < M; m += MR) {
        t.rows = min_int(M - m, MR);
        t.s[0].a = packed_side(a_panel, MR, (struct side){a + m * a_rs, a_rs, a_cs, 0}, t.rows, K);
        for (int n = 0; n < N; n += NR) {
            t.c = (et_array){c + m * ldc + n, ET_F32};
            t.columns = min_int(N - n, NR);
            t.s[0].b = (struct side){b_panels + (ptrdiff_t)n * K, 1, panel_vectors(t.columns) * VL, 0};
            tile_any(&t);
        }
    }
}
