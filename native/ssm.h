/* The scan of Mamba 2 (Dao & Gu 2024). Each head has a state S [N, C], which a token changes and reads:
 *
 *   S = e^(dt a) S + B (dt x)^T,  out = S^T C + skip x,  dt = ln(1 + e^(rows + bias)).
 *
 * Tokens come in pieces (edgetune/data/pieces.py). Of a piece's tokens, those that it replays first, s and t are two, u_t
 * is the sum of dt a up to t, and S is the state before the first. Then a piece is products of matrices:
 *
 *   out_t = sum over s <= t of (C_t . B_s) e^(u_t - u_s) dt_s x_s + e^(u_t) S^T C_t,
 *   S at its end = e^u S + sum over s of e^(u - u_s) B_s (dt_s x_s)^T.
 *
 * First each head's states are made, piece after piece; then the outputs of each piece, whose scores C_t . B_s serve all
 * heads of a group. Backward makes the states again, so that none is kept from pass to pass (ssm_backward.h). */

enum {
    SSM_N = ET_MAX_STATE, /* of N and of C */
    SSM_HEADS = 4,        /* of a task that makes states: they share B */
    SSM_ROWS = 16,        /* that are widened before they are transposed */
};

struct ssm_args {
    et_context *ctx;
    et_array out, inp, rows, dout, drows;
    float *dinp, *states, *dstates, *steps; /* steps [3, H, T]: dt, u, and the gradient of dt */
    const float *bias, *a, *skip;
    const int32_t *before, *pieces;
    int32_t *next; /* [P]: the next piece that begins from the same state with the same token */
    int64_t floats; /* of states */
    int T, W, E, H, C, N, G, P;
};

/* What a thread has of a piece. Matrices have ET_PIECE columns, or as many rows, where it has n tokens: what is beyond
 * is multiplied and nobody reads it. */
struct ssm_room {
    float b[SSM_N * ET_PIECE], c[SSM_N * ET_PIECE];   /* of a group, transposed: [N, tokens] */
    float db[SSM_N * ET_PIECE], dc[SSM_N * ET_PIECE];
    float x[ET_PIECE * SSM_N], y[ET_PIECE * SSM_N];   /* of a head, [tokens, C]; y: the output, or dt x, or its gradient */
    float dout[ET_PIECE * SSM_N];
    float x_across[SSM_N * ET_PIECE], dout_across[SSM_N * ET_PIECE]; /* transposed */
    float scores[ET_PIECE * ET_PIECE], dscores[ET_PIECE * ET_PIECE], mixed[ET_PIECE * ET_PIECE];
    float wide[SSM_ROWS * SSM_N];
    float dt[ET_PIECE], u[ET_PIECE], begin[ET_PIECE], end[ET_PIECE]; /* begin: e^(u_t); end: e^(u - u_t) */
    float du[ET_PIECE];
    float decay; /* of the whole piece */
    int32_t token[ET_PIECE];
    int n, replayed, source, kept;
};

_Static_assert(sizeof(struct ssm_room) <= ET_THREAD_FLOATS * sizeof(float), "a thread's scratch holds a piece");
_Static_assert(16 % MR == 0 && 16 % VL == 0, "sizes are whole tiles");

static struct ssm_room *ssm_room(const struct ssm_args *a, int thread) {
    return (struct ssm_room *)(void *)et_scratch(a->ctx, thread);
}

/* ---- what a piece has ------------------------------------------------------------------------------------------ */

static void ssm_take_piece(const struct ssm_args *a, struct ssm_room *r, int p) {
    const int32_t *piece = a->pieces + (ptrdiff_t)p * ET_PIECE_COLUMNS;
    r->replayed = piece[2];
    r->source = piece[3];
    r->kept = piece[4];
    r->n = r->replayed + piece[1] - piece[0];
    for (int i = r->replayed; i < r->n; i++)
        r->token[i] = piece[0] + i - r->replayed;
    for (int i = r->replayed - 1; i >= 0; i--)
        r->token[i] = a->before[r->token[i + 1]];
}

/* out [n] = the values of x from element `at` on. */
static void ssm_floats(float *out, et_array x, int64_t at, int n) {
    for (int i = 0; i < n; i += VL)
        vstore(out + i, load_part(x, at + i, VL));
}

/* out [N, ET_PIECE] = the transpose of N values of each token's row from column `at` on. */
static void ssm_take_across(const struct ssm_args *a, struct ssm_room *r, float *out, int at) {
    for (int i = 0; i < r->n; i += SSM_ROWS) {
        int rows = min_int(r->n - i, SSM_ROWS);
        for (int j = 0; j < rows; j++)
            ssm_floats(r->wide + j * a->N, a->inp, (int64_t)r->token[i + j] * a->W + at, a->N);
        pack_transposed(out + i, ET_PIECE, r->wide, a->N, rows, a->N);
    }
}

