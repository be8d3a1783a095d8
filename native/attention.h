/* Causal grouped-query attention, block by block with an online softmax (Milakov & Gimelshein 2018, Dao et al. 2022):
 * a thread holds BQ x BK scores at a time. Backward makes them again from lse: once for dq, where tasks are blocks of
 * queries, once for dk and dv, where tasks are blocks of keys, so that the outputs of tasks are disjoint.
 *
 * Token t sees keys first_key(t) .. t, and first_key never decreases, so the keys of a block of queries begin at its
 * first query's first key. No block holds queries or keys of two documents: documents and windows cost only what they
 * see. All outputs are overwritten. */

/* Whole tiles: 64, or 96 where a tile has 12 rows. Larger blocks lose on short documents what they gain on long. */
enum { BQ = 64 % MR == 0 ? 64 : 8 * MR, BK = BQ };

/* Floats of a thread's scratch: scores, their gradients, and what gemm packs. */
#define ET_ATTENTION_FLOATS (2 * BQ * BK + ET_MAX_HEAD * (MR + BK + NR))
_Static_assert(ET_ATTENTION_FLOATS <= ET_THREAD_FLOATS, "attention does not fit a thread's scratch");
_Static_assert(BK % VL == 0 && BK <= ET_MAX_HEAD, "scores are whole vectors; gemm packs BK x ET_MAX_HEAD");

struct attention {
    et_context *ctx;
    float *dq, *dk, *dv, *delta, *out, *lse; /* in backward, out and lse are inputs */
    const float *dout, *q, *k, *v;
    const int32_t *start;
    float scale;
    int window, T, H, G, C;
};

/* Scores of head h, queries q .. q + nq - 1, keys k .. k + nk - 1: row i at s + i * BK, -inf up to a whole vector. */
struct block {
    int h, g, q, nq, k, nk;
    float *s, *ds, *pack;
};

static inline int first_key(const struct attention *a, int t) {
    int begin = a->window > 0 ? t - a->window + 1 : 0;
    return a->start[t] > begin ? a->start[t] : begin;
}

/* How many of the tokens t .. end - 1 are of t's document. */
static inline int same_document(const struct attention *a, int t, int end) {
    int n = 1;
    while (t + n < end && a->start[t + n] == a->start[t])
        n++;
    return n;
}

/* Floats from a token to the next, and where a block's first query (head h of [T, H, C]) and first key (head g of
 * [T, G, C]) begin. */
static inline ptrdiff_t q_stride(const struct attention *a) {
    return (ptrdiff_t)a->H * a->C;
}

static inline ptrdiff_t k_stride(const struct attention *a) {
    return (ptrdiff_t)a->G * a->C;
}

static inline ptrdiff_t q_at(const struct attention *a, const struct block *b) {
    return b->q * q_stride(a) + (ptrdiff_t)b->h * a->C;
}

static inline ptrdiff_t k_at(const struct attention *a, const struct block *b) {
    return b->k * k_stride(a) + (ptrdiff_t)b->g * a->C;
}

/* The task's head and first query. The last queries see most and come first, so that the threads end together. */
static inline struct block query_block(const struct attention *a, int task, int thread) {
    float *s = et_scratch(a->ctx, thread);
    int h = task % a->H, q = ((a->T - 1) / BQ - task / a->H) * BQ;
    return (struct block){.h = h, .g = h / (a->H / a->G), .q = q, .s = s, .ds = s + BQ * BK, .pack = s + 2 * BQ * BK};
}

/* s = scale * q . k^T, what a query may not see is -inf */
static void attention_scores(const struct attention *a, const struct block *b) {
    gemm(b->s, BK, a->q + q_at(a, b), q_stride(a), 1, a->k + k_at(a, b), k_stride(a), 1, b->nq, b->nk, a->C, a->scale,
         0, b->pack);
    int width = ceil_div(b->nk, VL) * VL;
    if (b->nk == width && b->k + b->nk - 1 <= b->q && first_key(a, b->q + b->nq - 1) <= b->k)
        return;
    for (int i = 0; i < b->nq; i++) {
        int t = b->q + i, begin = first_key(a, t) - b->k, end = min_int(t + 1 - b->k, b->nk);
        float *s = b->s + i * BK;
        for (int j = 0; j < min_int(begin, width); j++)
            s[j] = -INFINITY;
        for (int j = end > 0 ? end : 0; j < width; j++)
            s[j] = -INFINITY;
    }
}

