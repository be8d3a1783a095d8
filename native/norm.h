/* RMSNorm (Zhang & Sennrich 2019) and LayerNorm (Ba et al. 2016) over rows of any width D: hidden states, and heads
 * when QK norm is on. Weights are frozen, so backward has one output. */

struct rmsnorm_args {
    et_array out, inp;
    float *rstd;
    const float *weight;
    float eps;
    int64_t rows, D;
};

INLINE void rmsnorm_rows(struct rmsnorm_args a, struct range rows) {
    for (int64_t r = rows.begin; r < rows.end; r++) {
        et_array out = array_at(a.out, r * a.D);
        et_array inp = array_at(a.inp, r * a.D);
        vec sum = {0};
        EACH_VECTOR(i, n, 0, a.D, {
            vec x = load_part(inp, i, n);
            sum += x * x;
        });
        float rstd = 1.0f / sqrtf(lanes_sum(sum) / (float)a.D + a.eps);
        a.rstd[r] = rstd;
        EACH_VECTOR(i, n, 0, a.D, store_part(out, i, load_part(inp, i, n) * rstd * vload_part(a.weight + i, n), n));
    }
}

static void rmsnorm_forward_task(void *arg, int task, int thread) {
    (void)thread;
    struct rmsnorm_args a = *(const struct rmsnorm_args *)arg;
    struct range rows = task_rows(task, a.rows, a.D);
    EITHER(a.out, EITHER(a.inp, rmsnorm_rows(a, rows)));
}

/* out [rows, D] = inp * rstd * weight [D], rstd [rows] = 1 / sqrt(mean(inp^2) + eps) */
static void rmsnorm_forward(et_context *ctx, et_array out, float *rstd, et_array inp, const float *weight, float eps,
                            int64_t rows, int D) {
    struct rmsnorm_args a = {out, inp, rstd, weight, eps, rows, D};
    et_parallel(ctx, rmsnorm_forward_task, &a, row_tasks(rows, D));
}

struct rmsnorm_backward_args {
    et_array dinp, dout, inp;
    const float *weight, *rstd;
    int accumulate;
    int64_t rows, D;
};

INLINE void rmsnorm_backward_rows(struct rmsnorm_backward_args a, struct range rows) {
    for (int64_t r = rows.begin; r < rows.end; r++) {
        et_array dinp = array_at(a.dinp, r * a.D);
        et_array dout = array_at(a.dout, r * a.D);
        et_array inp = array_at(a.inp, r * a.D);
        vec sum = {0};
        EACH_VECTOR(i, n, 0, a.D, sum += load_part(dout, i, n) * vload_part(a.weight + i, n) * load_part(inp, i, n));
        float rstd = a.rstd[r];
        float pull = lanes_sum(sum) / (float)a.D * rstd * rstd;
        EACH_VECTOR(i, n, 0, a.D, {
            vec d = load_part(dout, i, n) * vload_part(a.weight + i, n) - load_part(inp, i, n) * pull;
            d *= rstd;
            if (a.accumulate)
                d += load_part(dinp, i, n);
            store_part(dinp, i, d, n);
        });
    }
}

static void rmsnorm_backward_task(void *arg, int task, int thread) {
    (void)thread;
    struct rmsnorm_backward_args a = *(const struct rmsnorm_backward_args *)arg;
    struct range rows = task_rows(task, a.rows, a.D);
    EITHER(a.dinp, EITHER(a.dout, EITHER(a.inp, rmsnorm_backward_rows(a, rows))));
}

/* dinp [rows, D] (accumulate: +)= rstd * (dout * weight - inp * rstd^2 * mean(dout * weight * inp)) */
static void rmsnorm_backward(et_context *ctx, et_array dinp, et_array dout, et_array inp, const float *weight,
                             const float *rstd, int accumulate, int64_t rows, int D) {
    struct rmsnorm_backward_args a = {dinp, dout, inp, weight, rstd, accumulate, rows, D};
    et_parallel(ctx, rmsnorm_backward_task, &a, row_tasks(rows, D));
}

struct layernorm_args {
    et_array out, inp;
    float *mean, *rstd;
    const float *weight, *bias;
    float eps;
    int64_t rows, D;
};

