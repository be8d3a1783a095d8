/* RMSNorm (Zhang & Sennrich 2019) over rows of any width D: hidden states, and heads when QK norm is on.
 * The weight is frozen, so backward has one output. */

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
