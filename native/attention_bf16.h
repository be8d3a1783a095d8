/* Attention whose products are in bf16: q, k, v, dout, the probabilities and their gradients are rounded to nearest.
 *
 * A product is a strip: up to STRIP rows of A, as they lie, by B in pairs (bf16.h). Rows, heads and blocks are padded
 * to whole strips with zeros. Tokens are lanes of a row or rows themselves, whichever lets A be read as it is computed:
 * for out and dq the scores are [queries, keys], for dk and dv [keys, queries]. Above the diagonal no strip is
 * computed. Heads that share keys share a task, so that the keys are packed once for all.
 *
 * Exponents are to base 2: p = 2^(s * exponent - base), base being what stands for the maximum or for lse. */

enum { STRIP = 32, HEADS = 4 }; /* more heads at a time would save no packing to speak of */
_Static_assert(BQ % STRIP == 0 && VL == 16, "whole strips; whole vectors");

static const float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

static inline int whole_strips(int n) { return ceil_div(n, STRIP) * STRIP; }

/* ---- products ---------------------------------------------------------------------------------------------- */

/* c [rows, N] (accumulate: +)= a [rows, K] . b, b [K / 2, N] in pairs; rows are at most STRIP, N and K whole strips.
 * Reads and writes all rows of the strip. Only between products_begin and products_end. */
static void strip_product(float *c, ptrdiff_t ldc, const bf16 *a, ptrdiff_t lda, const float *b, ptrdiff_t ldb,
                          int rows, int N, int K, int accumulate);

#ifdef __AMX_BF16__

