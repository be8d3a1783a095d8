/* Tiles of bf16.h that dot products of pairs compute, in vectors of AVX-512. */

#define BF16_ROWS 12
#define BF16_TILES_PER_TASK 3
#define BF16_K_PART 0

/* Nothing is to be set up. */
static void bf16_begin(void *before) { (void)before; }
static void bf16_end(const void *before) { (void)before; }

static inline vec dot_pairs(vec sum, float a, __m512i b) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_castps_si512(_mm512_set1_ps(a)), (__m512bh)b);
}

/* rows, at least t's, and nv are constants where this is inlined. */
static inline __attribute__((always_inline)) void bf16_sums(const struct tile *t, const int rows, const int nv) {
    vec acc[BF16_ROWS][2] = {0};
    for (int s = 0; s < SEGMENTS; s++) {
        const float *run = t->s[s].a.p;
        const float *b = t->s[s].b.p;
        const ptrdiff_t a_rs = t->s[s].a.rs / 2;
        const ptrdiff_t a_ks = t->s[s].a.ks / 2;
        for (int k = t->s[s].K; k > 0; k -= BF16_RUN, run += a_ks) /* only LoRA's part may end within a run */
            for (const float *a = run; a < run + min_int(k + 1, BF16_RUN) / 2; a++, b += nv * VL) {
                __m512i bv[2];
                UNROLL for (int j = 0; j < nv; j++)
                    bv[j] = _mm512_loadu_si512(b + j * VL);
                UNROLL for (int i = 0; i < rows; i++) {
                    UNROLL for (int j = 0; j < nv; j++)
                        acc[i][j] = dot_pairs(acc[i][j], a[i * a_rs], bv[j]);
                }
            }
    }
    tile_store(t, acc[0], rows, 2, nv);
}

/* The last rows of a batch are a third of a tile, two thirds, or all. */
static void tile_bf16(struct tile *t) {
    if (t->columns <= VL)
        bf16_sums(t, BF16_ROWS, 1);
    else if (t->rows <= BF16_ROWS / 3)
        bf16_sums(t, BF16_ROWS / 3, 2);
    else if (t->rows <= 2 * BF16_ROWS / 3)
        bf16_sums(t, 2 * BF16_ROWS / 3, 2);
    else
        bf16_sums(t, BF16_ROWS, 2);
}

enum { PART = 8 }; /* rows whose sums are registers */

/* The pairs of a lie rs from row to row and ks along a row, as the products' A are strips or their transposes. */
static inline __attribute__((always_inline)) void part_product(float *c, ptrdiff_t ldc, const float *a,
                                                               const ptrdiff_t rs, const ptrdiff_t ks, const float *b,
                                                               ptrdiff_t ldb, int K, int accumulate) {
    vec acc[PART][2];
    float *row = c;
    UNROLL for (int i = 0; i < PART; i++, row += ldc) {
        acc[i][0] = accumulate ? vload(row) : splat(0.0f);
        acc[i][1] = accumulate ? vload(row + VL) : splat(0.0f);
    }
    for (int k = 0; k < K; k += 2, a += ks, b += ldb) {
        __m512i b0 = _mm512_loadu_si512(b);
        __m512i b1 = _mm512_loadu_si512(b + VL);
        UNROLL for (int i = 0; i < PART; i++) {
            acc[i][0] = dot_pairs(acc[i][0], a[i * rs], b0);
            acc[i][1] = dot_pairs(acc[i][1], a[i * rs], b1);
        }
    }
    row = c;
    UNROLL for (int i = 0; i < PART; i++, row += ldc) {
        vstore(row, acc[i][0]);
        vstore(row + VL, acc[i][1]);
    }
}

static inline __attribute__((always_inline)) void parts_product(float *c, ptrdiff_t ldc, const float *a,
                                                                const ptrdiff_t rs, const ptrdiff_t ks, const float *b,
                                                                ptrdiff_t ldb, int rows, int N, int K, int accumulate) {
    for (int n = 0; n < N; n += 2 * VL, b += 2 * VL) {
        int i = 0;
        for (; i + PART <= rows; i += PART)
            part_product(c + i * ldc + n, ldc, a + i * rs, rs, ks, b, ldb, K, accumulate);
        if (i == rows)
            continue;
        float part[PART * 2 * VL];
        copy_rows(part, 2 * VL, c + i * ldc + n, ldc, rows - i, 2 * VL);
        part_product(part, 2 * VL, a + i * rs, rs, ks, b, ldb, K, accumulate);
        copy_rows(c + i * ldc + n, ldc, part, 2 * VL, rows - i, 2 * VL);
    }
}

static void strip_product(float *c, ptrdiff_t ldc, const bf16 *a, ptrdiff_t lda, const float *b, ptrdiff_t ldb,
                          int rows, int N, int K, int accumulate) {
    parts_product(c, ldc, (const float *)a, lda / 2, 1, b, ldb, rows, N, K, accumulate);
}

static void strip_product_down(float *c, ptrdiff_t ldc, const float *a, ptrdiff_t lda, const float *b, ptrdiff_t ldb,
                               int rows, int N, int K) {
    parts_product(c, ldc, a, 1, lda, b, ldb, rows, N, K, 1);
}

static double bf16_peak(int64_t n) {
    vec sum[PEAK_SUMS] = {0};
    vec b = splat(1.0f);
    float a = 1;
    UNROLL for (int j = 0; j < PEAK_SUMS; j++)
        OPAQUE(sum[j]);
    for (int64_t i = 0; i < n; i++) {
        OPAQUE(b);
        UNROLL for (int j = 0; j < PEAK_SUMS; j++)
            sum[j] = dot_pairs(sum[j], a, _mm512_castps_si512((__m512)b));
    }
    UNROLL for (int j = 0; j < PEAK_SUMS; j++)
        OPAQUE(sum[j]);
    return 2.0 * 2 * VL * PEAK_SUMS * (double)n;
}
