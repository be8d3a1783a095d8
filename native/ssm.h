/* The scan of Mamba 2 (Dao & Gu 2024). Each head has a state S [N, C], which a token changes and reads:
 *
 *   S = e^(dt a) S + B (dt x)^T,  out = S^T C + skip x,  dt = ln(1 + e^(rows + bias)).
 *
 * Tokens come in pieces (edgetune/data/packing.py). Of a piece's tokens, those that it replays first, s and t are two, u_t
 * is the sum of dt a up to t, and S is the state before the first. Then a piece is products of matrices:
 *
 *   out_t = sum over s <= t of (C_t . B_s) e^(u_t - u_s) dt_s x_s + e^(u_t) S^T C_t,
 *   S at its end = e^u S + sum over s of e^(u - u_s) B_s (dt_s x_s)^T.
 *
 * A task makes the outputs and states of a few heads, piece after piece; the scores C_t . B_s serve all heads of a group.
 * Backward makes the states again, so that none is kept from pass to pass. G being the gradient of a piece's last state,
 * D_t that of its outputs, and M_ts = (C_t . B_s) e^(u_t - u_s):
 *
 *   V_s = sum over t >= s of M_ts D_t + e^(u - u_s) G^T B_s,  dx_s = dt_s V_s + skip D_s,
 *   dscores_ts = e^(u_t - u_s) dt_s (D_t . x_s), from which dB and dC follow, with
 *   dC_t += e^(u_t) S D_t,  dB_s += e^(u - u_s) dt_s G x_s,
 *   du_t = D_t . (out_t - skip x_t) - dt_t V_t . x_t, and G . S at the end more for the last: what e^u multiplies,
 *   d(dt)_t = V_t . x_t + a (the sum of du from t on).
 *
 * First the gradients of kept states are made, from the last piece to the first; then those of all inputs of a piece.
 * Pieces that replay the same tokens are one task, which adds up what they say of these.
 *
 * What is common is here; ssm_float.h multiplies in float, ssm_bf16.h in bf16. */

enum {
    SSM_N = ET_MAX_STATE, /* of N and of C */
    SSM_HEADS = 16,       /* at most, of a task that makes states: they share B */
};

struct ssm_args {
    et_context *ctx;
    et_array out, inp, rows, dout, drows;
    float *dinp, *states, *dstates, *steps; /* steps [3, H, T]: dt, u, and the gradient of dt */
    const float *bias, *a, *skip;
    const int32_t *before, *pieces;
    int32_t *next;  /* [P]: the next piece that begins from the same state with the same token */
    int64_t floats; /* of states */
    int T, W, E, H, C, N, G, P;
    int heads;  /* of a task that makes states */
    int rounds; /* whether pieces that are long enough are multiplied in bf16 */
};

/* What a thread has of a piece, and of one head's steps in it: first in its scratch. */
struct ssm_piece {
    const struct ssm_numbers *numbers;
    float dt[ET_PIECE], u[ET_PIECE], begin[ET_PIECE], end[ET_PIECE]; /* begin: e^(u_t); end: e^(u - u_t) */
    float decay;                                                     /* of the whole piece */
    int32_t token[ET_PIECE];
    int n, replayed, source, kept;
};

/* Numbers to multiply in: what is done with a piece. */
struct ssm_numbers {
    void (*take_b)(const struct ssm_args *a, struct ssm_piece *p, int g);     /* of a group, for states */
    void (*take_c)(const struct ssm_args *a, struct ssm_piece *p, int g);     /* for their gradients */
    void (*state)(const struct ssm_args *a, struct ssm_piece *p, int h);      /* at the end of the piece */
    void (*dstate)(const struct ssm_args *a, struct ssm_piece *p, int h);     /* that it begins from: added to */
    void (*take_group)(const struct ssm_args *a, struct ssm_piece *p, int g); /* for outputs and their gradients */
    void (*forward)(const struct ssm_args *a, struct ssm_piece *p, int h);    /* outputs, and the state */
    void (*backward)(const struct ssm_args *a, struct ssm_piece *p, int h);
    void (*group_backward)(const struct ssm_args *a, struct ssm_piece *p, int g); /* dB and dC */
};

static const struct ssm_numbers *ssm_numbers(const struct ssm_args *a, int n);

/* ---- what a piece has ------------------------------------------------------------------------------------------ */

static void ssm_take_piece(const struct ssm_args *a, struct ssm_piece *p, int i) {
    const int32_t *piece = a->pieces + (ptrdiff_t)i * ET_PIECE_COLUMNS;
    p->replayed = piece[2];
    p->source = piece[3];
    p->kept = piece[4];
    p->n = p->replayed + piece[1] - piece[0];
    p->numbers = ssm_numbers(a, p->n);
    for (int t = p->replayed; t < p->n; t++)
        p->token[t] = piece[0] + t - p->replayed;
    for (int t = p->replayed - 1; t >= 0; t--)
        p->token[t] = a->before[p->token[t + 1]];
}

