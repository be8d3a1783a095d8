/* The scan in bf16: what is multiplied is rounded to nearest, and sums are in float, states too (ssm.h). Products are
 * strips (attention_strips.h), and all sizes are whole strips: tokens behind a piece's last are zeros.
 *
 * Backward has scores the other way round, [s, t], as V and dB read them; and what e^(u_t - u_s) multiplies is added to
 * du_t and taken from du_s as the same number, as it has no part in the sum of both. */

struct ssm_half_room {
    struct ssm_piece p;
    bf16 b[ET_PIECE * SSM_N], c[ET_PIECE * SSM_N];                              /* of a group: [tokens, N] */
    bf16 across[SSM_N * ET_PIECE];                                              /* one of them, transposed */
    bf16 x[ET_PIECE * SSM_N], dout[ET_PIECE * SSM_N], scaled[ET_PIECE * SSM_N]; /* of a head: [tokens, C] */
    bf16 state[SSM_N * SSM_N];                                                  /* [N, C] */
    bf16 mixed[ET_PIECE * ET_PIECE];
    float pairs[SSM_N * SSM_N / 2]; /* the second side of a product */
    float db[ET_PIECE * SSM_N], dc[ET_PIECE * SSM_N];
    float own[ET_PIECE * SSM_N], passed[ET_PIECE * SSM_N]; /* outputs, or V: what tokens add, and what a state does */
    float scores[ET_PIECE * ET_PIECE], dscores[ET_PIECE * ET_PIECE], wide[ET_PIECE * ET_PIECE];
    float sums[ET_PIECE * VL], factor[ET_PIECE], du[ET_PIECE], dt[ET_PIECE]; /* dt: its gradient, without that of u */
};

_Static_assert(sizeof(struct ssm_half_room) <= ET_THREAD_FLOATS * sizeof(float), "a thread's scratch holds a piece");

static struct ssm_half_room *ssm_half_room(struct ssm_piece *p) { return (struct ssm_half_room *)(void *)p; }

/* ---- rows and products ----------------------------------------------------------------------------------------- */

/* out [whole strips of tokens, n] = n values of each token's row of `width`, from column `at` on. Those behind them are
 * asked for, as the next head's are. */
static void ssm_round(const struct ssm_piece *p, bf16 *out, et_array rows, int width, int at, int n) {
    for (int i = 0; i < p->n; i++)
        for (int j = 0; j < n; j += BF16_RUN) {
            et_array run = array_at(rows, (int64_t)p->token[i] * width + at + j);
            __builtin_prefetch(array_at(run, n).data);
            pack_run(out + i * n + j, run, BF16_RUN);
        }
    memset(out + p->n * n, 0, (size_t)((whole_strips(p->n) - p->n) * n) * sizeof *out);
}

static void ssm_round_x(const struct ssm_args *a, struct ssm_half_room *r, int h) {
    ssm_round(&r->p, r->x, a->inp, a->W, h * a->C, a->C);
}

/* Of what tokens replay nothing is an output. */
static void ssm_round_dout(const struct ssm_args *a, struct ssm_half_room *r, int h) {
    ssm_round(&r->p, r->dout, a->dout, a->H * a->C, h * a->C, a->C);
    memset(r->dout, 0, (size_t)(r->p.replayed * a->C) * sizeof *r->dout);
}

/* scaled = each row of x times its factor */
static void ssm_scale(const struct ssm_args *a, struct ssm_half_room *r, const bf16 *x, const float *factor) {
    for (int i = 0; i < whole_strips(r->p.n); i++)
        for (int j = i * a->C; j < (i + 1) * a->C; j += STRIP)
            store_rounded(r->scaled + j, load_half(x + j) * factor[i], load_half(x + j + VL) * factor[i]);
}

/* factor = dt_s e^(u - u_s) */
static void ssm_factors(struct ssm_half_room *r) {
    for (int i = 0; i < ET_PIECE; i += VL)
        vstore(r->factor + i, vload(r->p.dt + i) * vload(r->p.end + i));
}

/* across [N, tokens] = n values of a row, transposed two tokens at a time */
static void ssm_round_across(const struct ssm_args *a, struct ssm_half_room *r, bf16 *rows, int at) {
    int n = whole_strips(r->p.n);
    ssm_round(&r->p, rows, a->inp, a->W, at, a->N);
    transpose_rows(r->across, r->pairs, (struct tokens){rows, a->N}, n, a->N);
}

