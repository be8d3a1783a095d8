/* The scan in float: ssm.h has the formulas and the order. */

enum { SSM_ROWS = 16 }; /* that are widened before they are transposed */

/* What a thread has of a piece. Matrices have ET_PIECE columns, or as many rows, where it has n tokens: what is beyond
 * is multiplied and nobody reads it. */
struct ssm_room {
    struct ssm_piece p;
    float b[SSM_N * ET_PIECE], c[SSM_N * ET_PIECE]; /* of a group, transposed: [N, tokens] */
    float db[SSM_N * ET_PIECE], dc[SSM_N * ET_PIECE];
    float x[ET_PIECE * SSM_N],
        y[ET_PIECE * SSM_N]; /* of a head, [tokens, C]; y: the output, or dt x, or its gradient */
    float dout[ET_PIECE * SSM_N];
    float x_across[SSM_N * ET_PIECE], dout_across[SSM_N * ET_PIECE]; /* transposed */
    float scores[ET_PIECE * ET_PIECE], dscores[ET_PIECE * ET_PIECE], mixed[ET_PIECE * ET_PIECE];
    float wide[SSM_ROWS * SSM_N];
    float du[ET_PIECE];
};

_Static_assert(sizeof(struct ssm_room) <= ET_THREAD_FLOATS * sizeof(float), "a thread's scratch holds a piece");
_Static_assert(16 % MR == 0 && 16 % VL == 0, "sizes are whole tiles");

/* The room that begins with a piece. */
static struct ssm_room *ssm_room(struct ssm_piece *p) { return (struct ssm_room *)(void *)p; }

/* out [n] = the values of x from element `at` on. */
static void ssm_floats(float *out, et_array x, int64_t at, int n) {
    for (int i = 0; i < n; i += VL)
        vstore(out + i, load_part(x, at + i, VL));
}

/* out [N, ET_PIECE] = the transpose of N values of each token's row from column `at` on. */
static void ssm_take_across(const struct ssm_args *a, struct ssm_room *r, float *out, int at) {
    for (int i = 0; i < r->p.n; i += SSM_ROWS) {
        int rows = min_int(r->p.n - i, SSM_ROWS);
        for (int j = 0; j < rows; j++)
            ssm_floats(r->wide + j * a->N, a->inp, (int64_t)r->p.token[i + j] * a->W + at, a->N);
        pack_transposed(out + i, ET_PIECE, r->wide, a->N, rows, a->N);
    }
}

static void ssm_take_b(const struct ssm_args *a, struct ssm_piece *p, int g) {
    struct ssm_room *r = ssm_room(p);
    ssm_take_across(a, r, r->b, ssm_b_at(a, g));
}

static void ssm_take_c(const struct ssm_args *a, struct ssm_piece *p, int g) {
    struct ssm_room *r = ssm_room(p);
    ssm_take_across(a, r, r->c, ssm_c_at(a, g));
}

/* out [tokens, C] = a head's values of rows of `width`. */
static void ssm_take_rows(const struct ssm_args *a, const struct ssm_room *r, float *out, et_array rows, int width,
                          int h) {
    for (int i = 0; i < r->p.n; i++)
        ssm_floats(out + i * a->C, rows, (int64_t)r->p.token[i] * width + h * a->C, a->C);
}