/* What is behind the last token is as it is itself, but has no length. */
static void ssm_take_steps(const struct ssm_args *a, struct ssm_piece *p, int h) {
    const float *dt = a->steps + (ptrdiff_t)h * a->T;
    const float *u = dt + (ptrdiff_t)a->H * a->T;
    float last = u[p->token[p->n - 1]];
    for (int i = 0; i < p->n; i++) {
        p->dt[i] = dt[p->token[i]];
        p->u[i] = u[p->token[i]];
    }
    for (int i = p->n; i < ET_PIECE; i++) {
        p->dt[i] = 0;
        p->u[i] = last;
    }
    for (int i = 0; i < ET_PIECE; i += VL) {
        vec x = vload(p->u + i);
        vstore(p->begin + i, vec_exp(x));
        vstore(p->end + i, vec_exp(last - x));
    }
    p->decay = p->begin[p->n - 1];
}

static float *ssm_state(const struct ssm_args *a, float *states, int slot, int h) {
    return states + ((int64_t)slot * a->H + h) * a->N * a->C;
}

static inline int ssm_group(const struct ssm_args *a, int h) { return h / (a->H / a->G); }

/* Where B and C of a group begin in a row of inp. */
static inline int ssm_b_at(const struct ssm_args *a, int g) { return a->H * a->C + g * a->N; }
static inline int ssm_c_at(const struct ssm_args *a, int g) { return a->H * a->C + (a->G + g) * a->N; }

/* Row i of a piece's tokens: set by the piece whose own it is, added to by those that replay it. */
static void ssm_put_row(const struct ssm_args *a, const struct ssm_piece *p, int i, int at, const float *x, int n) {
    float *out = a->dinp + (int64_t)p->token[i] * a->W + at;
    for (int j = 0; j < n; j += VL)
        vstore(out + j, i < p->replayed ? vload(out + j) + vload(x + j) : vload(x + j));
}

/* The gradients [tokens, N] of B and C of a group, to all its tokens. */
static void ssm_put_group(const struct ssm_args *a, const struct ssm_piece *p, int g, const float *db,
                          const float *dc) {
    for (int i = 0; i < p->n; i++) {
        ssm_put_row(a, p, i, ssm_b_at(a, g), db + i * a->N, a->N);
        ssm_put_row(a, p, i, ssm_c_at(a, g), dc + i * a->N, a->N);
    }
}

static void ssm_put_ddt(const struct ssm_args *a, const struct ssm_piece *p, int i, int h, float grad) {
    float *ddt = a->steps + ((ptrdiff_t)2 * a->H + h) * a->T + p->token[i];
    *ddt = i < p->replayed ? *ddt + grad : grad;
}

/* ---- dt, u ----------------------------------------------------------------------------------------------------- */

/* Column `at` of VL rows of E values, n of them. */
INLINE vec ssm_column(et_array rows, int64_t at, int64_t E, int64_t n) {
    float lanes[VL] = {0};
    for (int64_t i = 0; i < n; i++) {
        int64_t j = at + i * E;
        lanes[i] = rows.type == ET_F32 ? ((const float *)rows.data)[j]
                                       : bits_to_float((uint32_t)((const uint16_t *)rows.data)[j] << 16);
    }
    return vload(lanes);
}

/* ln(1 + e^x): the rounding of 1 + e^x is made good by what it changed. */
INLINE vec vec_softplus(vec x) {
    vec e = vec_exp(vec_min(x, splat(20.0f)));
    vec sum = 1.0f + e;
    vec log = vec_log(sum) * (e / blend(sum == 1.0f, splat(1.0f), sum - 1.0f));
    return blend(x > 20.0f, x, blend(sum == 1.0f, e, log));
}

static void ssm_steps_task(void *arg, int h, int thread) {
    (void)thread;
    struct ssm_args a = *(const struct ssm_args *)arg;
    float *dt = a.steps + (ptrdiff_t)h * a.T;
    float *u = dt + (ptrdiff_t)a.H * a.T;
    int64_t first = a.E - a.H + h;
    EITHER(a.rows,
           EACH_VECTOR(t, n, 0, a.T,
                       vstore_part(dt + t, vec_softplus(ssm_column(a.rows, t * a.E + first, a.E, n) + a.bias[h]), n)));
    for (int p = 0; p < a.P; p++) {
        const int32_t *piece = a.pieces + (ptrdiff_t)p * ET_PIECE_COLUMNS;
        float sum = piece[2] ? u[a.before[piece[0]]] : 0;
        for (int t = piece[0]; t < piece[1]; t++)
            u[t] = sum += dt[t] * a.a[h];
    }
}

