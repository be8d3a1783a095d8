/* GELU without a gate, as it is defined (Hendrycks & Gimpel 2016): x Phi(x), Phi(x) = (1 + erf(x / sqrt(2))) / 2.
 * erfc by Hastings's rational approximation (Abramowitz & Stegun 7.1.26), within 1.5e-7; the e^(-x^2 / 2) in it is the
 * slope's, too. */

struct gelu_parts {
    vec phi, rise; /* Phi(x), and x times its slope */
};

INLINE struct gelu_parts gelu_parts(vec x) {
    vec size = blend(x < 0.0f, -x, x);
    vec e = exp_below_88(-0.5f * x * x);
    vec t = reciprocal(1.0f + 0.23164189f * size);
    vec p = 0.5307027145f * t - 0.7265760135f;
    p = p * t + 0.7107068705f;
    p = p * t - 0.142248368f;
    p = p * t + 0.127414796f;
    vec tail = p * t * e;
    return (struct gelu_parts){blend(x < 0.0f, tail, 1.0f - tail), x * 0.3989422804f * e};
}

struct gelu_args {
    et_array out, inp;
    int64_t n;
};

INLINE void gelu_forward_values(struct gelu_args a, struct range r) {
    EACH_VECTOR(i, n, r.begin, r.end, {
        vec x = load_part(a.inp, i, n);
        store_part(a.out, i, x * gelu_parts(x).phi, n);
    });
}

static void gelu_forward_task(void *arg, int task, int thread) {
    (void)thread;
    struct gelu_args a = *(const struct gelu_args *)arg;
    struct range r = task_values(task, a.n);
    EITHER(a.out, EITHER(a.inp, gelu_forward_values(a, r)));
}

/* out [n] = inp * Phi(inp) */
static void gelu_forward(et_context *ctx, et_array out, et_array inp, int64_t n) {
    struct gelu_args a = {out, inp, n};
    et_parallel(ctx, gelu_forward_task, &a, value_tasks(n));
}

struct gelu_backward_args {
    et_array dinp, act, dout, inp;
    int64_t n;
};

INLINE void gelu_backward_values(struct gelu_backward_args a, struct range r) {
    EACH_VECTOR(i, n, r.begin, r.end, {
        vec dout = load_part(a.dout, i, n);
        vec x = load_part(a.inp, i, n);
        struct gelu_parts g = gelu_parts(x);
        store_part(a.act, i, x * g.phi, n);
        store_part(a.dinp, i, dout * (g.phi + g.rise), n);
    });
}

static void gelu_backward_task(void *arg, int task, int thread) {
    (void)thread;
    struct gelu_backward_args a = *(const struct gelu_backward_args *)arg;
    struct range r = task_values(task, a.n);
    int type = a.dout.type;
    if (a.dinp.type == type && a.act.type == type && a.inp.type == type)
        EITHER(a.dout, a.dinp.type = a.act.type = a.inp.type = a.dout.type, gelu_backward_values(a, r));
    else
        gelu_backward_values(a, r);
}

/* dinp = dout * (Phi(inp) + inp * Phi'(inp)), act = what forward gave */
static void gelu_backward(et_context *ctx, et_array dinp, et_array act, et_array dout, et_array inp, int64_t n) {
    struct gelu_backward_args a = {dinp, act, dout, inp, n};
    et_parallel(ctx, gelu_backward_task, &a, value_tasks(n));
}
