/* What the scan and the delta rule in bf16 share: products of strips (attention_strips.h) of whole pieces. */

_Static_assert(BF16_RUN == STRIP && ET_PIECE == 2 * STRIP, "rows are whole runs");

/* VL values of bf16 */
static inline vec load_half(const bf16 *x) { return bf16_to_vec(*(const half_vec_unaligned *)x); }

/* C [M, N] (accumulate: +)= A [M, K] . B [K, N], rows of C and A ldc and lda apart; M, N and K are whole strips. */
static void strips_product(float *c, ptrdiff_t ldc, const bf16 *a, ptrdiff_t lda, const float *b, int M, int N, int K,
                           int accumulate) {
    for (int m = 0; m < M; m += STRIP)
        strip_product(c + m * ldc, ldc, a + m * lda, lda, b, N, STRIP, N, K, accumulate);
}

/* out [ld, ET_PIECE] = n rows of ld, transposed by way of their pairs. */
static void transpose_rows(bf16 *out, float *pairs, struct tokens x, int n, int ld) {
    pack_down(pairs, x, n, ld);
    pack_transposed((float *)(void *)out, ET_PIECE / 2, pairs, ld, n / 2, ld);
}
