/* Head and loss, fused: logits exist for `chunk` tokens at a time, and become their gradient where they stand. */

struct head_args {
    float *logp, *logits; /* of this chunk: logp [T], logits [T, V] */
    int32_t *best;        /* [T] or NULL */
    const int32_t *targets;
    const float *a;
    int V;
};

static inline float row_max(const float *z, int n) {
    vec max = splat(-INFINITY);
    int i = 0;
    for (; i + VL <= n; i += VL) {
        vec x = vload(z + i);
        max = blend(x > max, x, max);
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

/* sum of exp(z - max); in double between runs, as vocabularies are long */
static inline double row_sum_exp(const float *z, float max, int n) {
    double total = 0.0;
    for (int begin = 0; begin < n; begin += RUN) {
        int end = min_int(begin + RUN, n), i = begin;
        vec sum = {0};
        for (; i + VL <= end; i += VL)
            sum += vec_exp(vload(z + i) - max);
        total += lanes_sum(sum);
        for (; i < end; i++)
            total += vec_exp(splat(z[i] - max))[0];
    }
    return total;
}

static void head_forward_task(void *arg, int task, int thread) {
    (void)thread;
    const struct head_args *h = arg;
    const float *z = h->logits + (ptrdiff_t)task * h->V;
    float max = row_max(z, h->V);
    h->logp[task] = (float)((double)(z[h->targets[task]] - max) - log(row_sum_exp(z, max, h->V)));
    if (h->best)
        h->best[task] = row_best(z, max, h->V);
}

/* logp [T] = log softmax(h [T, D] . w [V, D]^T)[targets], best [T] = arg max; logits [chunk, V] is work space. */
static void head_forward(et_context *ctx, float *logp, int32_t *best, float *logits, const float *h, const void *w,
                         int format, const int32_t *targets, int chunk, int T, int V, int D) {
    for (int t = 0; t < T; t += chunk) {
        int n = min_int(chunk, T - t);
        struct head_args args = {logp + t, logits, best ? best + t : NULL, targets + t, NULL, V};
        matmul_forward(ctx, (et_array){logits, ET_F32}, (et_array){(void *)(h + (ptrdiff_t)t * D), ET_F32}, w, format, NULL,
                       NULL, 1.0f, 0, n, V, D, 0);
        et_parallel(ctx, head_forward_task, &args, n);
    }
}

static void head_backward_task(void *arg, int task, int thread) {
    (void)thread;
    const struct head_args *h = arg;
    float *z = h->logits + (ptrdiff_t)task * h->V, a = h->a[task];
    int target = h->targets[task];
    float max = row_max(z, h->V);
    double sum = row_sum_exp(z, max, h->V);
    float weight = (float)(a / sum);
    h->logp[task] = (float)((double)(z[target] - max) - log(sum));
    for (int i = 0; i < h->V; i += VL)
        vstore_part(z + i, vec_exp(vload_part(z + i, h->V - i) - max) * weight, h->V - i);
    /* a (p - 1) from logp: no cancellation where p is near 1 */
    z[target] = a * expm1f(h->logp[task]);
}

/* dh [T, D] = a_t (softmax(z_t) - onehot(target_t)) . w; logp as forward. */
static void head_backward(et_context *ctx, float *dh, float *logp, float *logits, const float *h, const void *w,
                          int format, const int32_t *targets, const float *a, int chunk, int T, int V, int D) {
    for (int t = 0; t < T; t += chunk) {
        int n = min_int(chunk, T - t);
        struct head_args args = {logp + t, logits, NULL, targets + t, a + t, V};
        matmul_forward(ctx, (et_array){logits, ET_F32}, (et_array){(void *)(h + (ptrdiff_t)t * D), ET_F32}, w, format, NULL,
                       NULL, 1.0f, 0, n, V, D, 0);
        et_parallel(ctx, head_backward_task, &args, n);
        matmul_backward(ctx, (et_array){dh + (ptrdiff_t)t * D, ET_F32}, (et_array){logits, ET_F32}, w, format, NULL, NULL,
                        1.0f, 0, n, V, D, 0);
    }
}
