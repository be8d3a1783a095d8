/* Packing: the layout that the tile reads. A panel is [K, width]: for each k, `width` values side by side. */

/* Vectors of four and of eight floats, whatever the ISA: the units of transposition. */
typedef float vec4 __attribute__((vector_size(16)));
typedef float vec4_unaligned __attribute__((vector_size(16), aligned(4), may_alias));
typedef float vec8 __attribute__((vector_size(32)));
typedef float vec8_unaligned __attribute__((vector_size(32), aligned(4), may_alias));

/* dst (rows of ldd) = the transpose of the 4 x 4 block at src (rows of lds). */
static inline void transpose_4x4(float *dst, ptrdiff_t ldd, const float *src, ptrdiff_t lds) {
    vec4 a = *(const vec4_unaligned *)src;
    vec4 b = *(const vec4_unaligned *)(src + lds);
    vec4 c = *(const vec4_unaligned *)(src + 2 * lds);
    vec4 d = *(const vec4_unaligned *)(src + 3 * lds);
    vec4 ac0 = SHUFFLE(a, c, 0, 4, 1, 5);
    vec4 ac1 = SHUFFLE(a, c, 2, 6, 3, 7);
    vec4 bd0 = SHUFFLE(b, d, 0, 4, 1, 5);
    vec4 bd1 = SHUFFLE(b, d, 2, 6, 3, 7);
    *(vec4_unaligned *)dst = SHUFFLE(ac0, bd0, 0, 4, 1, 5);
    *(vec4_unaligned *)(dst + ldd) = SHUFFLE(ac0, bd0, 2, 6, 3, 7);
    *(vec4_unaligned *)(dst + 2 * ldd) = SHUFFLE(ac1, bd1, 0, 4, 1, 5);
    *(vec4_unaligned *)(dst + 3 * ldd) = SHUFFLE(ac1, bd1, 2, 6, 3, 7);
}

/* The same for 8 x 8, in steps that x86 does within 128-bit lanes. */
static inline void transpose_8x8(float *dst, ptrdiff_t ldd, const float *src, ptrdiff_t lds) {
    vec8 r[8], pairs[8], quads[8];
    UNROLL for (int i = 0; i < 8; i++)
        r[i] = *(const vec8_unaligned *)(src + i * lds);
    UNROLL for (int i = 0; i < 8; i += 2) {
        pairs[i] = SHUFFLE(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        pairs[i + 1] = SHUFFLE(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    UNROLL for (int i = 0; i < 8; i += 4) {
        quads[i] = SHUFFLE(pairs[i], pairs[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
        quads[i + 1] = SHUFFLE(pairs[i], pairs[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        quads[i + 2] = SHUFFLE(pairs[i + 1], pairs[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
        quads[i + 3] = SHUFFLE(pairs[i + 1], pairs[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        *(vec8_unaligned *)(dst + i * ldd) = SHUFFLE(quads[i], quads[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        *(vec8_unaligned *)(dst + (i + 4) * ldd) = SHUFFLE(quads[i], quads[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

/* dst[k * width + r] = src[r * ld + k] for r < rows, k < K: along r first, so that whole lines of dst are written. */
static inline void pack_transposed(float *dst, int width, const float *src, ptrdiff_t ld, int rows, int K) {
    int k = 0;
    int r = 0;
    for (; k + 8 <= K; k += 8) {
        float *d = dst + (ptrdiff_t)k * width;
        const float *s = src + k;
        for (r = 0; VL >= 8 && r + 8 <= rows; r += 8)
            transpose_8x8(d + r, width, s + r * ld, ld);
        for (; r + 4 <= rows; r += 4) {
            transpose_4x4(d + r, width, s + r * ld, ld);
            transpose_4x4(d + 4 * width + r, width, s + r * ld + 4, ld);
        }
    }
    /* what is left: the last rows of these columns, and the last columns of all rows */
    for (int i = 0; i < rows; i++)
        for (int j = i < r ? k : 0; j < K; j++)
            dst[(ptrdiff_t)j * width + i] = src[i * ld + j];
}

/* dst [n] = src [n], for the few values of a row, where memcpy costs more than it copies. */
static inline void copy_row(float *dst, const float *src, int n) {
    int i = 0;
    for (; i + VL <= n; i += VL)
        vstore(dst + i, vload(src + i));
    for (; i + 4 <= n; i += 4)
        *(vec4_unaligned *)(dst + i) = *(const vec4_unaligned *)(src + i);
    for (; i < n; i++)
        dst[i] = src[i];
}

/* dst[k * width + r] = src[k * ld + r] for r < rows, k < K. */
static inline void pack_straight(float *dst, int width, const float *src, ptrdiff_t ld, int rows, int K) {
    for (int k = 0; k < K; k++)
        copy_row(dst + (ptrdiff_t)k * width, src + k * ld, rows);
}

/* dst[k * width + r] = 0 for rows <= r < width: padding that the tile multiplies and nobody stores. */
static inline void pack_zeros(float *dst, int width, int rows, int K) {
    for (int r = rows; r < width; r++)
        for (int k = 0; k < K; k++)
            dst[(ptrdiff_t)k * width + r] = 0;
}

/* The panel [K, width] of a matrix whose element (r, k) is src[r * rs + k * cs], one stride being 1. */
static inline void pack_panel(float *dst, int width, const float *src, ptrdiff_t rs, ptrdiff_t cs, int rows, int K) {
    if (cs == 1)
        pack_transposed(dst, width, src, rs, rows, K);
    else
        pack_straight(dst, width, src, cs, rows, K);
    pack_zeros(dst, width, rows, K);
}