/* One step of the online softmax on a row of scores: s = exp(s - max), sum and max go on; returns the factor that
 * brings what was summed under the old maximum under the new one. */
static inline float softmax_step(float *s, int nk, float *max, float *sum) {
    vec highest = splat(*max), total = {0};
    for (int j = 0; j < nk; j += VL) {
        vec x = vload(s + j);
        highest = blend(x > highest, x, highest);
    }
    float new_max = lanes_max(highest);
    float base = new_max == -INFINITY ? 0.0f : new_max; /* nothing seen yet: -inf - 0 stays -inf */
    float factor = vec_exp(splat(*max - base))[0];
    for (int j = 0; j < nk; j += VL) {
        vec p = vec_exp(vload(s + j) - base);
        total += p;
        vstore(s + j, p);
    }
    *sum = *sum * factor + lanes_sum(total);
    *max = new_max;
    return factor;
}

static inline void scale_row(float *x, float s, int n) {
    for (int i = 0; i < n; i += VL)
        vstore_part(x + i, vload_part(x + i, n - i) * s, n - i);
}

static void attention_forward_block(const struct attention *a, struct block b) {
    int first = first_key(a, b.q), end = b.q + b.nq;
    float *out = a->out + q_at(a, &b), max[BQ], sum[BQ];
    for (int i = 0; i < b.nq; i++) {
        max[i] = -INFINITY;
        sum[i] = 0.0f;
    }
    for (b.k = first; b.k < end; b.k += BK) {
        b.nk = min_int(BK, end - b.k);
        attention_scores(a, &b);
        for (int i = 0; i < b.nq; i++) {
            float factor = softmax_step(b.s + i * BK, b.nk, &max[i], &sum[i]);
            if (b.k > first && factor != 1.0f)
                scale_row(out + i * q_stride(a), factor, a->C);
        }
        gemm(out, q_stride(a), b.s, BK, 1, a->v + k_at(a, &b), k_stride(a), 0, b.nq, a->C, b.nk, 1.0f, b.k > first,
             b.pack);
    }
    for (int i = 0; i < b.nq; i++) {
        scale_row(out + i * q_stride(a), 1.0f / sum[i], a->C);
        a->lse[(ptrdiff_t)b.h * a->T + b.q + i] = max[i] + logf(sum[i]);
    }
}

static void attention_forward_task(void *arg, int task, int thread) {
    const struct attention *a = arg;
    struct block b = query_block(a, task, thread);
    for (int end = min_int(b.q + BQ, a->T); b.q < end; b.q += b.nq) {
        b.nq = same_document(a, b.q, end);
        attention_forward_block(a, b);
    }
}

/* out [T, H, C] = softmax(scale * q . k^T) . v, lse [H, T] */
static void attention_forward(et_context *ctx, float *out, float *lse, const float *q, const float *k, const float *v,
                              const int32_t *start, float scale, int window, int T, int H, int G, int C) {
    struct attention a = {.ctx = ctx, .out = out, .lse = lse, .q = q, .k = k, .v = v, .start = start, .scale = scale,
                          .window = window, .T = T, .H = H, .G = G, .C = C};
    et_parallel(ctx, attention_forward_task, &a, ceil_div(T, BQ) * H);
}

/* s = softmax(scores), ds = s * (dout . v^T - delta): the gradient of the scores */
static void attention_scores_backward(const struct attention *a, const struct block *b) {
    attention_scores(a, b);
    gemm(b->ds, BK, a->dout + q_at(a, b), q_stride(a), 1, a->v + k_at(a, b), k_stride(a), 1, b->nq, b->nk, a->C, 1.0f,
         0, b->pack);
    for (int i = 0; i < b->nq; i++) {
        ptrdiff_t row = (ptrdiff_t)b->h * a->T + b->q + i;
        float lse = a->lse[row], delta = a->delta[row], *s = b->s + i * BK, *ds = b->ds + i * BK;
        for (int j = 0; j < b->nk; j += VL) {
            vec p = vec_exp(vload(s + j) - lse);
            vstore(s + j, p);
            vstore(ds + j, p * (vload(ds + j) - delta));
        }
    }
}