static void ssm_half_take_b(const struct ssm_args *a, struct ssm_piece *p, int g) {
    struct ssm_half_room *r = ssm_half_room(p);
    ssm_round_across(a, r, r->b, ssm_b_at(a, g));
}

static void ssm_half_take_c(const struct ssm_args *a, struct ssm_piece *p, int g) {
    struct ssm_half_room *r = ssm_half_room(p);
    ssm_round_across(a, r, r->c, ssm_c_at(a, g));
}

/* ---- states and outputs ---------------------------------------------------------------------------------------- */

/* state (accumulate: +)= across . rows of tokens, scaled */
static void ssm_add_tokens(const struct ssm_args *a, struct ssm_half_room *r, float *state, const bf16 *rows,
                           const float *factor, int accumulate) {
    int n = whole_strips(r->p.n);
    ssm_scale(a, r, rows, factor);
    pack_down(r->pairs, (struct tokens){r->scaled, a->C}, n, a->C);
    strips_product(state, a->C, r->across, ET_PIECE, r->pairs, a->N, a->C, n, accumulate);
}

/* The state at the end of a piece, of the head that is taken. */
static void ssm_half_add_state(const struct ssm_args *a, struct ssm_half_room *r, int h) {
    const struct ssm_piece *p = &r->p;
    float *state = ssm_state(a, a->states, p->kept, h);
    if (p->source >= 0) {
        const float *source = ssm_state(a, a->states, p->source, h);
        for (int i = 0; i < a->N * a->C; i += VL)
            vstore(state + i, vload(source + i) * p->decay);
    }
    ssm_factors(r);
    ssm_add_tokens(a, r, state, r->x, r->factor, p->source >= 0);
}

static void ssm_half_state(const struct ssm_args *a, struct ssm_piece *p, int h) {
    struct ssm_half_room *r = ssm_half_room(p);
    ssm_take_steps(a, p, h);
    ssm_round_x(a, r, h);
    ssm_half_add_state(a, r, h);
}

static void ssm_half_dstate(const struct ssm_args *a, struct ssm_piece *p, int h) {
    struct ssm_half_room *r = ssm_half_room(p);
    float *dstate = ssm_state(a, a->dstates, p->source, h);
    ssm_take_steps(a, p, h);
    ssm_round_dout(a, r, h);
    if (p->kept >= 0) {
        const float *last = ssm_state(a, a->dstates, p->kept, h);
        for (int i = 0; i < a->N * a->C; i += VL)
            vstore(dstate + i, vload(dstate + i) + vload(last + i) * p->decay);
    }
    ssm_add_tokens(a, r, dstate, r->dout, p->begin, 1);
}

/* B, C and their scores: C_t . B_s, or for gradients B_s . C_t; and sums that these are added to. */
static void ssm_half_take_group(const struct ssm_args *a, struct ssm_piece *p, int g) {
    struct ssm_half_room *r = ssm_half_room(p);
    int n = whole_strips(p->n);
    ssm_half_take_b(a, p, g);
    ssm_round(p, r->c, a->inp, a->W, ssm_c_at(a, g), a->N);
    pack_across(r->pairs, (struct tokens){a->dinp ? r->c : r->b, a->N}, n, a->N, ET_PIECE);
    for (int i = 0; i < n; i += STRIP)
        strip_product(r->scores + i * ET_PIECE, ET_PIECE, (a->dinp ? r->b : r->c) + i * a->N, a->N, r->pairs, ET_PIECE,
                      STRIP, n, a->N, 0);
    if (!a->dinp)
        return;
    memset(r->db, 0, (size_t)(n * a->N) * sizeof *r->db);
    memset(r->dc, 0, (size_t)(n * a->N) * sizeof *r->dc);
    memset(r->dscores, 0, sizeof r->dscores);
}

/* mixed [t, s] = scores e^(u_t - u_s) dt_s */
static void ssm_mix(struct ssm_half_room *r) {
    const struct ssm_piece *p = &r->p;
    for (int t = 0; t < p->n; t++)
        for (int s = 0; s <= t; s += STRIP) {
            vec x[2];
            UNROLL for (int l = 0; l < 2; l++) {
                int at = s + l * VL;
                vec passed = among_keys((p->u[t] - vload(p->u + at)) * LOG2_E, t + 1 - at);
                x[l] = vload(r->scores + t * ET_PIECE + at) * exp2_vec(passed) * vload(p->dt + at);
            }
            store_rounded(r->mixed + t * ET_PIECE + s, x[0], x[1]);
        }
}