INLINE void layernorm_rows(struct layernorm_args a, struct range rows) {
    for (int64_t r = rows.begin; r < rows.end; r++) {
        et_array out = array_at(a.out, r * a.D);
        et_array inp = array_at(a.inp, r * a.D);
        vec sum = {0};
        vec square = {0};
        EACH_VECTOR(i, n, 0, a.D, sum += load_part(inp, i, n));
        float mean = lanes_sum(sum) / (float)a.D;
        EACH_VECTOR(i, n, 0, a.D, {
            vec x = first_lanes(load_part(inp, i, n) - mean, n);
            square += x * x;
        });
        float rstd = 1.0f / sqrtf(lanes_sum(square) / (float)a.D + a.eps);
        a.mean[r] = mean;
        a.rstd[r] = rstd;
        EACH_VECTOR(i, n, 0, a.D, {
            vec x = (load_part(inp, i, n) - mean) * rstd * vload_part(a.weight + i, n);
            store_part(out, i, a.bias ? x + vload_part(a.bias + i, n) : x, n);
        });
    }
}

static void layernorm_forward_task(void *arg, int task, int thread) {
    (void)thread;
    struct layernorm_args a = *(const struct layernorm_args *)arg;
    struct range rows = task_rows(task, a.rows, a.D);
    EITHER(a.out, EITHER(a.inp, layernorm_rows(a, rows)));
}

/* out [rows, D] = (inp - mean) * rstd * weight [D] + bias [D], mean, rstd [rows] */
static void layernorm_forward(et_context *ctx, et_array out, float *mean, float *rstd, et_array inp,
                              const float *weight, const float *bias, float eps, int64_t rows, int D) {
    struct layernorm_args a = {out, inp, mean, rstd, weight, bias, eps, rows, D};
    et_parallel(ctx, layernorm_forward_task, &a, row_tasks(rows, D));
}

struct layernorm_backward_args {
    et_array dinp, dout, inp;
    const float *weight, *mean, *rstd;
    int accumulate;
    int64_t rows, D;
};

INLINE void layernorm_backward_rows(struct layernorm_backward_args a, struct range rows) {
    for (int64_t r = rows.begin; r < rows.end; r++) {
        et_array dinp = array_at(a.dinp, r * a.D);
        et_array dout = array_at(a.dout, r * a.D);
        et_array inp = array_at(a.inp, r * a.D);
        float mean = a.mean[r];
        float rstd = a.rstd[r];
        vec sum = {0};
        vec pull = {0};
        EACH_VECTOR(i, n, 0, a.D, {
            vec d = load_part(dout, i, n) * vload_part(a.weight + i, n);
            sum += d;
            pull += d * (load_part(inp, i, n) - mean);
        });
        float mean_d = lanes_sum(sum) / (float)a.D;
        float slope = lanes_sum(pull) / (float)a.D * rstd * rstd;
        EACH_VECTOR(i, n, 0, a.D, {
            vec d = load_part(dout, i, n) * vload_part(a.weight + i, n);
            d = rstd * (d - mean_d - (load_part(inp, i, n) - mean) * slope);
            if (a.accumulate)
                d += load_part(dinp, i, n);
            store_part(dinp, i, d, n);
        });
    }
}

static void layernorm_backward_task(void *arg, int task, int thread) {
    (void)thread;
    struct layernorm_backward_args a = *(const struct layernorm_backward_args *)arg;
    struct range rows = task_rows(task, a.rows, a.D);
    EITHER(a.dinp, EITHER(a.dout, EITHER(a.inp, layernorm_backward_rows(a, rows))));
}

/* dinp [rows, D] (accumulate: +)= rstd * (d - mean(d) - x * rstd^2 * mean(d * x)), d = dout * weight, x = inp - mean */
static void layernorm_backward(et_context *ctx, et_array dinp, et_array dout, et_array inp, const float *weight,
                               const float *mean, const float *rstd, int accumulate, int64_t rows, int D) {
    struct layernorm_backward_args a = {dinp, dout, inp, weight, mean, rstd, accumulate, rows, D};
    et_parallel(ctx, layernorm_backward_task, &a, row_tasks(rows, D));
}
