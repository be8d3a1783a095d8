/* What attention in bf16 is made of: packing, and scores. A product (strip_product in bf16.h) is a strip: up to STRIP
 * rows of A, as they lie, by B in pairs. Exponents are to base 2: p = 2^(s * exponent - base), base being what stands
 * for the maximum or for lse. */

enum { STRIP = 32, HEADS = 4 }; /* more heads at a time would save no packing to speak of */
_Static_assert(BQ % STRIP == 0 && VL == 16, "whole strips; whole vectors");

static const float LOG2_E = 1.44269504f;
static const float LN_2 = 0.693147181f;
static const float NO_BASE = -1e30f; /* of a query that has seen nothing yet: 2^(-inf + 1e30) is 0 */

static inline int whole_strips(int n) { return ceil_div(n, STRIP) * STRIP; }

/* ---- packing ----------------------------------------------------------------------------------------------- */

static inline void store_rounded(bf16 *out, vec low, vec high) {
    _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
}

/* out [32] = the values of two rows in turn. */
static inline void store_pairs(float *out, __m512i even, __m512i odd) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i low = _mm512_or_si512(lanes, _mm512_slli_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(32)), 16));
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    _mm512_storeu_si512(out, _mm512_permutex2var_epi16(even, low, odd));
    _mm512_storeu_si512(out + VL, _mm512_permutex2var_epi16(even, high, odd));
}

/* Elements i .. i + n - 1 of x, at most 32, rounded, and zeros. */
static inline __m512i rounded_run(et_array x, ptrdiff_t i, int n) {
    __mmask32 mask = n < 32 ? (1u << n) - 1 : ~0u;
    if (x.type == ET_BF16)
        return _mm512_maskz_loadu_epi16(mask, (const bf16 *)x.data + i);
    const float *p = (const float *)x.data + i;
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps((__mmask16)(mask >> 16), p + 16),
                                        _mm512_maskz_loadu_ps((__mmask16)mask, p));
}

/* out [whole strips of rows, ld] = `rows` rows of C elements, the first at element `at` of x, the next `stride` on. Where
 * there are to be pairs, they are B of products with these rows as they are: [rows / 2, ld] pairs of neighbours. */
static void round_rows(bf16 *out, float *pairs, int ld, et_array x, ptrdiff_t at, ptrdiff_t stride, int rows, int C) {
    for (int i = 0; i < whole_strips(rows); i += 2, at += 2 * stride)
        for (int j = 0; j < ld; j += 32) {
            __m512i even = i < rows ? rounded_run(x, at + j, C - j) : _mm512_setzero_si512();
            __m512i odd = i + 1 < rows ? rounded_run(x, at + stride + j, C - j) : _mm512_setzero_si512();
            _mm512_storeu_si512(out + i * ld + j, even);
            _mm512_storeu_si512(out + (i + 1) * ld + j, odd);
            if (pairs)
                store_pairs(pairs + i / 2 * ld + j, even, odd);
        }
}

/* Rows of bf16, `stride` apart. */
struct tokens {
    const bf16 *p;
    ptrdiff_t stride;
};

/* B of products with the transpose of n rows of ld: [ld / 2, block] pairs along the rows. */
static void pack_across(float *pairs, struct tokens rows, int n, int ld, int block) {
    const bf16 *from[16];
    for (int i = 0; i < n; i += 16) {
        for (int r = 0; r < 16; r++)
            from[r] = rows.p + (i + r) * rows.stride;
        for (int j = 0; j < ld / 2; j += 16)
            transpose_pairs(pairs + j * block + i, block, from, j);
    }
}

/* B of products with n rows of ld as they are: [n / 2, ld] pairs of neighbours. */
static void pack_down(float *pairs, struct tokens rows, int n, int ld) {
    for (int i = 0; i < n; i += 2)
        pair_rows(pairs + i / 2 * ld, rows.p + i * rows.stride, rows.p + (i + 1) * rows.stride, ld);
}

/* ---- scores ------------------------------------------------------------------------------------------------ */

