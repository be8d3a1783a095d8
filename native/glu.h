/* The gated activations of an MLP: out = act(gate) * up, act SiLU (SwiGLU) or GELU (GeGLU), tanh-approximated or, as
 * GLU_ERF, exact (gelu.h). The first two are x * sigmoid(z): z = x for SiLU; z = 2 sqrt(2/pi) (x + 0.044715 x^3) for
 * GELU, as (1 + tanh u) / 2 is sigmoid(2u). GLU_SIGMOID is sigmoid(x) alone. */

enum { GLU_SILU = 0, GLU_GELU = 1, GLU_ERF = 2, GLU_SIGMOID = 3 };

struct gate {
    vec x;             /* the gate, or its floor */
    vec sigmoid, rest; /* sigmoid(z) and sigmoid(-z), each accurate where it is small */
    vec slope;         /* dz/dx */
};

/* The floor is where act(x) has come within 2e-33 of 0: a little below, the reciprocal of e^-z would be a denormal.
 * GELU's sigmoid is flat in float above 16: x^3 is taken there, so that it cannot overflow to inf * 0. */
INLINE struct gate gate(vec x, const int kind) {
    struct gate g = {.x = vec_max(x, splat(kind == GLU_SILU ? -80.0f : -9.65f)), .slope = splat(1.0f)};
    vec z = g.x;
    if (kind == GLU_GELU) {
        vec near = vec_min(g.x, splat(16.0f));
        vec square = near * near;
        g.slope = 1.5957691216f + 0.2140698642f * square;
        z = near * (1.5957691216f + 0.0713562874f * square);
    }
    vec e = exp_below_88(-z);
    g.sigmoid = reciprocal(1.0f + e);
    g.rest = e * g.sigmoid;
    return g;
}

struct glu_args {
    et_array out, gate, up;
    int kind;
    int64_t n;
};

INLINE void glu_forward_values(struct glu_args a, struct range r) {
    if (a.kind == GLU_ERF) {
        EACH_VECTOR(i, n, r.begin, r.end, {
            vec x = load_part(a.gate, i, n);
            store_part(a.out, i, x * gelu_parts(x).phi * load_part(a.up, i, n), n);
        });
        return;
    }
    if (a.kind == GLU_SIGMOID) {
        EACH_VECTOR(i, n, r.begin, r.end, {
            struct gate g = gate(load_part(a.gate, i, n), GLU_SILU);
            store_part(a.out, i, g.sigmoid * load_part(a.up, i, n), n);
        });
        return;
    }
    EACH_VECTOR(i, n, r.begin, r.end, {
        struct gate g = gate(load_part(a.gate, i, n), a.kind);
        store_part(a.out, i, g.x * g.sigmoid * load_part(a.up, i, n), n);
    });
}

static void glu_forward_task(void *arg, int task, int thread) {
    (void)thread;
    struct glu_args a = *(const struct glu_args *)arg;
    struct range r = task_values(task, a.n);
    if (a.gate.type == a.out.type && a.up.type == a.out.type)
        EITHER(a.out, a.gate.type = a.up.type = a.out.type, glu_forward_values(a, r));
    else
        glu_forward_values(a, r);
}

/* out [n] = act(gate) * up */
static void glu_forward(et_context *ctx, et_array out, et_array gate, et_array up, int kind, int64_t n) {
    struct glu_args a = {out, gate, up, kind, n};
    et_parallel(ctx, glu_forward_task, &a, value_tasks(n));
}

struct glu_backward_args {
    et_array dgate, dup, act, dout, gate, up;
    int kind;
    int64_t n;
};

INLINE void glu_erf_backward_values(struct glu_backward_args a, struct range r) {
    EACH_VECTOR(i, n, r.begin, r.end, {
        vec dout = load_part(a.dout, i, n);
        vec up = load_part(a.up, i, n);
        vec x = load_part(a.gate, i, n);
        struct gelu_parts g = gelu_parts(x);
        vec act = x * g.phi;
        store_part(a.act, i, act * up, n);
        store_part(a.dgate, i, dout * up * (g.phi + g.rise), n);
        store_part(a.dup, i, dout * act, n);
    });
}

INLINE void glu_sigmoid_backward_values(struct glu_backward_args a, struct range r) {
    EACH_VECTOR(i, n, r.begin, r.end, {
        vec push = load_part(a.dout, i, n);
        vec up = load_part(a.up, i, n);
        struct gate g = gate(load_part(a.gate, i, n), GLU_SILU);
        push *= g.sigmoid;
        store_part(a.act, i, g.sigmoid * up, n);
        store_part(a.dgate, i, push * up * g.rest, n);
        store_part(a.dup, i, push, n);
    });
}

INLINE void glu_backward_values(struct glu_backward_args a, struct range r) {
    if (a.kind == GLU_ERF) {
        glu_erf_backward_values(a, r);
        return;
    }
    if (a.kind == GLU_SIGMOID) {
        glu_sigmoid_backward_values(a, r);
        return;
    }
    EACH_VECTOR(i, n, r.begin, r.end, {
        vec dout = load_part(a.dout, i, n);
        vec up = load_part(a.up, i, n);
        struct gate g = gate(load_part(a.gate, i, n), a.kind);
        vec push = dout * g.sigmoid;
        store_part(a.act, i, g.x * g.sigmoid * up, n);
        store_part(a.dgate, i, push * up * (1.0f + g.x * g.rest * g.slope), n);
        store_part(a.dup, i, push * g.x, n);
    });
}

static void glu_backward_task(void *arg, int task, int thread) {
    (void)thread;
    struct glu_backward_args a = *(const struct glu_backward_args *)arg;
    struct range r = task_values(task, a.n);
    int type = a.dout.type;
    if (a.dgate.type == type && a.dup.type == type && a.act.type == type && a.gate.type == type && a.up.type == type)
        EITHER(a.dout, a.dgate.type = a.dup.type = a.act.type = a.gate.type = a.up.type = a.dout.type,
               glu_backward_values(a, r));
    else
        glu_backward_values(a, r);
}

/* dgate = dout * up * act'(gate), dup = dout * act(gate), act = what forward gave */
static void glu_backward(et_context *ctx, et_array dgate, et_array dup, et_array act, et_array dout, et_array gate,
                         et_array up, int kind, int64_t n) {
    struct glu_backward_args a = {dgate, dup, act, dout, gate, up, kind, n};
    et_parallel(ctx, glu_backward_task, &a, value_tasks(n));
}