static void ssm_half_forward(const struct ssm_args *a, struct ssm_piece *p, int h) {
    struct ssm_half_room *r = ssm_half_room(p);
    int C = a->C;
    int n = whole_strips(p->n);
    ssm_take_steps(a, p, h);
    ssm_round_x(a, r, h);
    ssm_mix(r);
    pack_down(r->pairs, (struct tokens){r->x, C}, n, C);
    for (int i = 0; i < n; i += STRIP)
        strip_product(r->own + i * C, C, r->mixed + i * ET_PIECE, ET_PIECE, r->pairs, C, STRIP, C, i + STRIP, 0);
    if (p->source >= 0) {
        round_row(r->state, ssm_state(a, a->states, p->source, h), a->N * C, a->N * C);
        pack_down(r->pairs, (struct tokens){r->state, C}, a->N, C);
        strips_product(r->passed, C, r->c, a->N, r->pairs, n, C, a->N, 0);
    }
    for (int t = p->replayed; t < p->n; t++)
        for (int j = t * C; j < (t + 1) * C; j += VL) {
            vec out = vload(r->own + j) + a->skip[h] * load_half(r->x + j);
            if (p->source >= 0)
                out += p->begin[t] * vload(r->passed + j);
            store_part(a->out, ((int64_t)p->token[t] * a->H + h) * C + j - t * C, out, VL);
        }
    if (p->kept >= 0)
        ssm_half_add_state(a, r, h);
}

/* ---- gradients ------------------------------------------------------------------------------------------------- */

/* wide being x_s . D_t: mixed = M, dscores += their gradient; sums: of s, what e^(u_t - u_s) multiplies, but for dt_s;
 * du: the same of t, with it. */
static void ssm_mix_backward(struct ssm_half_room *r) {
    const struct ssm_piece *p = &r->p;
    for (int t = 0; t < p->n; t += STRIP) {
        vec du[2] = {0};
        for (int s = 0; s < min_int(t + STRIP, p->n); s++) {
            vec sum = s < t ? vload(r->sums + s * VL) : splat(0.0f);
            vec mixed[2];
            UNROLL for (int l = 0; l < 2; l++) {
                int at = t + l * VL;
                int i = s * ET_PIECE + at;
                vec passed = (vload(p->u + at) - p->u[s]) * LOG2_E;
                vec decay = exp2_vec(s > t ? only_seen(passed, at - s, 1, INT32_MAX) : passed);
                vec grad = vload(r->wide + i) * decay;
                vec score = vload(r->scores + i);
                mixed[l] = score * decay;
                sum += grad * score;
                du[l] += grad * score * p->dt[s];
                vstore(r->dscores + i, vload(r->dscores + i) + grad * p->dt[s]);
            }
            vstore(r->sums + s * VL, sum);
            store_rounded(r->mixed + s * ET_PIECE + t, mixed[0], mixed[1]);
        }
        vstore(r->du + t, du[0]);
        vstore(r->du + t + VL, du[1]);
    }
}

/* own = sum over t >= s of M_ts D_t */
static void ssm_own_values(const struct ssm_args *a, struct ssm_half_room *r) {
    int C = a->C;
    int n = whole_strips(r->p.n);
    pack_across(r->pairs, (struct tokens){r->dout, C}, n, C, ET_PIECE);
    for (int i = 0; i < n; i += STRIP)
        strip_product(r->wide + i * ET_PIECE + i, ET_PIECE, r->x + i * C, C, r->pairs + i, ET_PIECE, STRIP, n - i, C,
                      0);
    ssm_mix_backward(r);
    pack_down(r->pairs, (struct tokens){r->dout, C}, n, C);
    for (int i = 0; i < n; i += STRIP)
        strip_product(r->own + i * C, C, r->mixed + i * ET_PIECE + i, ET_PIECE, r->pairs + i / 2 * C, C, STRIP, C,
                      n - i, 0);
}

/* passed = G^T B_s, and what dB has of G */
static void ssm_last_backward(const struct ssm_args *a, struct ssm_half_room *r, int h) {
    int n = whole_strips(r->p.n);
    struct tokens state = {r->state, a->C};
    round_row(r->state, ssm_state(a, a->dstates, r->p.kept, h), a->N * a->C, a->N * a->C);
    pack_down(r->pairs, state, a->N, a->C);
    strips_product(r->passed, a->C, r->b, a->N, r->pairs, n, a->C, a->N, 0);
    pack_across(r->pairs, state, a->N, a->C, a->N);
    ssm_scale(a, r, r->x, r->factor);
    strips_product(r->db, a->N, r->scaled, a->C, r->pairs, n, a->N, a->C, 1);
}

