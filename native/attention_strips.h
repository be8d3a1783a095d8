/* What attention in bf16 is made of: packing, and scores. A product (strip_product in bf16.h) is a strip: up to STRIP
 * rows of A, as they lie, by B in pairs. Exponents are to base 2: p = 2^(s * exponent - base), base being what stands
 * for the maximum or for lse. */

enum { STRIP = 32, HEADS = 4 }; /* more heads at a time would save no packing to speak of */
_Static_assert(BQ % STRIP == 0 && VL == 16, "whole strips; whole vectors");

static const float LOG2_E = 1.44269504f;
static const float LN_2 = 0.693147181f;

static inline int whole_strips(int n) { return ceil_div(n, STRIP) * STRIP; }

/* ---- packing ----------------------------------------------------------------------------------------------- */

static inline void store_rounded(bf16 *out, vec low, vec high) {
    _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
}

/* out [whole strips of rows, ld] = `rows` rows of C elements, the first at element `at` of x, the next `stride` on. */
static void round_rows(bf16 *out, int ld, et_array x, ptrdiff_t at, ptrdiff_t stride, int rows, int C) {
    for (int i = 0; i < rows; i++, at += stride, out += ld)
        for (int j = 0; j < ld; j += 32) {
            int n = C - j;
            __mmask32 mask = n < 32 ? (1u << n) - 1 : ~0u;
            if (x.type == ET_BF16)
                _mm512_storeu_si512(out + j, _mm512_maskz_loadu_epi16(mask, (const bf16 *)x.data + at + j));
            else {
                const float *p = (const float *)x.data + at + j;
                store_rounded(out + j, (vec)_mm512_maskz_loadu_ps((__mmask16)mask, p),
                              (vec)_mm512_maskz_loadu_ps((__mmask16)(mask >> 16), p + 16));
            }
        }
    memset(out, 0, (size_t)((whole_strips(rows) - rows) * ld) * sizeof *out);
}

/* Rows of bf16, `stride` apart. */
struct tokens {
    const bf16 *p;
    ptrdiff_t stride;
};

/* The 16 bytes at p, and those at three more rows. */
static inline __m512 four_rows(const bf16 *p, ptrdiff_t stride) {
    __m512i x = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)p));
    x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)(p + stride)), 1);
    x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)(p + 2 * stride)), 2);
    return (__m512)_mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)(p + 3 * stride)), 3);
}

/* B of products with the transpose of n rows of ld: [ld / 2, block] pairs along the rows. Pairs are dwords: four of
 * sixteen rows are transposed at a time. */
static void pack_across(float *pairs, struct tokens rows, int n, int ld, int block) {
    for (int i = 0; i < n; i += 16)
        for (int j = 0; j < ld; j += 8) {
            const bf16 *p = rows.p + i * rows.stride + j;
            float *out = pairs + j / 2 * block + i;
            __m512 a = four_rows(p, 4 * rows.stride);
            __m512 b = four_rows(p + rows.stride, 4 * rows.stride);
            __m512 c = four_rows(p + 2 * rows.stride, 4 * rows.stride);
            __m512 d = four_rows(p + 3 * rows.stride, 4 * rows.stride);
            __m512 ab0 = _mm512_unpacklo_ps(a, b);
            __m512 ab1 = _mm512_unpackhi_ps(a, b);
            __m512 cd0 = _mm512_unpacklo_ps(c, d);
            __m512 cd1 = _mm512_unpackhi_ps(c, d);
            vstore(out, (vec)_mm512_shuffle_ps(ab0, cd0, 0x44));
            vstore(out + block, (vec)_mm512_shuffle_ps(ab0, cd0, 0xee));
            vstore(out + 2 * block, (vec)_mm512_shuffle_ps(ab1, cd1, 0x44));
            vstore(out + 3 * block, (vec)_mm512_shuffle_ps(ab1, cd1, 0xee));
        }
}

/* B of products with n rows of ld as they are: [n / 2, ld] pairs of neighbours. */
static void pack_down(float *pairs, struct tokens rows, int n, int ld) {
    for (int i = 0; i < n; i += 2)
        for (int j = 0; j < ld; j += VL, pairs += VL) {
            const bf16 *p = rows.p + i * rows.stride + j;
            __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
            __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p + rows.stride)));
            _mm512_storeu_si512(pairs, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
}

/* ---- scores ------------------------------------------------------------------------------------------------ */

/* A strip of scores on its way: `nv` vectors a row. */
struct strip {
    const bf16 *a[2];     /* rows [rows, ld] whose products are the scores, and the gradient of the probabilities */
    float *s, *dp;        /* [STRIP, BK] these products */
    bf16 *p, *ds;         /* [STRIP, BK] probabilities and the gradient of the scores, rounded */
    float *base, *sums;   /* of a query, and what its probabilities sum to, a vector */
    const float *delta;
    float *out[2];        /* [rows, ld] sums of products with ds and with p; forward has p alone */
    int ld, rows, nv;
    int first;            /* of the packed columns, which of them the strip begins at */
    int keys;             /* how many of those in the vectors, or rows, are keys */
    int distance;         /* from the first key to the first query, and `ahead`; it sees those of 0 to span - 1 */
    uint32_t span;
    float exponent;
};

/* 2^x within 3e-6, far below what rounding to bf16 does: a minimax polynomial on [0, 1). */
static inline vec exp2_vec(vec x) {
    vec f = (vec)_mm512_reduce_ps((__m512)x, 9); /* x - floor(x) */
    vec p = 1.353417e-2f * f + 5.201146e-2f;
    p = p * f + 2.4144276e-1f;
    p = p * f + 6.9300383e-1f;
    p = p * f + 1.00000259f;
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)x);
}

