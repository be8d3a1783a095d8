/* Head and loss, fused, over a block of the vocabulary at a time: logits exist for `block` entries, and backward goes
 * over them once, as attention forward does over its keys (Milakov & Gimelshein 2018). With p the probability of the
 * target t,
 *
 *   dh = a (sum_v p_v w_v - w_t) = a (1 - p) (sum_{v != t} e_v w_v / sum_{v != t} e_v - w_t),    e_v = exp(z_v - max),
 *
 * and the right side, unlike the middle, cancels nothing where p is near 1, so e may be bf16. Where logits are capped,
 * each w_v comes with the slope of its cap. */

struct head_state { /* of a token: of all logits but the target's so far, their maximum and sum of exp(z - max) */
    float max, sum, target, best;
};
_Static_assert(sizeof(struct head_state) == ET_HEAD_STATE * sizeof(float), "as et.h says");

struct head_args {
    float *logp, *logits, *dh; /* logits [T, n]; dh NULL in forward */
    et_array e;                /* [T, n] */
    struct head_state *state;
    int32_t *best; /* or NULL */
    const int32_t *targets;
    const float *a;
    et_context *ctx;
    const void *w;
    int format, first, n, D; /* the block's first entry of the vocabulary, and its entries */
    float cap;               /* of logits: z becomes cap tanh(z / cap), whose slope is 1 - (that / cap)^2; 0: none */
};

/* z [n] = cap tanh(z / cap) */
static inline void cap_row(float *z, float cap, int n) {
    for (int i = 0; i < n; i += VL) {
        vec x = vload_part(z + i, n - i);
        vec size = blend(x < 0.0f, -x, x);
        vec e = vec_exp(size * (-2.0f / cap)); /* at most 1 */
        vec y = cap * ((1.0f - e) / (1.0f + e));
        vstore_part(z + i, blend(x < 0.0f, -y, y), n - i);
    }
}

static inline float row_max(const float *z, int n) {
    vec max = splat(-INFINITY);
    int i = 0;
    for (; i + VL <= n; i += VL) {
        vec x = vload(z + i);
        max = vec_max(max, x);
    }
    float highest = lanes_max(max);
    for (; i < n; i++)
        highest = z[i] > highest ? z[i] : highest;
    return highest;
}

enum { RUN = 64 * VL }; /* values between two looks */

/* The first place of the highest value; 0 when none is, because of NaN. */
static inline int32_t row_best(const float *z, float highest, int n) {
    for (int begin = 0; begin < n; begin += RUN) {
        int end = min_int(begin + RUN, n);
        if (row_max(z + begin, end - begin) == highest)
            for (int i = begin; i < end; i++)
                if (z[i] == highest)
                    return i;
    }
    return 0;
}

/* What row_exp keeps. */
enum { NO_EXP, EXP, EXP_OF_CAPPED };

/* Returns exp(z - max) of n <= VL logits from i on, and zeros; e is that, if wanted, times the slope of a cap. */
INLINE vec some_exp(et_array e, const float *z, float max, float cap, int64_t i, int64_t n, const int keep) {
    vec x = vec_exp(vload_part(z + i, n) - max);
    if (keep == EXP)
        store_part(e, i, x, n);
    if (keep == EXP_OF_CAPPED) {
        vec part = vload_part(z + i, n) * (1.0f / cap);
        store_part(e, i, x * vec_max(1.0f - part * part, splat(0.0f)), n);
    }
    return first_lanes(x, n);
}

/* The same of n; returns the sum of exp(z - max): in double between runs, as vocabularies are long. */
INLINE double row_exp(et_array e, const float *z, float max, float cap, int n, const int keep) {
    double total = 0.0;
    for (int begin = 0; begin < n; begin += RUN) {
        vec sum = {0};
        EACH_VECTOR(i, part, begin, min_int(begin + RUN, n), sum += some_exp(e, z, max, cap, i, part, keep));
        total += lanes_sum(sum);
    }
    return total;
}

/* Row `task` of a block: takes the target's logit out, and brings maximum and sum on. */
static void head_block_task(void *arg, int task, int thread) {
    (void)thread;
    const struct head_args *h = arg;
    struct head_state *s = &h->state[task];
    float *z = h->logits + (ptrdiff_t)task * h->n;
    if (h->cap > 0)
        cap_row(z, h->cap, h->n);
    float most = row_max(z, h->n);
    int target = h->targets[task] - h->first;
    if (h->best && (h->first == 0 || most > s->best)) {
        h->best[task] = h->first + row_best(z, most, h->n);
        s->best = most;
    }
    if (target >= 0 && target < h->n) {
        s->target = z[target];
        z[target] = -INFINITY;
        most = s->target == most ? row_max(z, h->n) : most;
    }
    float max = most > s->max ? most : s->max;
    float base = max == -INFINITY ? 0.0f : max;
    float factor = s->max == -INFINITY ? 0.0f : expf(s->max - base);
    et_array e = array_at(h->e, (int64_t)task * h->n);
    double sum = !h->dh             ? row_exp(e, z, base, 0, h->n, NO_EXP)
                 : h->cap > 0       ? row_exp(e, z, base, h->cap, h->n, EXP_OF_CAPPED)
                 : e.type == ET_F32 ? row_exp((et_array){e.data, ET_F32}, z, base, 0, h->n, EXP)
                                    : row_exp((et_array){e.data, ET_BF16}, z, base, 0, h->n, EXP);
    if (h->dh && factor != 1.0f && h->first)
        scale_row(h->dh + (ptrdiff_t)task * h->D, factor, h->D);
    s->sum = (float)(s->sum * factor + sum);
    s->max = max;
}

