/* Causal convolutions of each channel over the last L tokens of a document. before[t] is the token before t in its
 * document, -1 where none is: a branch begins from its parent's tokens.
 *
 * The gated short convolution of LFM2: a token's out = c * sum over j < L of w_j (b * x)[j tokens before], a channel at
 * a time. inp holds b, c and x of each token, [T, 3 D].
 *
 * The convolution before a state: out = SiLU(bias + sum over j < L of w_j inp[j tokens before]), of the D channels of
 * inp [T, W] from `first` on. */

/* Channels of a task of backward: as many as let rows of them be read in one go, and each thread have a task. */
static int conv_block(et_context *ctx, int D) {
    int share = ceil_div(D, et_threads(ctx) * VL) * VL;
    return max_int(min_int(share, 32 * VL), 4 * VL);
}

/* bias: of the convolution before a state; first: its first channel in rows of W. */
struct conv_args {
    et_array out, inp, dout, dinp;
    float *sums;
    const float *w, *bias; /* [L, D], [D] or NULL */
    const int32_t *before;
    int64_t T, W, D, first, L, block;
    int gated;
};

/* The tokens t, before[t], ... as at[]; their number, at most L. */
static inline int64_t conv_taps(const int32_t *before, int64_t t, int64_t L, int64_t *at) {
    int64_t n = 0;
    for (int64_t s = t; s >= 0 && n < L; s = before[s])
        at[n++] = s;
    return n;
}

/* The n channels from i on of the sum at tokens at[]. */
INLINE vec conv_sum(const struct conv_args *a, const int64_t *at, int64_t taps, int64_t i, int64_t n) {
    vec sum = {0};
    for (int64_t j = 0; j < taps; j++) {
        et_array row = array_at(a->inp, at[j] * 3 * a->D);
        sum += vload_part(a->w + j * a->D + i, n) * load_part(row, i, n) * load_part(row, 2 * a->D + i, n);
    }
    return sum;
}

INLINE void conv_forward_tokens(struct conv_args a, struct range tokens) {
    for (int64_t t = tokens.begin; t < tokens.end; t++) {
        int64_t at[ET_MAX_CONV];
        int64_t taps = conv_taps(a.before, t, a.L, at);
        et_array row = array_at(a.inp, t * 3 * a.D);
        et_array out = array_at(a.out, t * a.D);
        EACH_VECTOR(i, n, 0, a.D, store_part(out, i, load_part(row, a.D + i, n) * conv_sum(&a, at, taps, i, n), n));
    }
}

/* All tokens of the channels [begin, end): a token adds to the gradients of those before it, so no other task may. */
INLINE void conv_backward_channels(struct conv_args a, int64_t begin, int64_t end) {
    for (int64_t t = 0; t < a.T; t++)
        memset(a.sums + t * a.D + begin, 0, (size_t)(end - begin) * sizeof *a.sums);
    for (int64_t t = 0; t < a.T; t++) {
        int64_t at[ET_MAX_CONV];
        int64_t taps = conv_taps(a.before, t, a.L, at);
        et_array row = array_at(a.inp, t * 3 * a.D);
        et_array drow = array_at(a.dinp, t * 3 * a.D);
        et_array dout = array_at(a.dout, t * a.D);
        EACH_VECTOR(i, n, begin, end, {
            vec grad = load_part(dout, i, n);
            store_part(drow, a.D + i, grad * conv_sum(&a, at, taps, i, n), n);
            grad *= load_part(row, a.D + i, n);
            for (int64_t j = 0; j < taps; j++) {
                float *sum = a.sums + at[j] * a.D + i;
                vstore_part(sum, vload_part(sum, n) + grad * vload_part(a.w + j * a.D + i, n), n);
            }
        });
    }
    for (int64_t t = 0; t < a.T; t++) {
        et_array row = array_at(a.inp, t * 3 * a.D);
        et_array drow = array_at(a.dinp, t * 3 * a.D);
        EACH_VECTOR(i, n, begin, end, {
            vec grad = vload_part(a.sums + t * a.D + i, n);
            vec b = load_part(row, i, n);
            vec x = load_part(row, 2 * a.D + i, n);
            store_part(drow, i, grad * x, n);
            store_part(drow, 2 * a.D + i, grad * b, n);
        });
    }
}

/* ---- before a state ------------------------------------------------------------------------------------------------ */

/* What SiLU takes, of n channels from i on. */
INLINE vec causal_conv_sum(const struct conv_args *a, const int64_t *at, int64_t taps, int64_t i, int64_t n) {
    vec sum = a->bias ? vload_part(a->bias + i, n) : (vec){0};
    for (int64_t j = 0; j < taps; j++)
        sum += vload_part(a->w + j * a->D + i, n) * load_part(a->inp, at[j] * a->W + a->first + i, n);
    return sum;
}

INLINE void causal_conv_forward_tokens(struct conv_args a, struct range tokens) {
    for (int64_t t = tokens.begin; t < tokens.end; t++) {
        int64_t at[ET_MAX_CONV];
        int64_t taps = conv_taps(a.before, t, a.L, at);
        EACH_VECTOR(i, n, 0, a.D, {
            struct gate g = gate(causal_conv_sum(&a, at, taps, i, n), GLU_SILU);
            store_part(a.out, t * a.D + i, g.x * g.sigmoid, n);
        });
    }
}