static void ssm_take_group(const struct ssm_args *a, struct ssm_room *r, int g) {
    ssm_take_across(a, r, r->b, a->H * a->C + g * a->N);
    ssm_take_across(a, r, r->c, a->H * a->C + (a->G + g) * a->N);
}

/* out [tokens, C] = a head's values of rows of `width`. */
static void ssm_take_rows(const struct ssm_args *a, const struct ssm_room *r, float *out, et_array rows, int width,
                          int h) {
    for (int i = 0; i < r->n; i++)
        ssm_floats(out + i * a->C, rows, (int64_t)r->token[i] * width + h * a->C, a->C);
}

static void ssm_take_head(const struct ssm_args *a, struct ssm_room *r, int h) {
    const float *dt = a->steps + (ptrdiff_t)h * a->T;
    const float *u = dt + (ptrdiff_t)a->H * a->T;
    ssm_take_rows(a, r, r->x, a->inp, a->W, h);
    for (int i = 0; i < r->n; i++) {
        r->dt[i] = dt[r->token[i]];
        r->u[i] = u[r->token[i]];
    }
    for (int i = r->n; i < ET_PIECE; i++)
        r->dt[i] = r->u[i] = 0;
    float last = r->u[r->n - 1];
    for (int i = 0; i < ET_PIECE; i += VL) {
        vec x = vload(r->u + i);
        vstore(r->begin + i, vec_exp(x));
        vstore(r->end + i, vec_exp(last - x));
    }
    r->decay = r->begin[r->n - 1];
}

static float *ssm_state(const struct ssm_args *a, float *states, int slot, int h) {
    return states + ((int64_t)slot * a->H + h) * a->N * a->C;
}

/* ---- products -------------------------------------------------------------------------------------------------- */

/* A matrix [.., ET_PIECE] or [.., C] as a side of a product, and its transpose. */
static inline struct side ssm_side(const float *p, int width) { return (struct side){p, width, 1, 0}; }
static inline struct side ssm_across(const float *p, int width) { return (struct side){p, 1, width, 0}; }

/* What of a product of matrices of tokens is 0 or not needed: in A what is above the diagonal, or below it, in C what is
 * above it. */
enum ssm_part { SSM_ALL, SSM_LOWER, SSM_UPPER, SSM_CAUSAL };

/* C [M, N] (accumulate: +)= A [M, K] . B [K, N], rows of C and B ldc and ldb apart. All rows of whole tiles are computed,
 * and N is a multiple of 16. */
static void ssm_product(float *c, int ldc, struct side a, const float *b, int ldb, int M, int N, int K,
                        int accumulate, enum ssm_part part) {
    struct tile t = {.c_rs = ldc, .c_cs = 1, .rows = MR, .accumulate = accumulate, .alpha = 1};
    for (int m = 0; m < M; m += MR) {
        int columns = part == SSM_CAUSAL ? min_int(N, ceil_div(m + MR, VL) * VL) : N;
        int first = part == SSM_UPPER ? m : 0;
        int width = ceil_div(columns / VL, ceil_div(columns / VL, NV)) * VL;
        t.s[0].K = (part == SSM_LOWER ? min_int(K, m + MR) : K) - first;
        t.s[0].a = (struct side){a.p + m * a.rs + first * a.ks, a.rs, a.ks, 0};
        for (int n = 0; n < columns; n += width) {
            t.c = (et_array){c + m * ldc + n, ET_F32};
            t.s[0].b = (struct side){b + first * ldb + n, 1, ldb, 0};
            t.columns = min_int(columns - n, width);
            tile_any(&t);
        }
    }
}

/* Each of n rows of C values times its factor. */
static void ssm_scale_rows(float *x, const float *factor, int n, int C) {
    for (int i = 0; i < n; i++)
        for (int j = 0; j < C; j += VL)
            vstore(x + i * C + j, vload(x + i * C + j) * factor[i]);
}

/* Lanes i .. i + VL - 1 of row t of a matrix of tokens: 0 where they are after t. */
INLINE vec ssm_causal(vec x, int t, int i) {
    ivec after;
    for (int j = 0; j < VL; j++)
        after[j] = i + j > t ? -1 : 0;
    return i + VL <= t + 1 ? x : blend(after, (vec){0}, x);
}

/* Of row t of such matrices, up to whole tiles and vectors. */
static inline int ssm_columns(int t) { return ceil_div(t + 1, 16) * 16; }

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
    EITHER(a.rows, EACH_VECTOR(t, n, 0, a.T,
                               vstore_part(dt + t, vec_softplus(ssm_column(a.rows, t * a.E + first, a.E, n) +
                                                                a.bias[h]), n)));
    for (int p = 0; p < a.P; p++) {
        const int32_t *piece = a.pieces + (ptrdiff_t)p * ET_PIECE_COLUMNS;
        float sum = piece[2] ? u[a.before[piece[0]]] : 0;
        for (int t = piece[0]; t < piece[1]; t++)
            u[t] = sum += dt[t] * a.a[h];
    }
}