/* A strip of scores on its way: rows are queries, `nv` vectors of keys each. */
struct strip {
    const bf16 *a[2];   /* rows [rows, ld] of q and dout */
    float *s, *dp;      /* [STRIP, BK] their products with k and v */
    bf16 *rounded;      /* [STRIP, BK] what multiplies v or k: probabilities, or in backward the scores' gradients */
    float *pairs[2];    /* [STRIP / 2, BK] these gradients and the probabilities, of two queries each */
    float *base, *sums; /* of a query, and what its probabilities sum to, a vector */
    const float *delta;
    float *out; /* [rows, ld] sums of products with `rounded` */
    int ld, rows, nv;
    int keys;     /* how many of those in the vectors are keys */
    int distance; /* from the first key to the first query, and `ahead`; it sees those of 0 to span - 1 */
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
    float *out = t->out + i * t->ld;
    t->base[i] = _mm512_reduce_max_ps((__m512)highest);
    if (old == NO_BASE)
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
        vec base = splat(t->base[i]);
        if (_mm512_cmp_ps_mask((__m512)highest, (__m512)(base + 16.0f), _CMP_GT_OQ)) {
            raise_base(strip, i, highest);
            sum = vload(t->sums + i * VL);
            base = splat(t->base[i]);
        }
        UNROLL for (int j = 0; j < nv; j += 2) {
            vec low = exp2_vec(x[j] - base);
            vec high = exp2_vec(x[j + 1] - base);
            sum += low + high;
            store_rounded(t->rounded + i * BK + j * VL, low, high);
        }
        vstore(t->sums + i * VL, sum);
    }
}

/* The probabilities of two vectors of row i, rounded, and ds = p * (dp - delta), the gradients of the scores. */
static inline __attribute__((always_inline)) void gradient_vectors(const struct strip *t, int i, int at,
                                                                   const int masked, __m512i *p, __m512i *ds) {
    vec probability[2], gradient[2];
    UNROLL for (int l = 0; l < 2; l++, at += VL) {
        vec x = vload(t->s + i * BK + at) * t->exponent - t->base[i];
        if (masked)
            x = only_seen(among_keys(x, t->keys - at), t->distance + i - at, -1, t->span);
        probability[l] = exp2_vec(x);
        gradient[l] = probability[l] * (vload(t->dp + i * BK + at) - t->delta[i]);
    }
    *p = (__m512i)_mm512_cvtne2ps_pbh((__m512)probability[1], (__m512)probability[0]);
    *ds = (__m512i)_mm512_cvtne2ps_pbh((__m512)gradient[1], (__m512)gradient[0]);
}

/* Whole strips, as the products over queries read them: rows behind the last query have probabilities of 0. */
static inline __attribute__((always_inline)) void gradient_rows(const struct strip *strip, const int nv,
                                                                const int masked) {
    const struct strip copy = *strip;
    const struct strip *t = &copy; /* so that no store can change it */
    for (int i = 0; i < STRIP; i += 2) {
        UNROLL for (int j = 0; j < nv * VL; j += 2 * VL) {
            __m512i p[2], ds[2];
            UNROLL for (int r = 0; r < 2; r++) {
                gradient_vectors(t, i + r, j, masked, p + r, ds + r);
                _mm512_storeu_si512(t->rounded + (i + r) * BK + j, ds[r]);
            }
            store_pairs(t->pairs[0] + i / 2 * BK + j, ds[0], ds[1]);
            store_pairs(t->pairs[1] + i / 2 * BK + j, p[0], p[1]);
        }
    }
}

/* A distance is 0 or more, unless it is seen by nobody. */
static inline int partly_seen(const struct strip *t) {
    int keys = t->nv * VL;
    return t->distance < keys - 1 || t->keys < keys || (int64_t)t->distance + STRIP > (int64_t)t->span;
}

_Static_assert(STRIP == 2 * VL && BK == 2 * STRIP, "rows have two or four vectors");
#define WITH_CONSTANTS(rows, t)                                                                                        \
    do {                                                                                                               \
        int masked = partly_seen(t);                                                                                   \
        if ((t)->nv > 2)                                                                                               \
            masked ? rows(t, 4, 1) : rows(t, 4, 0);                                                                    \
        else                                                                                                           \
            masked ? rows(t, 2, 1) : rows(t, 2, 0);                                                                    \
    } while (0)

static void softmax_strip(const struct strip *t) { WITH_CONSTANTS(softmax_rows, t); }
static void gradient_strip(const struct strip *t) { WITH_CONSTANTS(gradient_rows, t); }
