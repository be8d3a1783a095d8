/* Loops that do nothing but multiply and add in registers: what a core could do at most, beside which products are
 * judged. Each returns its operations, two for a multiplication and its sum. bf16's are beside its tiles. */

static double float_peak(int64_t n) {
    vec sum[PEAK_SUMS] = {0};
    vec a = splat(1.0f);
    vec b = splat(0.5f);
    UNROLL for (int j = 0; j < PEAK_SUMS; j++)
        OPAQUE(sum[j]);
    for (int64_t i = 0; i < n; i++) {
        OPAQUE(a);
        UNROLL for (int j = 0; j < PEAK_SUMS; j++)
            sum[j] += a * b;
    }
    UNROLL for (int j = 0; j < PEAK_SUMS; j++)
        OPAQUE(sum[j]);
    return 2.0 * VL * PEAK_SUMS * (double)n;
}

#ifdef ET_DOT
static double int8_peak(int64_t n) {
    ivec sum[INT8_GROUP][INT8_VECTORS] = {0};
    int8_t a[INT8_RUN * INT8_ROWS] = {1, 2, 3};
    int8_t b[INT8_STEP * INT8_COLUMNS] = {1, 2, 3};
    UNROLL for (int r = 0; r < INT8_GROUP; r++) {
        UNROLL for (int j = 0; j < INT8_VECTORS; j++)
            OPAQUE(sum[r][j]);
    }
    for (int64_t i = 0; i < n; i++) {
        __asm__ volatile("" ::"r"(a), "r"(b) : "memory"); /* operands come from memory, as in the tile */
        dot_step(sum, a, b, INT8_VECTORS);
    }
    UNROLL for (int r = 0; r < INT8_GROUP; r++) {
        UNROLL for (int j = 0; j < INT8_VECTORS; j++)
            OPAQUE(sum[r][j]);
    }
    return 2.0 * INT8_STEP * INT8_GROUP * INT8_COLUMNS * (double)n;
}
#endif

static double product_peak(enum et_precision precision, int backward, int64_t n) {
    const struct kernel *kernel = product_kernel(precision, backward ? BACKWARD : FORWARD, ET_Q8_0, 32);
#ifdef ET_BF16_PRODUCTS
    if (kernel == &bf16_kernel)
        return bf16_peak(n);
#endif
#ifdef ET_DOT
    if (kernel->packing.is_int8)
        return int8_peak(n);
#endif
    return kernel == &float_kernel ? float_peak(n) : 0;
}