/* delta = rowsum(dout * out), which is rowsum(s * (dout . v^T)), and dq = scale * ds . k */
static void attention_dq_block(const struct attention *a, struct block b) {
    int first = first_key(a, b.q), end = b.q + b.nq;
    for (int i = 0; i < b.nq; i++) {
        ptrdiff_t at = q_at(a, &b) + i * q_stride(a);
        a->delta[(ptrdiff_t)b.h * a->T + b.q + i] = dot(a->dout + at, a->out + at, a->C);
    }
    for (b.k = first; b.k < end; b.k += BK) {
        b.nk = min_int(BK, end - b.k);
        attention_scores_backward(a, &b);
        gemm(a->dq + q_at(a, &b), q_stride(a), b.ds, BK, 1, a->k + k_at(a, &b), k_stride(a), 0, b.nq, a->C, b.nk,
             a->scale, b.k > first, b.pack);
    }
}

static void attention_dq_task(void *arg, int task, int thread) {
    const struct attention *a = arg;
    struct block b = query_block(a, task, thread);
    for (int end = min_int(b.q + BQ, a->T); b.q < end; b.q += b.nq) {
        b.nq = same_document(a, b.q, end);
        attention_dq_block(a, b);
    }
}

/* dk = scale * ds^T . q and dv = s^T . dout, summed over the heads that share the keys and the queries that see them */
static void attention_dkv_block(const struct attention *a, struct block b) {
    int accumulate = 0, group = a->H / a->G;
    for (b.h = b.g * group; b.h < (b.g + 1) * group; b.h++)
        for (b.q = b.k; b.q < a->T && first_key(a, b.q) < b.k + b.nk; b.q += b.nq) {
            b.nq = same_document(a, b.q, min_int(b.q + BQ, a->T));
            attention_scores_backward(a, &b);
            gemm(a->dk + k_at(a, &b), k_stride(a), b.ds, 1, BK, a->q + q_at(a, &b), q_stride(a), 0, b.nk, a->C, b.nq,
                 a->scale, accumulate, b.pack);
            gemm(a->dv + k_at(a, &b), k_stride(a), b.s, 1, BK, a->dout + q_at(a, &b), q_stride(a), 0, b.nk, a->C, b.nq,
                 1.0f, accumulate, b.pack);
            accumulate = 1;
        }
}

static void attention_dkv_task(void *arg, int task, int thread) {
    const struct attention *a = arg;
    float *s = et_scratch(a->ctx, thread);
    struct block b = {.g = task % a->G, .k = task / a->G * BK, .s = s, .ds = s + BQ * BK, .pack = s + 2 * BQ * BK};
    for (int end = min_int(b.k + BK, a->T); b.k < end; b.k += b.nk) {
        b.nk = same_document(a, b.k, end);
        attention_dkv_block(a, b);
    }
}

/* dq [T, H, C], dk, dv [T, G, C]; delta [H, T] is work space. */
static void attention_backward(et_context *ctx, float *dq, float *dk, float *dv, float *delta, const float *dout,
                               const float *out, const float *lse, const float *q, const float *k, const float *v,
                               const int32_t *start, float scale, int window, int T, int H, int G, int C) {
    struct attention a = {.ctx = ctx, .dq = dq, .dk = dk, .dv = dv, .delta = delta, .dout = dout, .out = (float *)out,
                          .lse = (float *)lse, .q = q, .k = k, .v = v, .start = start, .scale = scale,
                          .window = window, .T = T, .H = H, .G = G, .C = C};
    et_parallel(ctx, attention_dq_task, &a, ceil_div(T, BQ) * H);
    et_parallel(ctx, attention_dkv_task, &a, ceil_div(T, BK) * G);
}