/* What dC and du have of S */
static void ssm_first_backward(const struct ssm_args *a, struct ssm_half_room *r, int h) {
    float part[STRIP * SSM_N];
    int N = a->N;
    round_row(r->state, ssm_state(a, a->states, r->p.source, h), N * a->C, N * a->C);
    pack_across(r->pairs, (struct tokens){r->state, a->C}, N, a->C, N);
    for (int i = 0; i < r->p.n; i += STRIP) {
        strip_product(part, N, r->dout + i * a->C, a->C, r->pairs, N, STRIP, N, a->C, 0);
        for (int t = i; t < min_int(i + STRIP, r->p.n); t++) {
            vec sum = {0};
            for (int j = 0; j < N; j += VL) {
                float *dc = r->dc + t * N + j;
                vec x = r->p.begin[t] * vload(part + (t - i) * N + j);
                vstore(dc, vload(dc) + x);
                sum += x * load_half(r->c + t * N + j);
            }
            r->du[t] += lanes_sum(sum);
        }
    }
}

/* dx; dt = V . x; returns what of G . S is due to tokens. */
static float ssm_inputs_backward(const struct ssm_args *a, struct ssm_half_room *r, int h) {
    const struct ssm_piece *p = &r->p;
    int C = a->C;
    vec total = {0};
    for (int i = 0; i < p->n; i++) {
        float dx[SSM_N];
        float end = p->kept < 0 ? 0 : p->end[i];
        vec of_state = {0};
        for (int j = 0; j < C; j += VL) {
            int at = i * C + j;
            vec passed = p->kept < 0 ? splat(0.0f) : end * vload(r->passed + at);
            of_state += load_half(r->x + at) * passed;
            vstore(dx + j, p->dt[i] * (vload(r->own + at) + passed) + a->skip[h] * load_half(r->dout + at));
        }
        r->dt[i] = lanes_sum(vload(r->sums + i * VL) + of_state);
        total += p->dt[i] * of_state;
        ssm_put_row(a, p, i, h * C, dx, C);
    }
    return lanes_sum(total);
}

static void ssm_half_backward(const struct ssm_args *a, struct ssm_piece *p, int h) {
    struct ssm_half_room *r = ssm_half_room(p);
    ssm_take_steps(a, p, h);
    ssm_factors(r);
    ssm_round_x(a, r, h);
    ssm_round_dout(a, r, h);
    ssm_own_values(a, r);
    if (p->kept >= 0)
        ssm_last_backward(a, r, h);
    if (p->source >= 0)
        ssm_first_backward(a, r, h);
    float sum = ssm_inputs_backward(a, r, h);
    if (p->kept >= 0 && p->source >= 0)
        sum += p->decay *
               dot(ssm_state(a, a->states, p->source, h), ssm_state(a, a->dstates, p->kept, h), (int64_t)a->N * a->C);
    for (int i = p->n - 1; i >= 0; i--) {
        sum += r->du[i] - p->dt[i] * r->dt[i];
        ssm_put_ddt(a, p, i, h, r->dt[i] + a->a[h] * sum);
    }
}

static void ssm_half_group_backward(const struct ssm_args *a, struct ssm_piece *p, int g) {
    struct ssm_half_room *r = ssm_half_room(p);
    int N = a->N;
    int n = whole_strips(p->n);
    const int all = ET_PIECE * ET_PIECE;
    round_row(r->mixed, r->dscores, all, all);
    pack_down(r->pairs, (struct tokens){r->c, N}, n, N);
    strips_product(r->db, N, r->mixed, ET_PIECE, r->pairs, n, N, n, 1);
    pack_transposed(r->wide, ET_PIECE, r->dscores, ET_PIECE, ET_PIECE, ET_PIECE);
    round_row(r->mixed, r->wide, all, all);
    pack_down(r->pairs, (struct tokens){r->b, N}, n, N);
    strips_product(r->dc, N, r->mixed, ET_PIECE, r->pairs, n, N, n, 1);
    ssm_put_group(a, p, g, r->db, r->dc);
}

static const struct ssm_numbers ssm_bf16 = {
    .take_b = ssm_half_take_b,
    .take_c = ssm_half_take_c,
    .state = ssm_half_state,
    .dstate = ssm_half_dstate,
    .take_group = ssm_half_take_group,
    .forward = ssm_half_forward,
    .backward = ssm_half_backward,
    .group_backward = ssm_half_group_backward,
};
