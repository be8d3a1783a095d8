/* The tile, and a product on one thread made of it.
 *
 * The tile is MR rows of A by nv vectors of B; A and B come as panels [K, MR] and [K, nv * VL]. It is plain C on
 * vectors: the accumulators stay in registers because every loop over them has constant bounds and is unrolled.
 */

static inline int imin(int a, int b) { return a < b ? a : b; }

/* Vectors that a panel of `columns` columns needs, at most NV. */
static inline int panel_vectors(int columns) { return imin((columns + VL - 1) / VL, NV); }

/* C [rows <= MR, columns <= nv * VL] (accumulate: +)= alpha * A panel . B panel. nv is a constant where inlined. */
static inline __attribute__((always_inline)) void tile(float *c, ptrdiff_t ldc, const float *a, const float *b,
                                                       int rows, int columns, int K, float alpha, int accumulate,
                                                       const int nv) {
    vec acc[MR][NV] = {0};
    for (int k = 0; k < K; k++, a += MR, b += nv * VL) {
        vec bv[NV];
        UNROLL for (int j = 0; j < nv; j++) bv[j] = vload(b + j * VL);
        UNROLL for (int i = 0; i < MR; i++) {
            UNROLL for (int j = 0; j < nv; j++) acc[i][j] += a[i] * bv[j];
        }
    }
    if (rows == MR && columns == nv * VL) {
        UNROLL for (int i = 0; i < MR; i++) {
            UNROLL for (int j = 0; j < nv; j++) {
                float *p = c + i * ldc + j * VL;
                vstore(p, accumulate ? vload(p) + alpha * acc[i][j] : alpha * acc[i][j]);
            }
        }
        return;
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) {
            float *p = c + i * ldc + j, x = alpha * acc[i][j / VL][j % VL];
            *p = accumulate ? *p + x : x;
        }
}

#define TILE(nv)                                                                                                       \
    static __attribute__((noinline)) void tile_##nv(float *c, ptrdiff_t ldc, const float *a, const float *b, int rows, \
                                                    int columns, int K, float alpha, int accumulate) {                 \
        tile(c, ldc, a, b, rows, columns, K, alpha, accumulate, nv);                                                   \
    }
TILE(1)
#if NV > 1
TILE(2)
#endif
#if NV > 2
TILE(3)
#endif
#if NV > 3
TILE(4)
#endif

/* The tile that is as wide as `columns` need. */
static inline void tile_any(float *c, ptrdiff_t ldc, const float *a, const float *b, int rows, int columns, int K,
                            float alpha, int accumulate) {
    switch (panel_vectors(columns)) {
#if NV > 3
    case 4: tile_4(c, ldc, a, b, rows, columns, K, alpha, accumulate); break;
#endif
#if NV > 2
    case 3: tile_3(c, ldc, a, b, rows, columns, K, alpha, accumulate); break;
#endif
#if NV > 1
    case 2: tile_2(c, ldc, a, b, rows, columns, K, alpha, accumulate); break;
#endif
    default: tile_1(c, ldc, a, b, rows, columns, K, alpha, accumulate);
    }
}

/* Floats of work space that gemm needs in `pack`, 64-byte aligned. */
static inline size_t gemm_pack_floats(int N, int K) {
    return (size_t)K * (size_t)(MR + (N + NR - 1) / NR * NR);
}

/* C [M, N] (accumulate: +)= alpha * A [M, K] . B, row i of C at c + i * ldc. A has strides, one of them 1: element
 * (i, k) is a[i * a_rs + k * a_cs]. B is [K, N], row k at b + k * ldb; or, b_transposed, [N, K], row n at b + n * ldb. */
static void gemm(float *c, ptrdiff_t ldc, const float *a, ptrdiff_t a_rs, ptrdiff_t a_cs, const float *b, ptrdiff_t ldb,
                 int b_transposed, int M, int N, int K, float alpha, int accumulate, float *pack) {
    float *a_panel = pack, *b_panels = pack + (ptrdiff_t)MR * K;
    ptrdiff_t b_rs = b_transposed ? ldb : 1, b_cs = b_transposed ? 1 : ldb;
    for (int n = 0; n < N; n += NR)
        pack_panel(b_panels + (ptrdiff_t)n * K, panel_vectors(N - n) * VL, b + n * b_rs, b_rs, b_cs, imin(N - n, NR),
                   K);
    for (int m = 0; m < M; m += MR) {
        pack_panel(a_panel, MR, a + m * a_rs, a_rs, a_cs, imin(M - m, MR), K);
        for (int n = 0; n < N; n += NR)
            tile_any(c + m * ldc + n, ldc, a_panel, b_panels + (ptrdiff_t)n * K, imin(M - m, MR), imin(N - n, NR),
                     K, alpha, accumulate);
    }
}