/* x where the distances, which begin at d and step by 1 or -1, are seen; elsewhere -inf. */
static inline vec only_seen(vec x, int d, int step, uint32_t span) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i first = _mm512_set1_epi32(d);
    __m512i distance = step > 0 ? _mm512_add_epi32(first, lanes) : _mm512_sub_epi32(first, lanes);
    __mmask16 seen = _mm512_cmplt_epu32_mask(distance, _mm512_set1_epi32((int)span));
    return (vec)_mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), seen, (__m512)x);
}

/* x in the first n lanes, elsewhere -inf. */
static inline vec among_keys(vec x, int n) {
    __mmask16 are = n >= VL ? 0xffff : n > 0 ? (__mmask16)((1u << n) - 1) : 0;
    return (vec)_mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), are, (__m512)x);
}

/* A new base for query i, whose scores have outgrown the old one; what was summed under that is brought under this. */
static void raise_base(const struct strip *t, int i, vec highest) {
    float old = t->base[i];
    float *sum = t->sums + i * VL;
    float *out = t->out[1] + i * t->ld;
    t->base[i] = _mm512_reduce_max_ps((__m512)highest);
    if (old == -INFINITY)
        return;
    vec factor = exp2_vec(splat(old - t->base[i]));
    vstore(sum, vload(sum) * factor);
    for (int j = 0; j < t->ld; j += VL)
        vstore(out + j, vload(out + j) * factor);
}

/* One step of the online softmax, rows being queries. The base is a maximum that later scores may pass by a factor of
 * 2^16: floats lose nothing by it, and sums are rarely brought under a new one. */
static inline __attribute__((always_inline)) void softmax_rows(const struct strip *strip, const int nv,
                                                               const int masked) {
    const struct strip copy = *strip;
    const struct strip *t = &copy; /* so that no store can change it */
    for (int i = 0; i < t->rows; i++) {
        vec x[BK / VL];
        vec highest = splat(-INFINITY);
        vec sum = vload(t->sums + i * VL);
        UNROLL for (int j = 0; j < nv; j++) {
            x[j] = vload(t->s + i * BK + j * VL) * t->exponent;
            if (masked)
                x[j] = only_seen(among_keys(x[j], t->keys - j * VL), t->distance + i - j * VL, -1, t->span);
            highest = (vec)_mm512_max_ps((__m512)x[j], (__m512)highest); /* the second where one is NaN */
        }
        if (_mm512_cmp_ps_mask((__m512)highest, (__m512)splat(t->base[i] + 16.0f), _CMP_GT_OQ)) {
            raise_base(strip, i, highest);
            sum = vload(t->sums + i * VL);
        }
        float base = t->base[i] == -INFINITY ? 0.0f : t->base[i]; /* nothing seen yet: -inf - 0 stays -inf */
        UNROLL for (int j = 0; j < nv; j += 2) {
            vec low = exp2_vec(x[j] - base);
            vec high = exp2_vec(x[j + 1] - base);
            sum += low + high;
            store_rounded(t->p + i * BK + j * VL, low, high);
        }
        vstore(t->sums + i * VL, sum);
    }
}

/* p = softmax(scores), ds = p * (dp - delta), the gradient of the scores. Rows are queries, and p is not stored; or
 * keys, and base and delta lie along them. */
static inline __attribute__((always_inline)) void gradient_rows(const struct strip *strip, const int queries,
                                                                const int nv, const int masked) {
    const struct strip copy = *strip;
    const struct strip *t = &copy; /* so that no store can change it */
    for (int i = 0; i < t->rows; i++) {
        UNROLL for (int j = 0; j < nv; j += 2) {
            vec p[2], ds[2];
            UNROLL for (int l = 0; l < 2; l++) {
                int at = (j + l) * VL;
                int row = queries ? i - at : at - i;
                vec base = queries ? splat(t->base[i]) : vload(t->base + at);
                vec delta = queries ? splat(t->delta[i]) : vload(t->delta + at);
                vec x = vload(t->s + i * BK + at) * t->exponent - base;
                if (masked)
                    x = only_seen(queries ? among_keys(x, t->keys - at) : x, t->distance + row, queries ? -1 : 1,
                                  t->span);
                p[l] = exp2_vec(x);
                ds[l] = p[l] * (vload(t->dp + i * BK + at) - delta);
            }
            if (!queries)
                store_rounded(t->p + i * BK + j * VL, p[0], p[1]);
            store_rounded(t->ds + i * BK + j * VL, ds[0], ds[1]);
        }
    }
}

/* A distance is 0 or more, unless it is seen by nobody. */
static inline int partly_seen(const struct strip *t, int queries, int keys) {
    return t->distance < keys - 1 || t->keys < keys || (int64_t)t->distance + queries > (int64_t)t->span;
}

_Static_assert(STRIP == 2 * VL && BK == 2 * STRIP, "rows have two or four vectors");
#define WITH_CONSTANTS(rows, masked, ...)                                                                              \
    do {                                                                                                               \
        if (t->nv > 2)                                                                                                 \
            masked ? rows(__VA_ARGS__, 4, 1) : rows(__VA_ARGS__, 4, 0);                                                \
        else                                                                                                           \
            masked ? rows(__VA_ARGS__, 2, 1) : rows(__VA_ARGS__, 2, 0);                                                \
    } while (0)

static void softmax_strip(const struct strip *t) {
    WITH_CONSTANTS(softmax_rows, partly_seen(t, t->rows, t->nv * VL), t);
}

static void gradient_of_queries(const struct strip *t) {
    WITH_CONSTANTS(gradient_rows, partly_seen(t, t->rows, t->nv * VL), t, 1);
}

static void gradient_of_keys(const struct strip *t) {
    WITH_CONSTANTS(gradient_rows, partly_seen(t, t->nv * VL, t->rows), t, 0);
}