static void strip_product(float *c, ptrdiff_t ldc, const bf16 *a, ptrdiff_t lda, const float *b, ptrdiff_t ldb,
                          int rows, int N, int K, int accumulate) {
    const size_t c_stride = (size_t)ldc * 4, a_stride = (size_t)lda * 2, b_stride = (size_t)ldb * 4;
    for (int n = 0; n < N; n += 32, c += 32, b += 32) {
        if (accumulate) {
            _tile_loadd(0, c, c_stride);
            _tile_loadd(1, c + 16, c_stride);
            _tile_loadd(2, c + 16 * ldc, c_stride);
            _tile_loadd(3, c + 16 * ldc + 16, c_stride);
        } else
            bf16_zero();
        for (int k = 0; k < K; k += 32) {
            _tile_loadd(4, a + k, a_stride);
            _tile_loadd(6, b + k / 2 * ldb, b_stride);
            _tile_loadd(7, b + k / 2 * ldb + 16, b_stride);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            if (rows > 16) {
                _tile_loadd(5, a + 16 * lda + k, a_stride);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        bf16_store(c, (size_t)ldc);
    }
}

static void products_begin(uint8_t before[TILE_STATE]) { bf16_begin(before); }
static void products_end(const uint8_t before[TILE_STATE]) { bf16_end(before); }

#else

enum { PART = 8 }; /* rows whose sums are registers */

static inline __attribute__((always_inline)) void part_product(float *c, ptrdiff_t ldc, const bf16 *a, ptrdiff_t lda,
                                                               const float *b, ptrdiff_t ldb, int K, int accumulate) {
    vec acc[PART][2];
    UNROLL for (int i = 0; i < PART; i++) {
        acc[i][0] = accumulate ? vload(c + i * ldc) : splat(0.0f);
        acc[i][1] = accumulate ? vload(c + i * ldc + VL) : splat(0.0f);
    }
    for (int k = 0; k < K; k += 2, b += ldb) {
        __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + VL);
        UNROLL for (int i = 0; i < PART; i++) {
            int32_t pair;
            memcpy(&pair, a + i * lda + k, 4);
            __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
            acc[i][0] = (vec)_mm512_dpbf16_ps((__m512)acc[i][0], x, (__m512bh)b0);
            acc[i][1] = (vec)_mm512_dpbf16_ps((__m512)acc[i][1], x, (__m512bh)b1);
        }
    }
    UNROLL for (int i = 0; i < PART; i++) {
        vstore(c + i * ldc, acc[i][0]);
        vstore(c + i * ldc + VL, acc[i][1]);
    }
}

static void strip_product(float *c, ptrdiff_t ldc, const bf16 *a, ptrdiff_t lda, const float *b, ptrdiff_t ldb,
                          int rows, int N, int K, int accumulate) {
    for (int n = 0; n < N; n += 2 * VL)
        for (int i = 0; i < rows; i += PART)
            part_product(c + i * ldc + n, ldc, a + i * lda, lda, b + n, ldb, K, accumulate);
}

static void products_begin(uint8_t before[TILE_STATE]) { (void)before; }
static void products_end(const uint8_t before[TILE_STATE]) { (void)before; }

#endif

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

/* B of products with the transpose of n rows of ld: [ld / 2, BK] pairs along the rows. Pairs are dwords: four of
 * sixteen rows are transposed at a time. */
static void pack_across(float *pairs, struct tokens rows, int n, int ld) {
    for (int i = 0; i < n; i += 16)
        for (int j = 0; j < ld; j += 8) {
            const bf16 *p = rows.p + i * rows.stride + j;
            float *out = pairs + j / 2 * BK + i;
            __m512 a = four_rows(p, 4 * rows.stride), b = four_rows(p + rows.stride, 4 * rows.stride);
            __m512 c = four_rows(p + 2 * rows.stride, 4 * rows.stride);
            __m512 d = four_rows(p + 3 * rows.stride, 4 * rows.stride);
            __m512 ab0 = _mm512_unpacklo_ps(a, b), ab1 = _mm512_unpackhi_ps(a, b);
            __m512 cd0 = _mm512_unpacklo_ps(c, d), cd1 = _mm512_unpackhi_ps(c, d);
            vstore(out, (vec)_mm512_shuffle_ps(ab0, cd0, 0x44));
            vstore(out + BK, (vec)_mm512_shuffle_ps(ab0, cd0, 0xee));
            vstore(out + 2 * BK, (vec)_mm512_shuffle_ps(ab1, cd1, 0x44));
            vstore(out + 3 * BK, (vec)_mm512_shuffle_ps(ab1, cd1, 0xee));
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
    int distance;         /* from the first key to the first query; a query sees those of 0 to span - 1 */
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

/* A new base for query i, whose scores have outgrown the old one; what was summed under that is brought under this. */
static void raise_base(const struct strip *t, int i, vec highest) {
    float old = t->base[i], *sum = t->sums + i * VL, *out = t->out[1] + i * t->ld;
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
    const struct strip copy = *strip, *t = &copy; /* so that no store can change it */
    for (int i = 0; i < t->rows; i++) {
        vec x[BK / VL], highest = splat(-INFINITY), sum = vload(t->sums + i * VL);
        UNROLL for (int j = 0; j < nv; j++) {
            x[j] = vload(t->s + i * BK + j * VL) * t->exponent;
            if (masked)
                x[j] = only_seen(x[j], t->distance + i - j * VL, -1, t->span);
            highest = (vec)_mm512_max_ps((__m512)x[j], (__m512)highest); /* the second where one is NaN */
        }
        if (_mm512_cmp_ps_mask((__m512)highest, (__m512)splat(t->base[i] + 16.0f), _CMP_GT_OQ)) {
            raise_base(strip, i, highest);
            sum = vload(t->sums + i * VL);
        }
        float base = t->base[i] == -INFINITY ? 0.0f : t->base[i]; /* nothing seen yet: -inf - 0 stays -inf */
        UNROLL for (int j = 0; j < nv; j += 2) {
            vec low = exp2_vec(x[j] - base), high = exp2_vec(x[j + 1] - base);
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
    const struct strip copy = *strip, *t = &copy; /* so that no store can change it */
    for (int i = 0; i < t->rows; i++) {
        UNROLL for (int j = 0; j < nv; j += 2) {
            vec p[2], ds[2];
            UNROLL for (int l = 0; l < 2; l++) {
                int at = (j + l) * VL, row = queries ? i - at : at - i;
                vec base = queries ? splat(t->base[i]) : vload(t->base + at);
                vec delta = queries ? splat(t->delta[i]) : vload(t->delta + at);
                vec x = vload(t->s + i * BK + at) * t->exponent - base;
                if (masked)
                    x = only_seen(x, t->distance + row, queries ? -1 : 1, t->span);
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
    return t->distance < keys - 1 || (int64_t)t->distance + queries > (int64_t)t->span;
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

/* ---- a task's blocks --------------------------------------------------------------------------------------- */

/* A thread's scratch: what every block needs, and `rest` for its own. */
struct work {
    int ld;           /* C in whole strips */
    float *strips;    /* two strips' s and dp, one strip's p and ds */
    bf16 *rows;       /* [BQ, ld], on their way to being packed */
    float *packed[4]; /* B */
    float *rest;
};

enum { STRIP_FLOATS = STRIP * BK, STRIPS = HEADS * BQ / STRIP };
#define PACKED_FLOATS(ld) (BQ * (ld) / 2)
#define WORK_FLOATS(ld) (5 * STRIP_FLOATS + 5 * PACKED_FLOATS(ld))
#define HEAD_FLOATS(ld) (2 * PACKED_FLOATS(ld) + BQ * ((ld) + VL + 2))
#define KEY_FLOATS(ld) (2 * PACKED_FLOATS(ld) + 2 * BK * (ld) + 2 * BQ)
_Static_assert(WORK_FLOATS(ET_MAX_HEAD) + HEAD_FLOATS(ET_MAX_HEAD) <= ET_THREAD_FLOATS, "a block of queries fits");
_Static_assert(WORK_FLOATS(ET_MAX_HEAD) + KEY_FLOATS(ET_MAX_HEAD) <= ET_THREAD_FLOATS, "a block of keys fits");

static struct work new_work(const struct attention *a, int thread) {
    float *p = et_scratch(a->ctx, thread), *packed = p + 5 * STRIP_FLOATS;
    struct work w = {.ld = whole_strips(a->C), .strips = p, .rows = (bf16 *)packed};
    for (int i = 0; i < 4; i++)
        w.packed[i] = packed + (i + 1) * PACKED_FLOATS(w.ld);
    w.rest = p + WORK_FLOATS(w.ld);
    return w;
}

/* Strip i of those that pass by between two packings. */
static struct strip new_strip(const struct attention *a, const struct work *w, int i) {
    float *s = w->strips + i % 2 * 2 * STRIP_FLOATS;
    bf16 *p = (bf16 *)(w->strips + 4 * STRIP_FLOATS);
    return (struct strip){.s = s, .dp = s + STRIP_FLOATS, .p = p, .ds = p + STRIP_FLOATS, .ld = w->ld,
                          .exponent = a->scale * LOG2_E, .span = a->window > 0 ? (uint32_t)a->window : INT32_MAX};
}

/* The two products of the two sides, and those of their result, which go on where `accumulate` is set. */
static void product_of_sides(const struct work *w, const struct strip *t, int side) {
    strip_product(side ? t->dp : t->s, BK, t->a[side], t->ld, w->packed[2 * side] + t->first, BK, t->rows, t->nv * VL,
                  t->ld, 0);
}

static void product_of_scores(const struct work *w, const struct strip *t, int side, int accumulate) {
    strip_product(t->out[side], t->ld, side ? t->p : t->ds, BK, w->packed[1 + 2 * side] + t->first / 2 * t->ld, t->ld,
                  t->rows, t->ld, t->nv * VL, accumulate);
}

/* n tokens of x packed the ways that are wanted, by way of w->rows unless they are bf16 and whole strips already. */
static void pack_tokens(const struct work *w, const struct attention *a, et_array x, ptrdiff_t at, ptrdiff_t stride,
                        int n, float *across, float *down) {
    struct tokens rows = {(const bf16 *)x.data + at, stride};
    if (x.type != ET_BF16 || a->C != w->ld || n % STRIP) {
        round_rows(w->rows, w->ld, x, at, stride, n, a->C);
        rows = (struct tokens){w->rows, w->ld};
    }
    if (across)
        pack_across(across, rows, whole_strips(n), w->ld);
    if (down)
        pack_down(down, rows, whole_strips(n), w->ld);
}

/* base and delta [BQ] of queries q .. q + nq - 1 of head h; those behind them have probabilities of 0. */
static void load_base(const struct attention *a, float *base, float *delta, int h, int q, int nq) {
    ptrdiff_t at = (ptrdiff_t)h * a->T + q;
    for (int i = 0; i < BQ; i += VL) {
        vstore(base + i, splat(INFINITY));
        vstore(delta + i, splat(0.0f));
    }
    for (int i = 0; i < nq; i += VL) {
        vstore_part(base + i, vload_part(a->lse + at + i, nq - i) * LOG2_E, nq - i);
        vstore_part(delta + i, vload_part(a->delta + at + i, nq - i), nq - i);
    }
}

/* ---- blocks of queries: out and dq ------------------------------------------------------------------------- */

/* Heads h .. h + heads - 1, which share keys g, and queries q .. q + nq - 1. */
struct queries {
    int g, h, heads, q, nq;
};

/* What is kept of one of them while blocks of keys pass by. */
struct head {
    bf16 *q, *dout;                    /* [BQ, ld] */
    float *out, *sums, *base, *delta;  /* [BQ, ld], [BQ, VL], [BQ], [BQ] */
};

static struct head head_at(const struct work *w, int i) {
    float *p = w->rest + (ptrdiff_t)i * HEAD_FLOATS(w->ld), *out = p + 2 * PACKED_FLOATS(w->ld);
    float *sums = out + BQ * w->ld, *base = sums + BQ * VL;
    return (struct head){(bf16 *)p, (bf16 *)(p + PACKED_FLOATS(w->ld)), out, sums, base, base + BQ};
}

/* Into how many tasks a group's heads are cut. */
static int parts_of_group(const struct attention *a) {
    int ld = whole_strips(a->C), fit = (ET_THREAD_FLOATS - WORK_FLOATS(ld)) / HEAD_FLOATS(ld);
    return ceil_div(a->H / a->G, min_int(HEADS, fit));
}

static int query_tasks(const struct attention *a) { return ceil_div(a->T, BQ) * a->G * parts_of_group(a); }

/* The last queries see most and come first, so that the threads end together. */
static void each_query_block(const struct attention *a, int task, int thread,
                             void (*block)(const struct attention *a, const struct work *w, struct queries b)) {
    int group = a->H / a->G, parts = parts_of_group(a), heads = ceil_div(group, parts), part = task % parts;
    int begin = ((a->T - 1) / BQ - task / (a->G * parts)) * BQ;
    struct work w = new_work(a, thread);
    struct queries b = {.g = task / parts % a->G, .heads = min_int(heads, group - part * heads)};
    b.h = b.g * group + part * heads;
    uint8_t before[TILE_STATE];
    products_begin(before);
    for (b.q = next_block(a, begin); b.q < min_int(begin + BQ, a->T); b.q += b.nq) {
        b.nq = block_tokens(a, b.q);
        block(a, &w, b);
    }
    products_end(before);
}

static void forward_begin(const struct attention *a, const struct work *w, struct queries b) {
    for (int i = 0; i < b.heads; i++) {
        struct head head = head_at(w, i);
        round_rows(head.q, w->ld, a->q, q_at(a, b.h + i, b.q), q_stride(a), b.nq, a->C);
        memset(head.sums, 0, sizeof(float) * BQ * VL);
        for (int j = 0; j < BQ; j++)
            head.base[j] = -INFINITY;
    }
}

static void forward_end(const struct attention *a, const struct work *w, struct queries b) {
    for (int i = 0; i < b.heads; i++) {
        struct head head = head_at(w, i);
        float sum[BQ], *lse = a->lse + (ptrdiff_t)(b.h + i) * a->T + b.q;
        for (int j = 0; j < b.nq; j++) {
            sum[j] = lanes_sum(vload(head.sums + j * VL));
            store_scaled(a->out, q_at(a, b.h + i, b.q + j), head.out + j * w->ld, 1.0f / sum[j], a->C);
        }
        for (int j = 0; j < b.nq; j++)
            lse[j] = head.base[j] * LN_2 + logf(sum[j]);
    }
}

/* How many keys from k on the STRIP queries from q on may see, in whole strips. */
static inline int keys_seen(int k, int nk, int q) { return min_int(whole_strips(nk), whole_strips(q + STRIP - k)); }

/* The strips of b's queries that see some of the keys k .. k + nk - 1. */
static int query_strips(const struct attention *a, const struct work *w, struct queries b, int k, int nk,
                        struct strip *strips) {
    int n = 0;
    for (int i = 0; i < b.heads; i++)
        for (int j = 0; j < b.nq; j += STRIP) {
            int keys = keys_seen(k, nk, b.q + j), at = j * w->ld;
            if (keys <= 0)
                continue;
            struct head head = head_at(w, i);
            struct strip t = new_strip(a, w, n);
            t.a[0] = head.q + at;
            t.a[1] = head.dout + at;
            t.base = head.base + j;
            t.delta = head.delta + j;
            t.sums = head.sums + j * VL;
            t.out[0] = t.out[1] = head.out + at;
            t.rows = min_int(STRIP, b.nq - j);
            t.nv = keys / VL;
            t.distance = b.q + j - k;
            strips[n++] = t;
        }
    return n;
}

/* A strip's scores are multiplied while those of the one before become probabilities, which other units do. */
static void forward_strips(const struct work *w, const struct strip *t, int n, int accumulate) {
    for (int i = 0; i <= n; i++) {
        if (i < n)
            product_of_sides(w, t + i, 0);
        if (i == 0)
            continue;
        softmax_strip(t + i - 1);
        product_of_scores(w, t + i - 1, 1, accumulate);
    }
}

static void forward_block(const struct attention *a, const struct work *w, struct queries b) {
    struct strip strips[STRIPS];
    forward_begin(a, w, b);
    for (int first = first_key(a, b.q), k = first, end = b.q + b.nq; k < end; k += BK) {
        int nk = min_int(BK, end - k);
        pack_tokens(w, a, a->k, k_at(a, b.g, k), k_stride(a), nk, w->packed[0], NULL);
        pack_tokens(w, a, a->v, k_at(a, b.g, k), k_stride(a), nk, NULL, w->packed[3]);
        forward_strips(w, strips, query_strips(a, w, b, k, nk, strips), k > first);
    }
    forward_end(a, w, b);
}

static void forward_task(void *a, int task, int thread) { each_query_block(a, task, thread, forward_block); }

static void dq_begin(const struct attention *a, const struct work *w, struct queries b) {
    for (int i = 0; i < b.heads; i++) {
        struct head head = head_at(w, i);
        round_rows(head.q, w->ld, a->q, q_at(a, b.h + i, b.q), q_stride(a), b.nq, a->C);
        round_rows(head.dout, w->ld, a->dout, q_at(a, b.h + i, b.q), q_stride(a), b.nq, a->C);
        attention_delta(a, (et_array){head.dout, ET_BF16}, 0, w->ld, b.h + i, b.q, b.nq); /* of what is multiplied */
        load_base(a, head.base, head.delta, b.h + i, b.q, b.nq);
    }
}

static void dq_strips(const struct work *w, const struct strip *t, int n, int accumulate) {
    for (int i = 0; i <= n; i++) {
        if (i < n) {
            product_of_sides(w, t + i, 0);
            product_of_sides(w, t + i, 1);
        }
        if (i == 0)
            continue;
        gradient_of_queries(t + i - 1);
        product_of_scores(w, t + i - 1, 0, accumulate);
    }
}

static void dq_block(const struct attention *a, const struct work *w, struct queries b) {
    struct strip strips[STRIPS];
    dq_begin(a, w, b);
    for (int first = first_key(a, b.q), k = first, end = b.q + b.nq; k < end; k += BK) {
        int nk = min_int(BK, end - k);
        pack_tokens(w, a, a->k, k_at(a, b.g, k), k_stride(a), nk, w->packed[0], w->packed[1]);
        pack_tokens(w, a, a->v, k_at(a, b.g, k), k_stride(a), nk, w->packed[2], NULL);
        dq_strips(w, strips, query_strips(a, w, b, k, nk, strips), k > first);
    }
    for (int i = 0; i < b.heads; i++)
        for (int j = 0; j < b.nq; j++)
            store_scaled(a->dq, q_at(a, b.h + i, b.q + j), head_at(w, i).out + j * w->ld, a->scale, a->C);
}

static void dq_task(void *a, int task, int thread) { each_query_block(a, task, thread, dq_block); }

/* ---- blocks of keys: dk and dv ----------------------------------------------------------------------------- */

/* Keys k .. k + nk - 1 of head g, and what is summed for them while blocks of queries pass by. */
struct keys {
    int g, k, nk;
    bf16 *k_rows, *v_rows;          /* [BK, ld] */
    float *dk, *dv, *base, *delta;  /* [BK, ld], [BK, ld]; of the queries: [BQ], [BQ] */
};

/* The strips of b's keys that some of the queries q .. q + nq - 1 see. */
static int key_strips(const struct attention *a, const struct work *w, const struct keys *b, int q, int nq,
                      struct strip *strips) {
    int n = 0;
    for (int j = 0; j < b->nk; j += STRIP) {
        int first = b->k + j > q ? b->k + j - q : 0, queries = whole_strips(nq) - first, at = j * w->ld;
        if (queries <= 0)
            continue;
        struct strip t = new_strip(a, w, n);
        t.a[0] = b->k_rows + at;
        t.a[1] = b->v_rows + at;
        t.base = b->base + first;
        t.delta = b->delta + first;
        t.out[0] = b->dk + at;
        t.out[1] = b->dv + at;
        t.rows = min_int(STRIP, b->nk - j);
        t.nv = queries / VL;
        t.first = first;
        t.distance = q + first - (b->k + j);
        strips[n++] = t;
    }
    return n;
}

static void dkv_strips(const struct work *w, const struct strip *t, int n, int accumulate) {
    for (int i = 0; i <= n; i++) {
        if (i < n) {
            product_of_sides(w, t + i, 0);
            product_of_sides(w, t + i, 1);
        }
        if (i == 0)
            continue;
        gradient_of_keys(t + i - 1);
        product_of_scores(w, t + i - 1, 0, accumulate);
        product_of_scores(w, t + i - 1, 1, accumulate);
    }
}

/* Blocks of queries are cut as blocks of keys are, so the first is the keys' own. */
static void dkv_block(const struct attention *a, const struct work *w, const struct keys *b) {
    int accumulate = 0, group = a->H / a->G;
    struct strip strips[STRIPS];
    round_rows(b->k_rows, w->ld, a->k, k_at(a, b->g, b->k), k_stride(a), b->nk, a->C);
    round_rows(b->v_rows, w->ld, a->v, k_at(a, b->g, b->k), k_stride(a), b->nk, a->C);
    for (int h = b->g * group; h < (b->g + 1) * group; h++)
        for (int q = b->k, nq; q < a->T && first_key(a, q) < b->k + b->nk; q += nq) {
            nq = block_tokens(a, q);
            pack_tokens(w, a, a->q, q_at(a, h, q), q_stride(a), nq, w->packed[0], w->packed[1]);
            pack_tokens(w, a, a->dout, q_at(a, h, q), q_stride(a), nq, w->packed[2], w->packed[3]);
            load_base(a, b->base, b->delta, h, q, nq);
            dkv_strips(w, strips, key_strips(a, w, b, q, nq, strips), accumulate);
            accumulate = 1;
        }
    for (int i = 0; i < b->nk; i++) {
        store_scaled(a->dk, k_at(a, b->g, b->k + i), b->dk + i * w->ld, a->scale, a->C);
        store_scaled(a->dv, k_at(a, b->g, b->k + i), b->dv + i * w->ld, 1.0f, a->C);
    }
}

static void dkv_task(void *arg, int task, int thread) {
    const struct attention *a = arg;
    struct work w = new_work(a, thread);
    int begin = task / a->G * BK, n = PACKED_FLOATS(w.ld);
    float *sums = w.rest + 2 * n, *base = sums + 2 * BK * w.ld;
    struct keys b = {.g = task % a->G, .k_rows = (bf16 *)w.rest, .v_rows = (bf16 *)(w.rest + n), .dk = sums,
                     .dv = sums + BK * w.ld, .base = base, .delta = base + BQ};
    uint8_t before[TILE_STATE];
    products_begin(before);
    for (b.k = next_block(a, begin); b.k < min_int(begin + BK, a->T); b.k += b.nk) {
        b.nk = block_tokens(a, b.k);
        dkv_block(a, &w, &b);
    }
    products_end(before);
}

static void attention_forward_bf16(struct attention *a) { et_parallel(a->ctx, forward_task, a, query_tasks(a)); }

static void attention_backward_bf16(struct attention *a) {
    et_parallel(a->ctx, dq_task, a, query_tasks(a));
    et_parallel(a->ctx, dkv_task, a, ceil_div(a->T, BK) * a->G);
}