/* ---- forward --------------------------------------------------------------------------------------------------- */

/* The state at the end of a piece, of a head. */
static void ssm_state_of_piece(const struct ssm_args *a, struct ssm_room *r, int h) {
    float *state = ssm_state(a, a->states, r->kept, h);
    ssm_take_head(a, r, h);
    for (int i = 0; i < r->n; i++)
        r->du[i] = r->dt[i] * r->end[i];
    ssm_scale_rows(r->x, r->du, r->n, a->C);
    if (r->source >= 0) {
        const float *source = ssm_state(a, a->states, r->source, h);
        for (int i = 0; i < a->N * a->C; i += VL)
            vstore(state + i, vload(source + i) * r->decay);
    }
    ssm_product(state, a->C, ssm_side(r->b, ET_PIECE), r->x, a->C, a->N, a->C, r->n, r->source >= 0, SSM_ALL);
}

/* All kept states of a few heads. */
static void ssm_states_task(void *arg, int task, int thread) {
    const struct ssm_args *a = arg;
    struct ssm_room *r = ssm_room(a, thread);
    int begin = task * SSM_HEADS;
    int end = min_int(begin + SSM_HEADS, a->H);
    for (int p = 0; p < a->P; p++) {
        ssm_take_piece(a, r, p);
        if (r->kept < 0)
            continue;
        for (int h = begin; h < end; h++) {
            int g = h / (a->H / a->G);
            if (h == begin || h % (a->H / a->G) == 0)
                ssm_take_across(a, r, r->b, a->H * a->C + g * a->N);
            ssm_state_of_piece(a, r, h);
        }
    }
}

static void ssm_states(struct ssm_args *a) {
    et_parallel(a->ctx, ssm_steps_task, a, a->H);
    et_parallel(a->ctx, ssm_states_task, a, ceil_div(a->H, SSM_HEADS));
}

/* The scores C_t . B_s of a group. */
static void ssm_scores(const struct ssm_args *a, struct ssm_room *r) {
    ssm_product(r->scores, ET_PIECE, ssm_across(r->c, ET_PIECE), r->b, ET_PIECE, r->n, ET_PIECE, a->N, 0,
                SSM_CAUSAL);
}

static void ssm_output_of_head(const struct ssm_args *a, struct ssm_room *r, int h) {
    int C = a->C;
    ssm_take_head(a, r, h);
    for (int t = 0; t < r->n; t++)
        for (int i = 0; i < ssm_columns(t); i += VL) {
            int at = t * ET_PIECE + i;
            vec decay = vec_exp(r->u[t] - vload(r->u + i));
            vstore(r->mixed + at, ssm_causal(vload(r->scores + at) * decay * vload(r->dt + i), t, i));
        }
    if (r->source >= 0) {
        ssm_product(r->y, C, ssm_across(r->c, ET_PIECE), ssm_state(a, a->states, r->source, h), C, r->n, C,
                    a->N, 0, SSM_ALL);
        ssm_scale_rows(r->y, r->begin, r->n, C);
    }
    ssm_product(r->y, C, ssm_side(r->mixed, ET_PIECE), r->x, C, r->n, C, r->n, r->source >= 0, SSM_LOWER);
    for (int t = r->replayed; t < r->n; t++)
        for (int j = 0; j < C; j += VL)
            store_part(a->out, ((int64_t)r->token[t] * a->H + h) * C + j,
                       vload(r->y + t * C + j) + a->skip[h] * vload(r->x + t * C + j), VL);
}

static void ssm_output_task(void *arg, int p, int thread) {
    const struct ssm_args *a = arg;
    struct ssm_room *r = ssm_room(a, thread);
    ssm_take_piece(a, r, p);
    for (int g = 0; g < a->G; g++) {
        ssm_take_group(a, r, g);
        ssm_scores(a, r);
        for (int h = g * (a->H / a->G); h < (g + 1) * (a->H / a->G); h++)
            ssm_output_of_head(a, r, h);
    }
}

static void ssm_forward(et_context *ctx, et_array out, float *states, float *steps, et_array inp, et_array rows,
                        const float *bias, const float *a, const float *skip, const int32_t *before,
                        const int32_t *pieces, int64_t floats, int T, int W, int E, int H, int C, int N, int P) {
    struct ssm_args args = {.ctx = ctx, .out = out, .states = states, .steps = steps, .inp = inp, .rows = rows,
                            .bias = bias, .a = a, .skip = skip, .before = before, .pieces = pieces, .floats = floats,
                            .T = T, .W = W, .E = E, .H = H, .C = C, .N = N, .G = (W - H * C) / (2 * N), .P = P};
    ssm_states(&args);
    et_parallel(ctx, ssm_output_task, &args, P);
}
