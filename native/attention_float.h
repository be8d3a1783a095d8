/* Attention whose products are in float. What is stored as bf16 is widened a block at a time. */

enum { BLOCK_FLOATS = BQ * ET_NARROW_HEAD };

/* Floats of a thread's scratch: scores, their gradients, widened blocks of A and B, sums, and what gemm packs. */
#define ET_ATTENTION_FLOATS (2 * BQ * BK + 4 * BLOCK_FLOATS + ET_NARROW_HEAD * (MR + BK + NR))
_Static_assert(ET_ATTENTION_FLOATS <= ET_THREAD_FLOATS, "attention does not fit a thread's scratch");

/* Scores of head h, queries q .. q + nq - 1, keys k .. k + nk - 1: row i at s + i * BK, -inf up to a whole vector. */
struct block {
    int h, g, q, nq, k, nk;
    float *s, *ds, *wide_a, *wide_b, *sums[2], *pack;
};

static struct block new_block(const struct attention *a, int thread) {
    float *s = et_scratch(a->ctx, thread);
    float *wide = s + 2 * BQ * BK;
    return (struct block){.s = s,
                          .ds = s + BQ * BK,
                          .wide_a = wide,
                          .wide_b = wide + BLOCK_FLOATS,
                          .sums = {wide + 2 * BLOCK_FLOATS, wide + 3 * BLOCK_FLOATS},
                          .pack = wide + 4 * BLOCK_FLOATS};
}

/* Rows of floats, `stride` apart. */
struct rows {
    const float *p;
    ptrdiff_t stride;
};

/* `rows` rows of C elements, the first at element `at`, the next `stride` on: where they lie, or in `wide`. */
static struct rows float_rows(et_array x, ptrdiff_t at, ptrdiff_t stride, int rows, int C, float *wide) {
    if (x.type == ET_F32)
        return (struct rows){(const float *)x.data + at, stride};
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < C; j += VL)
            vstore_part(wide + i * C + j, load_part(x, at + i * stride + j, C - j), C - j);
    return (struct rows){wide, C};
}

static struct rows query_rows(const struct attention *a, const struct block *b, et_array x, float *wide) {
    return float_rows(x, q_at(a, b->h, b->q), q_stride(a), b->nq, a->C, wide);
}

static struct rows key_rows(const struct attention *a, const struct block *b, et_array x, float *wide) {
    return float_rows(x, k_at(a, b->g, b->k), k_stride(a), b->nk, a->C, wide);
}

/* The task's head and first query. */
static inline struct block query_block(const struct attention *a, int task, int thread) {
    struct block b = new_block(a, thread);
    b.h = task % a->H;
    b.g = b.h / (a->H / a->G);
    b.q = query_begin(a, task / a->H);
    return b;
}

/* s [nq, nk] = alpha * x . y^T, x of the block's queries, y of its keys; gemm packs ET_NARROW_HEAD columns at most */
static void query_key_products(const struct attention *a, const struct block *b, float *s, et_array x, et_array y,
                               float alpha) {
    struct rows left = query_rows(a, b, x, b->wide_a);
    struct rows right = key_rows(a, b, y, b->wide_b);
    for (int c = 0; c < a->C; c += ET_NARROW_HEAD)
        gemm(s, BK, left.p + c, left.stride, 1, right.p + c, right.stride, 1, b->nq, b->nk,
             min_int(a->C - c, ET_NARROW_HEAD), alpha, c > 0, b->pack);
}

/* s = scale * q . k^T, what a query may not see is -inf */
static void attention_scores(const struct attention *a, const struct block *b) {
    query_key_products(a, b, b->s, a->q, a->k, a->scale);
    int width = ceil_div(b->nk, VL) * VL;
    if (b->nk == width && b->k + b->nk - 1 - b->q <= a->ahead && beyond_window(a, b->q + b->nq - 1, b->k) <= 0)
        return;
    for (int i = 0; i < b->nq; i++) {
        int t = b->q + i;
        int begin = beyond_window(a, t, b->k);
        int end = min_int(t + 1 - b->k + a->ahead, b->nk);
        float *s = b->s + i * BK;
        for (int j = 0; j < min_int(begin, width); j++)
            s[j] = -INFINITY;
        for (int j = end > 0 ? end : 0; j < width; j++)
            s[j] = -INFINITY;
    }
}

/* One step of the online softmax on a row of scores: s = exp(s - max), sum and max are updated; returns the factor that
 * brings what was summed under the old maximum under the new one. */
static inline float softmax_step(float *s, int nk, float *max, float *sum) {
    vec highest = splat(*max);
    vec total = {0};
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
    int last = end_of_keys(a, b.q, b.nq);
    int accumulate = 0;
    float *out = b.sums[0], max[BQ], sum[BQ];
    for (int i = 0; i < b.nq; i++) {
        max[i] = -INFINITY;
        sum[i] = 0.0f;
    }
    for (b.k = 0; (b.nk = next_keys(a, &b.k, b.q, last)) > 0; b.k += b.nk) {
        attention_scores(a, &b);
        for (int i = 0; i < b.nq; i++) {
            float factor = softmax_step(b.s + i * BK, b.nk, &max[i], &sum[i]);
            if (accumulate && factor != 1.0f)
                scale_row(out + i * a->C, factor, a->C);
        }
        struct rows v = key_rows(a, &b, a->v, b.wide_b);
        gemm(out, a->C, b.s, BK, 1, v.p, v.stride, 0, b.nq, a->C, b.nk, 1.0f, accumulate, b.pack);
        accumulate = 1;
    }
    for (int i = 0; i < b.nq; i++) {
        store_scaled(a->out, q_at(a, b.h, b.q + i), out + i * a->C, 1.0f / sum[i], a->C);
        a->lse[row_at(a, b.h, b.q + i)] = max[i] + logf(sum[i]);
    }
}