/* All tokens of the channels [begin, end), the last first: no token before t adds to the gradient of t, so it is whole
 * as soon as t itself has added. */
INLINE void causal_conv_backward_channels(struct conv_args a, int64_t begin, int64_t end) {
    for (int64_t t = 0; t < a.T; t++)
        memset(a.sums + t * a.D + begin, 0, (size_t)(end - begin) * sizeof *a.sums);
    for (int64_t t = a.T - 1; t >= 0; t--) {
        int64_t at[ET_MAX_CONV];
        int64_t taps = conv_taps(a.before, t, a.L, at);
        EACH_VECTOR(i, n, begin, end, {
            struct gate g = gate(causal_conv_sum(&a, at, taps, i, n), GLU_SILU);
            vec grad = load_part(a.dout, t * a.D + i, n) * g.sigmoid * (1.0f + g.x * g.rest);
            for (int64_t j = 0; j < taps; j++) {
                float *sum = a.sums + at[j] * a.D + i;
                vstore_part(sum, vload_part(sum, n) + grad * vload_part(a.w + j * a.D + i, n), n);
            }
            store_part(a.dinp, t * a.W + a.first + i, vload_part(a.sums + t * a.D + i, n), n);
        });
    }
}

/* ---- both, in either type --------------------------------------------------------------------------------------- */

INLINE void conv_forward_either(struct conv_args a, struct range tokens) {
    if (a.gated)
        conv_forward_tokens(a, tokens);
    else
        causal_conv_forward_tokens(a, tokens);
}

INLINE void conv_backward_either(struct conv_args a, int64_t begin, int64_t end) {
    if (a.gated)
        conv_backward_channels(a, begin, end);
    else
        causal_conv_backward_channels(a, begin, end);
}

static void conv_forward_task(void *arg, int task, int thread) {
    (void)thread;
    struct conv_args a = *(const struct conv_args *)arg;
    struct range tokens = task_rows(task, a.T, a.D);
    EITHER(a.inp, EITHER(a.out, conv_forward_either(a, tokens)));
}

static void conv_backward_task(void *arg, int task, int thread) {
    (void)thread;
    struct conv_args a = *(const struct conv_args *)arg;
    int64_t begin = task * a.block;
    int64_t end = begin + a.block < a.D ? begin + a.block : a.D;
    if (a.dinp.type == a.inp.type)
        EITHER(a.inp, EITHER(a.dout, a.dinp.type = a.inp.type, conv_backward_either(a, begin, end)));
    else
        conv_backward_either(a, begin, end);
}

/* out [T, D] of inp [T, 3 D] */
static void conv_forward(et_context *ctx, et_array out, et_array inp, const float *w, const int32_t *before, int T,
                         int D, int L) {
    struct conv_args a = {
        .out = out, .inp = inp, .w = w, .before = before, .T = T, .W = 3 * D, .D = D, .L = L, .gated = 1};
    et_parallel(ctx, conv_forward_task, &a, row_tasks(T, D));
}

/* dinp [T, 3 D] of dout [T, D]; sums [T, D] is work space. */
static void conv_backward(et_context *ctx, et_array dinp, float *sums, et_array dout, et_array inp, const float *w,
                          const int32_t *before, int T, int D, int L) {
    struct conv_args a = {.inp = inp,
                          .dout = dout,
                          .dinp = dinp,
                          .sums = sums,
                          .w = w,
                          .before = before,
                          .T = T,
                          .W = 3 * D,
                          .D = D,
                          .L = L,
                          .block = conv_block(ctx, D),
                          .gated = 1};
    et_parallel(ctx, conv_backward_task, &a, ceil_div(D, (int)a.block));
}

/* out [T, D] of D channels of inp [T, W] */
static void causal_conv_forward(et_context *ctx, et_array out, et_array inp, const float *w, const float *bias,
                                const int32_t *before, int first, int T, int W, int D, int L) {
    struct conv_args a = {
        .out = out, .inp = inp, .w = w, .bias = bias, .before = before, .T = T, .W = W, .D = D, .first = first, .L = L};
    et_parallel(ctx, conv_forward_task, &a, row_tasks(T, D));
}

/* Of dinp [T, W] the D channels, of dout [T, D]; sums [T, D] is work space. */
static void causal_conv_backward(et_context *ctx, et_array dinp, float *sums, et_array dout, et_array inp,
                                 const float *w, const float *bias, const int32_t *before, int first, int T, int W,
                                 int D, int L) {
    struct conv_args a = {.inp = inp,
                          .dout = dout,
                          .dinp = dinp,
                          .sums = sums,
                          .w = w,
                          .bias = bias,
                          .before = before,
                          .T = T,
                          .W = W,
                          .D = D,
                          .first = first,
                          .L = L,
                          .block = conv_block(ctx, D)};
    et_parallel(ctx, conv_backward_task, &a, ceil_div(D, (int)a.block));
}