/* logp, and from what dh has summed up, dh */
static void head_end_task(void *arg, int task, int thread) {
    const struct head_args *h = arg;
    struct head_state s = h->state[task];
    double ahead = s.target - (s.max + log((double)s.sum)); /* of all others; no others: infinitely far */
    h->logp[task] = (float)(ahead > 0 ? -log1p(exp(-ahead)) : ahead - log1p(exp(ahead)));
    if (!h->dh || !h->a)
        return;
    float *dh = h->dh + (ptrdiff_t)task * h->D;
    float *w = et_scratch(h->ctx, thread);
    float a = (float)(h->a[task] / (1 + exp(ahead)));
    float each = s.sum != 0 ? a / s.sum : 0;
    if (h->cap > 0)
        a *= 1 - s.target / h->cap * (s.target / h->cap);
    unpack(w, h->w, h->format, (int64_t)h->targets[task] * h->D, h->D);
    for (int i = 0; i < h->D; i += VL)
        vstore_part(dh + i, vload_part(dh + i, h->D - i) * each - vload_part(w + i, h->D - i) * a, h->D - i);
}

/* Entries at a time, so that logits stay in a core's cache from one product to the next. In ET_EXACT the caller's block
 * is the order of sums. */
enum { HEAD_BLOCK = 512 };

/* Entries begin .. end - 1, the first of all with begin = 0, the last with end = V. Backward multiplies in what forward
 * does: in ET_FAST not in bytes, for rounded to these, what the many unlikely entries add up to would be lost. */
static void head(et_context *ctx, struct head_args *args, et_array h, int block, int begin, int end, int T, int V,
                 int D) {
    int64_t row_bytes = (int64_t)D / format_block(args->format) * format_bytes(args->format);
    const enum et_precision precision = et_precision(ctx);
    if (precision != ET_EXACT && block > HEAD_BLOCK)
        block = HEAD_BLOCK;
    for (int t = 0; t < T && begin == 0; t++)
        args->state[t] = (struct head_state){-INFINITY, 0, 0, -INFINITY};
    for (args->first = begin; args->first < end; args->first += block) {
        const char *w = (const char *)args->w + args->first * row_bytes;
        args->n = min_int(block, end - args->first);
        matmul_forward(ctx, (et_array){args->logits, ET_F32}, h, w, args->format, NULL, NULL, 1.0f, 0, T, args->n, D,
                       0);
        et_parallel(ctx, head_block_task, args, T);
        if (args->dh)
            backward_product(ctx, product_kernel(precision, OF_HEAD, args->format, args->n),
                             (et_array){args->dh, ET_F32}, args->e, w, args->format, NULL, NULL, 1.0f, args->first > 0,
                             T, args->n, D, 0);
    }
    if (end == V)
        et_parallel(ctx, head_end_task, args, T);
}

/* logp [T] = log softmax(h [T, D] . w [V, D]^T)[targets], best [T] = arg max; logits [T, block], state: work space. */
static void head_forward(et_context *ctx, float *logp, int32_t *best, float *logits, float *state, et_array h,
                         const void *w, int format, const int32_t *targets, float cap, int block, int begin, int end,
                         int T, int V, int D) {
    struct head_args args = {.ctx = ctx,
                             .logp = logp,
                             .logits = logits,
                             .state = (struct head_state *)state,
                             .best = best,
                             .targets = targets,
                             .w = w,
                             .format = format,
                             .D = D,
                             .cap = cap};
    head(ctx, &args, h, block, begin, end, T, V, D);
}

/* dh [T, D] = a_t (softmax(z_t) - onehot(target_t)) . w, or with a NULL what a later end makes it from; logp as forward;
 * e [T, block] may be logits. */
static void head_backward(et_context *ctx, float *dh, float *logp, float *logits, et_array e, float *state, et_array h,
                          const void *w, int format, const int32_t *targets, const float *a, float cap, int block,
                          int begin, int end, int T, int V, int D) {
    struct head_args args = {.ctx = ctx,
                             .dh = dh,
                             .logp = logp,
                             .logits = logits,
                             .e = e,
                             .targets = targets,
                             .a = a,
                             .state = (struct head_state *)state,
                             .w = w,
                             .format = format,
                             .D = D,
                             .cap = cap};
    head(ctx, &args, h, block, begin, end, T, V, D);
}