#include "ssm_float.h"
#ifdef ET_BF16_PRODUCTS
#include "strips.h"
#include "ssm_bf16.h"
#define SSM_BEGIN(a, before) ((a)->rounds ? bf16_begin(before) : (void)0)
#define SSM_END(a, before) ((a)->rounds ? bf16_end(before) : (void)0)
enum { SSM_FEW = STRIP / 2 }; /* so many tokens, of one answer most of all, are multiplied sooner in float */
#else
#define SSM_BEGIN(a, before) (void)(before)
#define SSM_END(a, before) (void)(before)
#endif

/* In which a piece of n tokens is multiplied. */
static const struct ssm_numbers *ssm_numbers(const struct ssm_args *a, int n) {
#ifdef ET_BF16_PRODUCTS
    if (a->rounds && n > SSM_FEW)
        return &ssm_bf16;
#endif
    (void)a, (void)n;
    return &ssm_float;
}

/* ---- tasks ----------------------------------------------------------------------------------------------------- */

/* A few heads in one piece, whose groups are taken on the way. */
static void ssm_each_head(const struct ssm_args *a, struct ssm_piece *p, int begin, int end,
                          void (*take)(const struct ssm_args *a, struct ssm_piece *p, int g),
                          void (*each)(const struct ssm_args *a, struct ssm_piece *p, int h)) {
    for (int h = begin; h < end; h++) {
        if (h == begin || ssm_group(a, h) != ssm_group(a, h - 1))
            take(a, p, ssm_group(a, h));
        each(a, p, h);
    }
}

/* All outputs and kept states of a few heads. */
static void ssm_forward_task(void *arg, int task, int thread) {
    const struct ssm_args *a = arg;
    uint8_t before[TILE_STATE];
    struct ssm_piece *p = (struct ssm_piece *)(void *)et_scratch(a->ctx, thread);
    int begin = task * a->heads;
    int end = min_int(begin + a->heads, a->H);
    SSM_BEGIN(a, before);
    for (int i = 0; i < a->P; i++) {
        ssm_take_piece(a, p, i);
        ssm_each_head(a, p, begin, end, p->numbers->take_group, p->numbers->forward);
    }
    SSM_END(a, before);
}

/* The states alone. */
static void ssm_states_task(void *arg, int task, int thread) {
    const struct ssm_args *a = arg;
    uint8_t before[TILE_STATE];
    struct ssm_piece *p = (struct ssm_piece *)(void *)et_scratch(a->ctx, thread);
    int begin = task * a->heads;
    int end = min_int(begin + a->heads, a->H);
    SSM_BEGIN(a, before);
    for (int i = 0; i < a->P; i++) {
        ssm_take_piece(a, p, i);
        if (p->kept >= 0)
            ssm_each_head(a, p, begin, end, p->numbers->take_b, p->numbers->state);
    }
    SSM_END(a, before);
}

/* Their gradients. */
static void ssm_dstates_task(void *arg, int task, int thread) {
    const struct ssm_args *a = arg;
    uint8_t before[TILE_STATE];
    struct ssm_piece *p = (struct ssm_piece *)(void *)et_scratch(a->ctx, thread);
    int begin = task * a->heads;
    int end = min_int(begin + a->heads, a->H);
    int64_t slots = a->floats / ((int64_t)a->H * a->N * a->C);
    SSM_BEGIN(a, before);
    for (int64_t slot = 0; slot < slots; slot++)
        memset(ssm_state(a, a->dstates, (int)slot, begin), 0, (size_t)(end - begin) * a->N * a->C * sizeof(float));
    for (int i = a->P - 1; i >= 0; i--) {
        ssm_take_piece(a, p, i);
        if (p->source >= 0)
            ssm_each_head(a, p, begin, end, p->numbers->take_c, p->numbers->dstate);
    }
    SSM_END(a, before);
}

/* A piece that replays nothing, and those that replay its tokens. */
static void ssm_backward_task(void *arg, int task, int thread) {
    const struct ssm_args *a = arg;
    uint8_t before[TILE_STATE];
    struct ssm_piece *p = (struct ssm_piece *)(void *)et_scratch(a->ctx, thread);
    int heads = a->H / a->G;
    SSM_BEGIN(a, before);
    for (int i = task; i >= 0 && (i != task || !a->pieces[(ptrdiff_t)i * ET_PIECE_COLUMNS + 2]); i = a->next[i]) {
        ssm_take_piece(a, p, i);
        for (int g = 0; g < a->G; g++) {
            ssm_each_head(a, p, g * heads, (g + 1) * heads, p->numbers->take_group, p->numbers->backward);
            p->numbers->group_backward(a, p, g);
        }
    }
    SSM_END(a, before);
}