static void attention_forward_task(void *arg, int task, int thread) {
    const struct attention *a = arg;
    struct block b = query_block(a, task, thread);
    for (int end = min_int(b.q + a->block, a->T), q = next_block(a, b.q); q < end; q += b.nq) {
        b.q = q;
        b.nq = block_tokens(a, q);
        attention_forward_block(a, b);
    }
}

static void attention_forward_float(struct attention *a) {
    et_parallel(a->ctx, attention_forward_task, a, query_blocks(a) * a->H);
}

/* s = softmax(scores), ds = s * (dout . v^T - delta): the gradient of the scores */
static void attention_scores_backward(const struct attention *a, const struct block *b) {
    attention_scores(a, b);
    query_key_products(a, b, b->ds, a->dout, a->v, 1.0f);
    for (int i = 0; i < b->nq; i++) {
        ptrdiff_t row = row_at(a, b->h, b->q + i);
        float lse = a->lse[row];
        float delta = a->delta[row];
        float *s = b->s + i * BK;
        float *ds = b->ds + i * BK;
        for (int j = 0; j < b->nk; j += VL) {
            vec p = vec_exp(vload(s + j) - lse);
            vstore(s + j, p);
            vstore(ds + j, p * (vload(ds + j) - delta));
        }
    }
}

/* dq = scale * ds . k */
static void attention_dq_block(const struct attention *a, struct block b) {
    int last = end_of_keys(a, b.q, b.nq);
    int accumulate = 0;
    attention_delta(a, a->dout, q_at(a, b.h, b.q), q_stride(a), b.h, b.q, b.nq);
    for (b.k = 0; (b.nk = next_keys(a, &b.k, b.q, last)) > 0; b.k += b.nk) {
        attention_scores_backward(a, &b);
        struct rows k = key_rows(a, &b, a->k, b.wide_b);
        gemm(b.sums[0], a->C, b.ds, BK, 1, k.p, k.stride, 0, b.nq, a->C, b.nk, a->scale, accumulate, b.pack);
        accumulate = 1;
    }
    for (int i = 0; i < b.nq; i++)
        store_scaled(a->dq, q_at(a, b.h, b.q + i), b.sums[0] + i * a->C, 1.0f, a->C);
}

static void attention_dq_task(void *arg, int task, int thread) {
    const struct attention *a = arg;
    struct block b = query_block(a, task, thread);
    for (int end = min_int(b.q + a->block, a->T), q = next_block(a, b.q); q < end; q += b.nq) {
        b.q = q;
        b.nq = block_tokens(a, q);
        attention_dq_block(a, b);
    }
}

/* dk = scale * ds^T . q and dv = s^T . dout, summed over the heads that share the keys and the queries that see them */
static void attention_dkv_block(const struct attention *a, struct block b) {
    int accumulate = 0;
    int group = a->H / a->G;
    for (b.h = b.g * group; b.h < (b.g + 1) * group; b.h++)
        for (b.q = first_query(a, b.k); b.q < a->end[b.k]; b.q += b.nq) {
            b.nq = block_tokens(a, b.q);
            if (out_of_sight(a, b.q, b.nq, b.k, b.nk))
                continue;
            attention_scores_backward(a, &b);
            struct rows q = query_rows(a, &b, a->q, b.wide_b);
            gemm(b.sums[0], a->C, b.ds, 1, BK, q.p, q.stride, 0, b.nk, a->C, b.nq, a->scale, accumulate, b.pack);
            struct rows dout = query_rows(a, &b, a->dout, b.wide_b);
            gemm(b.sums[1], a->C, b.s, 1, BK, dout.p, dout.stride, 0, b.nk, a->C, b.nq, 1.0f, accumulate, b.pack);
            accumulate = 1;
        }
    if (!accumulate) /* keys before the queries, that none of them sees */
        memset(b.sums[0], 0, 2 * sizeof(float) * BLOCK_FLOATS);
    for (int i = 0; i < b.nk; i++) {
        store_scaled(a->dk, k_at(a, b.g, b.k + i), b.sums[0] + i * a->C, 1.0f, a->C);
        store_scaled(a->dv, k_at(a, b.g, b.k + i), b.sums[1] + i * a->C, 1.0f, a->C);
    }
}

static void attention_dkv_task(void *arg, int task, int thread) {
    const struct attention *a = arg;
    struct block b = new_block(a, thread);
    int begin = task / a->G * a->block;
    b.g = task % a->G;
    for (b.k = next_block(a, begin); b.k < min_int(begin + a->block, a->T); b.k += b.nk) {
        b.nk = block_tokens(a, b.k);
        attention_dkv_block(a, b);
    }
}

static void attention_backward_float(struct attention *a) {
    et_parallel(a->ctx, attention_dq_task, a, query_blocks(a) * a->H);
    et_parallel(a->ctx, attention_dkv_task, a, ceil_div(a->T, a->block) * a->G);
}