static void ssm_take_head(const struct ssm_args *a, struct ssm_room *r, int h) {
    ssm_take_steps(a, &r->p, h);
    ssm_take_rows(a, r, r->x, a->inp, a->W, h);
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
static void ssm_product(float *c, int ldc, struct side a, const float *b, int ldb, int M, int N, int K, int accumulate,
                        enum ssm_part part) {
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

/* ---- states and outputs ---------------------------------------------------------------------------------------- */

/* The state at the end of a piece, of the head that is taken; x becomes what it adds. */
static void ssm_add_state(const struct ssm_args *a, struct ssm_room *r, int h) {
    const struct ssm_piece *p = &r->p;
    float *state = ssm_state(a, a->states, p->kept, h);
    for (int i = 0; i < p->n; i++)
        r->du[i] = p->dt[i] * p->end[i];
    ssm_scale_rows(r->x, r->du, p->n, a->C);
    if (p->source >= 0) {
        const float *source = ssm_state(a, a->states, p->source, h);
        for (int i = 0; i < a->N * a->C; i += VL)
            vstore(state + i, vload(source + i) * p->decay);
    }
    ssm_product(state, a->C, ssm_side(r->b, ET_PIECE), r->x, a->C, a->N, a->C, p->n, p->source >= 0, SSM_ALL);
}

static void ssm_state_of_piece(const struct ssm_args *a, struct ssm_piece *p, int h) {
    struct ssm_room *r = ssm_room(p);
    ssm_take_head(a, r, h);
    ssm_add_state(a, r, h);
}

/* B, C and their scores C_t . B_s; sums that backward adds to. */
static void ssm_take_group(const struct ssm_args *a, struct ssm_piece *p, int g) {
    struct ssm_room *r = ssm_room(p);
    ssm_take_b(a, p, g);
    ssm_take_c(a, p, g);
    ssm_product(r->scores, ET_PIECE, ssm_across(r->c, ET_PIECE), r->b, ET_PIECE, p->n, ET_PIECE, a->N, 0, SSM_CAUSAL);
    memset(r->db, 0, (size_t)a->N * ET_PIECE * sizeof *r->db);
    memset(r->dc, 0, (size_t)a->N * ET_PIECE * sizeof *r->dc);
    memset(r->dscores, 0, sizeof r->dscores);
}

static void ssm_head_forward(const struct ssm_args *a, struct ssm_piece *p, int h) {
    struct ssm_room *r = ssm_room(p);
    int C = a->C;
    ssm_take_head(a, r, h);
    for (int t = 0; t < p->n; t++)
        for (int i = 0; i < ssm_columns(t); i += VL) {
            int at = t * ET_PIECE + i;
            vec decay = vec_exp(p->u[t] - vload(p->u + i));
            vstore(r->mixed + at, ssm_causal(vload(r->scores + at) * decay * vload(p->dt + i), t, i));
        }
    if (p->source >= 0) {
        ssm_product(r->y, C, ssm_across(r->c, ET_PIECE), ssm_state(a, a->states, p->source, h), C, p->n, C, a->N, 0,
                    SSM_ALL);
        ssm_scale_rows(r->y, p->begin, p->n, C);
    }
    ssm_product(r->y, C, ssm_side(r->mixed, ET_PIECE), r->x, C, p->n, C, p->n, p->source >= 0, SSM_LOWER);
    for (int t = p->replayed; t < p->n; t++)
        for (int j = 0; j < C; j += VL)
            store_part(a->out, ((int64_t)p->token[t] * a->H + h) * C + j,
                       vload(r->y + t * C + j) + a->skip[h] * vload(r->x + t * C + j), VL);
    if (p->kept >= 0)
        ssm_add_state(a, r, h);
}

/* ---- gradients ------------------------------------------------------------------------------------------------- */

/* The gradient of the state that a piece begins from, of a head. */
static void ssm_dstate_of_piece(const struct ssm_args *a, struct ssm_piece *p, int h) {
    struct ssm_room *r = ssm_room(p);
    float *dstate = ssm_state(a, a->dstates, p->source, h);
    int C = a->C;
    int own = p->replayed;
    ssm_take_head(a, r, h);
    ssm_take_rows(a, r, r->dout, a->dout, a->H * C, h);
    ssm_scale_rows(r->dout, p->begin, p->n, C);
    if (p->kept >= 0) {
        const float *last = ssm_state(a, a->dstates, p->kept, h);
        for (int i = 0; i < a->N * C; i += VL)
            vstore(dstate + i, vload(dstate + i) + vload(last + i) * p->decay);
    }
    ssm_product(dstate, C, ssm_side(r->c + own, ET_PIECE), r->dout + own * C, C, a->N, C, p->n - own, 1, SSM_ALL);
}

/* Of what tokens replay nothing is an output. */
static void ssm_take_dout(const struct ssm_args *a, struct ssm_room *r, int h) {
    ssm_take_rows(a, r, r->dout, a->dout, a->H * a->C, h);
    memset(r->dout, 0, (size_t)(r->p.replayed * a->C) * sizeof *r->dout);
    pack_transposed(r->dout_across, ET_PIECE, r->dout, a->C, r->p.n, a->C);
    pack_transposed(r->x_across, ET_PIECE, r->x, a->C, r->p.n, a->C);
}

/* mixed = M, dscores += their gradient, du = the sum of dscores * scores over s. */
static void ssm_scores_backward(const struct ssm_args *a, struct ssm_room *r) {
    ssm_product(r->mixed, ET_PIECE, ssm_side(r->dout, a->C), r->x_across, ET_PIECE, r->p.n, ET_PIECE, a->C, 0,
                SSM_CAUSAL);
    for (int t = 0; t < r->p.n; t++) {
        vec sum = {0};
        for (int i = 0; i < ssm_columns(t); i += VL) {
            int at = t * ET_PIECE + i;
            vec decay = vec_exp(r->p.u[t] - vload(r->p.u + i));
            vec score = ssm_causal(vload(r->scores + at), t, i);
            vec dscore = ssm_causal(vload(r->mixed + at) * decay * vload(r->p.dt + i), t, i);
            vstore(r->dscores + at, vload(r->dscores + at) + dscore);
            vstore(r->mixed + at, ssm_causal(score * decay, t, i));
            sum += dscore * score;
        }
        r->du[t] = lanes_sum(sum);
    }
}

/* y = V */
static void ssm_values_backward(const struct ssm_args *a, struct ssm_room *r, int h) {
    int C = a->C;
    int continued = r->p.kept >= 0;
    if (continued) {
        ssm_product(r->y, C, ssm_across(r->b, ET_PIECE), ssm_state(a, a->dstates, r->p.kept, h), C, r->p.n, C, a->N, 0,
                    SSM_ALL);
        ssm_scale_rows(r->y, r->p.end, r->p.n, C);
    }
    ssm_product(r->y, C, ssm_across(r->mixed, ET_PIECE), r->dout, C, r->p.n, C, r->p.n, continued, SSM_UPPER);
}

/* sum [N, tokens] += factor * state . x_across; sums (NULL: not wanted) += the sum over N of that times `by`. */
static void ssm_add_across(const struct ssm_args *a, struct ssm_room *r, float *sum, const float *state,
                           const float *across, const float *factor, const float *by, float *sums) {
    float part[MR * ET_PIECE];
    for (int n = 0; n < a->N; n += MR) {
        ssm_product(part, ET_PIECE, ssm_side(state + n * a->C, a->C), across, ET_PIECE, MR, ET_PIECE, a->C, 0, SSM_ALL);
        for (int i = 0; i < r->p.n; i += VL) {
            vec scale = vload(factor + i);
            vec total = {0};
            for (int j = 0; j < MR; j++) {
                int at = (n + j) * ET_PIECE + i;
                vec x = vload(part + j * ET_PIECE + i) * scale;
                vstore(sum + at, vload(sum + at) + x);
                if (sums)
                    total += x * vload(by + at);
            }
            if (sums)
                vstore(sums + i, vload(sums + i) + total);
        }
    }
}

/* dx, and the gradient of dt. */
static void ssm_tokens_backward(const struct ssm_args *a, struct ssm_room *r, int h) {
    const struct ssm_piece *p = &r->p;
    int C = a->C;
    float sum = p->kept < 0
                    ? 0
                    : dot(ssm_state(a, a->states, p->kept, h), ssm_state(a, a->dstates, p->kept, h), (int64_t)a->N * C);
    for (int i = p->n - 1; i >= 0; i--) {
        float own = dot(r->x + i * C, r->y + i * C, C);
        sum += r->du[i] - p->dt[i] * own;
        ssm_put_ddt(a, p, i, h, own + a->a[h] * sum);
        for (int j = i * C; j < (i + 1) * C; j += VL)
            vstore(r->y + j, vload(r->y + j) * p->dt[i] + a->skip[h] * vload(r->dout + j));
        ssm_put_row(a, p, i, h * C, r->y + i * C, C);
    }
}

static void ssm_head_backward(const struct ssm_args *a, struct ssm_piece *p, int h) {
    struct ssm_room *r = ssm_room(p);
    float factor[ET_PIECE];
    ssm_take_head(a, r, h);
    ssm_take_dout(a, r, h);
    ssm_scores_backward(a, r);
    ssm_values_backward(a, r, h);
    if (p->source >= 0)
        ssm_add_across(a, r, r->dc, ssm_state(a, a->states, p->source, h), r->dout_across, p->begin, r->c, r->du);
    for (int i = 0; i < ET_PIECE; i++)
        factor[i] = p->end[i] * p->dt[i];
    if (p->kept >= 0)
        ssm_add_across(a, r, r->db, ssm_state(a, a->dstates, p->kept, h), r->x_across, factor, NULL, NULL);
    ssm_tokens_backward(a, r, h);
}

/* dB and dC of a group. */
static void ssm_group_backward(const struct ssm_args *a, struct ssm_piece *p, int g) {
    struct ssm_room *r = ssm_room(p);
    int N = a->N;
    ssm_product(r->db, ET_PIECE, ssm_side(r->c, ET_PIECE), r->dscores, ET_PIECE, N, ET_PIECE, p->n, 1, SSM_ALL);
    pack_transposed(r->mixed, ET_PIECE, r->dscores, ET_PIECE, p->n, p->n);
    ssm_product(r->dc, ET_PIECE, ssm_side(r->b, ET_PIECE), r->mixed, ET_PIECE, N, ET_PIECE, p->n, 1, SSM_ALL);
    pack_transposed(r->x, N, r->db, ET_PIECE, N, p->n);
    pack_transposed(r->y, N, r->dc, ET_PIECE, N, p->n);
    ssm_put_group(a, p, g, r->x, r->y);
}

static const struct ssm_numbers ssm_float = {
    .take_b = ssm_take_b,
    .take_c = ssm_take_c,
    .state = ssm_state_of_piece,
    .dstate = ssm_dstate_of_piece,
    .take_group = ssm_take_group,
    .forward = ssm_head_forward,
    .backward = ssm_head_backward,
    .group_backward = ssm_group_backward,
};