/* The gradient of the last H of E columns: that of dt, times the sigmoid of what dt is made of. */
INLINE void ssm_steps_backward_tokens(struct ssm_args a, struct range tokens) {
    const float *ddt = a.steps + (ptrdiff_t)2 * a.H * a.T;
    for (int64_t t = tokens.begin; t < tokens.end; t++) {
        int64_t at = (t + 1) * a.E - a.H;
        EACH_VECTOR(h, n, 0, a.H, {
            struct gate g = gate(load_part(a.rows, at + h, n) + vload_part(a.bias + h, n), GLU_SILU);
            store_part(a.drows, at + h, ssm_column((et_array){(float *)ddt, ET_F32}, h * a.T + t, a.T, n) * g.sigmoid,
                       n);
        });
    }
}

static void ssm_steps_backward_task(void *arg, int task, int thread) {
    (void)thread;
    struct ssm_args a = *(const struct ssm_args *)arg;
    struct range tokens = task_rows(task, a.T, a.H);
    EITHER(a.rows, EITHER(a.drows, ssm_steps_backward_tokens(a, tokens)));
}

/* next: of pieces that replay from the same token, in order. At the first token of the first, `last` [T] is the last
 * of them that is known. */
static void ssm_chain(struct ssm_args *a, int32_t *last) {
    for (int t = 0; t < a->T; t++)
        last[t] = -1;
    for (int p = 0; p < a->P; p++) {
        const int32_t *piece = a->pieces + (ptrdiff_t)p * ET_PIECE_COLUMNS;
        int32_t first = piece[0];
        for (int i = 0; i < piece[2]; i++)
            first = a->before[first];
        a->next[p] = -1;
        if (last[first] >= 0)
            a->next[last[first]] = p;
        last[first] = p;
    }
}

/* Steps, then what `task` makes of a few heads. */
static void ssm_run(struct ssm_args *a, void (*task)(void *arg, int task, int thread)) {
#ifdef ET_BF16_PRODUCTS
    a->rounds = et_precision(a->ctx) != ET_EXACT && a->C % STRIP == 0 && a->N % STRIP == 0;
#endif
    a->heads = min_int(ceil_div(a->H, et_threads(a->ctx)), SSM_HEADS);
    et_parallel(a->ctx, ssm_steps_task, a, a->H);
    et_parallel(a->ctx, task, a, ceil_div(a->H, a->heads));
}

static void ssm_forward(et_context *ctx, et_array out, float *states, float *steps, et_array inp, et_array rows,
                        const float *bias, const float *a, const float *skip, const int32_t *before,
                        const int32_t *pieces, int64_t floats, int T, int W, int E, int H, int C, int N, int P) {
    struct ssm_args args = {.ctx = ctx,
                            .out = out,
                            .states = states,
                            .steps = steps,
                            .inp = inp,
                            .rows = rows,
                            .bias = bias,
                            .a = a,
                            .skip = skip,
                            .before = before,
                            .pieces = pieces,
                            .floats = floats,
                            .T = T,
                            .W = W,
                            .E = E,
                            .H = H,
                            .C = C,
                            .N = N,
                            .G = (W - H * C) / (2 * N),
                            .P = P};
    ssm_run(&args, ssm_forward_task);
}

static void ssm_backward(et_context *ctx, float *dinp, et_array drows, float *states, float *dstates, float *steps,
                         et_array dout, et_array inp, et_array rows, const float *bias, const float *a,
                         const float *skip, const int32_t *before, const int32_t *pieces, int64_t floats, int T, int W,
                         int E, int H, int C, int N, int P) {
    int32_t *room = (int32_t *)(void *)et_shared(ctx);
    struct ssm_args args = {.ctx = ctx,
                            .dinp = dinp,
                            .drows = drows,
                            .states = states,
                            .dstates = dstates,
                            .steps = steps,
                            .dout = dout,
                            .inp = inp,
                            .rows = rows,
                            .bias = bias,
                            .a = a,
                            .skip = skip,
                            .before = before,
                            .pieces = pieces,
                            .next = room,
                            .floats = floats,
                            .T = T,
                            .W = W,
                            .E = E,
                            .H = H,
                            .C = C,
                            .N = N,
                            .G = (W - H * C) / (2 * N),
                            .P = P};
    ssm_chain(&args, room + P);
    ssm_run(&args, ssm_states_task);
    et_parallel(ctx, ssm_dstates_task, &args, ceil_div(H, args.heads));
    et_parallel(ctx, ssm_backward_task, &args, P);
    et_parallel(ctx, ssm_steps_backward_task, &args, row_tasks(T, H));
}
