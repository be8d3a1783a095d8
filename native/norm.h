/* RMSNorm (Zhang & Sennrich 2019) over rows of any width D: hidden states, and heads when QK norm is on.
 * The weight is frozen, so backward has one output. */

struct rmsnorm_args {
    float *out, *rstd;
    const float *inp, *weight;
    float eps;
    int64_t rows, D;
};

static void rmsnorm_forward_task(void *arg, int task, int thread) {
    (void)thread;
    const struct rmsnorm_args *a = arg;
    struct range rows = task_rows(task, a->rows, a->D);
    int64_t D = a->D;
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const float *inp = a->inp + r * D;
        float *out = a->out + r * D;
        float rstd = 1.0f / sqrtf(dot(inp, inp, D) / (float)D + a->eps);
        a->rstd[r] = rstd;
        for (int64_t i = 0; i < D; i += VL)
            vstore_part(out + i, vload_part(inp + i, D - i) * rstd * vload_part(a->weight + i, D - i), D - i);
    }
}

/* out [rows, D] = inp * rstd * weight [D], rstd [rows] = 1 / sqrt(mean(inp^2) + eps) */
static void rmsnorm_forward(et_context *ctx, float *out, float *rstd, const float *inp, const float *weight, float eps,
                            int64_t rows, int D) {
    struct rmsnorm_args a = {out, rstd, inp, weight, eps, rows, D};
    et_parallel(ctx, rmsnorm_forward_task, &a, row_tasks(rows, D));
}

struct rmsnorm_backward_args {
    float *dinp;
    const float *dout, *inp, *weight, *rstd;
    int accumulate;
    int64_t rows, D;
};

/* sum of a * b * c over n values */
static inline float dot3(const float *a, const float *b, const float *c, int64_t n) {
    vec sum = {0};
    for (int64_t i = 0; i < n; i += VL)
        sum += vload_part(a + i, n - i) * vload_part(b + i, n - i) * vload_part(c + i, n - i);
    return lanes_sum(sum);
}

static void rmsnorm_backward_task(void *arg, int task, int thread) {
    (void)thread;
    const struct rmsnorm_backward_args *a = arg;
    struct range rows = task_rows(task, a->rows, a->D);
    int64_t D = a->D;
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const float *dout = a->dout + r * D, *inp = a->inp + r * D;
        float *dinp = a->dinp + r * D;
        float rstd = a->rstd[r];
        float pull = dot3(dout, a->weight, inp, D) / (float)D * rstd * rstd;
        for (int64_t i = 0; i < D; i += VL) {
            vec d = vload_part(dout + i, D - i) * vload_part(a->weight + i, D - i) - vload_part(inp + i, D - i) * pull;
            d *= rstd;
            if (a->accumulate)
                d += vload_part(dinp + i, D - i);
            vstore_part(dinp + i, d, D - i);
        }
    }
}

/* dinp [rows, D] (accumulate: +)= rstd * (dout * weight - inp * rstd^2 * mean(dout * weight * inp)) */
static void rmsnorm_backward(et_context *ctx, float *dinp, const float *dout, const float *inp, const float *weight,
                             const float *rstd, int accumulate, int64_t rows, int D) {
    struct rmsnorm_backward_args a = {dinp, dout, inp, weight, rstd, accumulate, rows, D};
    et_parallel(ctx, rmsnorm_backward_task, &a, row_tasks(rows, D));
}
