/* A piece of the delta rule in bf16 (delta.h has the letters), where all is products of matrices and one substitution.
 * u_r is the sum of g until token r, and A_rs = e^(u_r - u_s) what is left at r of what was written at s. What is
 * multiplied is rounded to nearest; sums are in float, states and substitutions too. S being the state before the piece,
 *
 *   e_r = v_r - e^(u_r) S^T k_r - sum over s < r of A_rs (k_r . k_s) d_s,  d_s = beta_s e_s,
 *   out_r = e^(u_r) S^T q_r + sum over s <= r of A_rs (q_r . k_s) d_s,
 *   S at its end = e^u S + sum over s of e^(u - u_s) k_s d_s^T.
 *
 * Backward, D_r being the gradient of out_r and G that of the state at the end, with x_s that of d_s:
 *
 *   x_s = e^(u - u_s) G^T k_s + sum over r >= s of A_rs (q_r . k_s) D_r - sum over r > s of A_rs (k_r . k_s) beta_r x_r,
 *   dq_r = e^(u_r) S D_r + sum over s <= r of A_rs (D_r . d_s) k_s,
 *   dk_s = e^(u - u_s) G d_s + sum over r >= s of A_rs (D_r . d_s) q_r - e^(u_s) beta_s S x_s
 *          - sum over r < s of A_sr beta_s (x_s . d_r) k_r - sum over r > s of A_rs beta_r (x_r . d_s) k_r,
 *   dS = e^u G + sum over r of e^(u_r) (q_r D_r^T - beta_r k_r x_r^T).
 *
 * The gradient of u_r is the sum of what it multiplies: what e^(u_r) does of q_r . dq_r and k_r . dk_r, and of each A_rs
 * what it does of both, which is taken from that of u_s as the same number, as it has no part in the sum of both. */

#ifdef ET_BF16_PRODUCTS

/* ---- rows and weights ------------------------------------------------------------------------------------------ */

/* rows = each row of x, ld apart, times its factor */
INLINE void delta_rows_of(struct delta_room *room, et_array x, int ld, const float *factor, int C) {
    for (int r = 0; r < whole_strips(room->n); r++)
        for (int i = 0; i < C; i += STRIP) {
            int64_t at = (int64_t)r * ld + i;
            store_rounded(room->rows + r * C + i, factor[r] * load_part(x, at, VL),
                          factor[r] * load_part(x, at + VL, VL));
        }
}

static void delta_rows(struct delta_room *room, const float *x, const float *factor, int C) {
    delta_rows_of(room, (et_array){(float *)x, ET_F32}, DELTA_C, factor, C);
}

static void delta_half_rows(struct delta_room *room, const bf16 *x, const float *factor, int C) {
    delta_rows_of(room, (et_array){(bf16 *)x, ET_BF16}, C, factor, C);
}

static void delta_down(struct delta_room *room, const bf16 *rows, int C) {
    pack_down(room->pairs, (struct tokens){rows, C}, whole_strips(room->n), C);
}

static void delta_across(struct delta_room *room, const bf16 *rows, int C) {
    pack_across(room->pairs, (struct tokens){rows, C}, whole_strips(room->n), C, ET_PIECE);
}

/* A state as B, as it is or transposed. */
static void delta_state_down(struct delta_room *room, const float *state, int C) {
    round_row(room->state, state, C * C, C * C);
    pack_down(room->pairs, (struct tokens){room->state, C}, C, C);
}

static void delta_state_across(struct delta_room *room, const float *state, int C) {
    round_row(room->state, state, C * C, C * C);
    pack_across(room->pairs, (struct tokens){room->state, C}, C, C, C);
}

/* out [tokens, DELTA_C] (accumulate: +)= rows [tokens, C] . pairs [C, C] */
static void delta_of_state(struct delta_room *room, float *out, const bf16 *rows, int C, int accumulate) {
    strips_product(out, DELTA_C, rows, C, room->pairs, whole_strips(room->n), C, C, accumulate);
}

/* out [tokens, DELTA_C] (accumulate: +)= mixed [tokens, tokens] . pairs [tokens, C] */
static void delta_of_tokens(struct delta_room *room, float *out, int C, int accumulate) {
    strips_product(out, DELTA_C, room->mixed, ET_PIECE, room->pairs, whole_strips(room->n), C, whole_strips(room->n),
                   accumulate);
}

/* out [tokens, tokens] = a . the transpose of what delta_across was given */
static void delta_dots(struct delta_room *room, float *out, const bf16 *a, int C) {
    int n = whole_strips(room->n);
    for (int r = 0; r < n; r += STRIP)
        strip_product(out + r * ET_PIECE, ET_PIECE, a + r * C, C, room->pairs, ET_PIECE, STRIP, n, C, 0);
}

/* state (accumulate: +)= across [C, tokens] . rows [tokens, C] */
static void delta_add_tokens(struct delta_room *room, float *state, const bf16 *across, int C, int accumulate) {
    delta_down(room, room->rows, C);
    strips_product(state, C, across, ET_PIECE, room->pairs, C, C, whole_strips(room->n), accumulate);
}

/* Which of two tokens is the later one: of row r or of column s. */
enum delta_order { DELTA_BEFORE, DELTA_UNTIL, DELTA_AFTER, DELTA_SINCE };

/* A of tokens r and at .. at + VL - 1, where these are before r, or r too (until); after it, or r too (since); else 0. */
INLINE vec delta_left(const struct delta_room *room, int r, int at, const enum delta_order order) {
    vec x = (room->u[r] - vload(room->u + at)) * LOG2_E;
    if (order == DELTA_BEFORE || order == DELTA_UNTIL)
        return exp2_vec(among_keys(x, r - at + (order == DELTA_UNTIL)));
    return exp2_vec(only_seen(-x, at - r - (order == DELTA_AFTER), 1, INT32_MAX));
}

/* mixed [r, s] = A (scores [r, s]), and so is kept, where it is not NULL. */
INLINE void delta_mix(struct delta_room *room, const float *scores, float *kept, const enum delta_order order) {
    for (int r = 0; r < room->n; r++)
        for (int i = 0; i < whole_strips(room->n); i += STRIP) {
            vec x[2];
            UNROLL for (int l = 0; l < 2; l++) {
                int at = r * ET_PIECE + i + l * VL;
                x[l] = delta_left(room, r, i + l * VL, order) * vload(scores + at);
                if (kept)
                    vstore(kept + at, x[l]);
            }
            store_rounded(room->mixed + r * ET_PIECE + i, x[0], x[1]);
        }
}

/* The keys' products k_r . k_s, and those with queries: q_r . k_s, or backward k_s . q_r. */
static void delta_half_keys(struct delta_room *room, int C, int backward) {
    int n = whole_strips(room->n);
    for (int r = 0; r < room->n; r++) {
        round_row(room->half_q + r * C, room->q + r * DELTA_C, C, C);
        round_row(room->half_k + r * C, room->k + r * DELTA_C, C, C);
    }
    memset(room->half_q + room->n * C, 0, (size_t)((n - room->n) * C) * sizeof *room->half_q);
    memset(room->half_k + room->n * C, 0, (size_t)((n - room->n) * C) * sizeof *room->half_k);
    memset(room->mixed, 0, sizeof room->mixed);
    transpose_rows(room->k_across, room->pairs, (struct tokens){room->half_k, C}, n, C);
    if (backward)
        transpose_rows(room->q_across, room->pairs, (struct tokens){room->half_q, C}, n, C);
    delta_across(room, room->half_k, C);
    delta_dots(room, room->kk, room->half_k, C);
    if (backward)
        delta_across(room, room->half_q, C);
    delta_dots(room, room->qk, backward ? room->half_k : room->half_q, C);
}

/* Tokens behind the last are as it is, and write nothing. */
static void delta_half_gates(struct delta_room *room, const struct delta_args *a, int h) {
    delta_gates(room, a, h);
    for (int r = room->n; r < ET_PIECE; r++) {
        room->beta[r] = 0;
        room->u[r] = room->u[room->n - 1];
    }
    for (int i = 0; i < ET_PIECE; i += VL) {
        vec u = vload(room->u + i) * LOG2_E;
        vstore(room->passed + i, exp2_vec(u));
        vstore(room->left + i, exp2_vec(room->u[room->n - 1] * LOG2_E - u));
    }
}

/* ---- the substitution ------------------------------------------------------------------------------------------ */

/* Those of a strip, x_r -= sum of A_rs (k_r . k_s) beta_s x_s, one after the other: tokens s are those before r, or after
 * it. */
INLINE void delta_solve_strip(struct delta_room *room, float *x, int begin, int C, const enum delta_order order) {
    int end = min_int(begin + STRIP, room->n);
    for (int i = begin; i < end; i++) {
        int r = order == DELTA_BEFORE ? i : begin + end - 1 - i;
        int from = order == DELTA_BEFORE ? begin : r + 1;
        int to = order == DELTA_BEFORE ? r : end;
        float weight[STRIP];
        UNROLL for (int l = 0; l < STRIP; l += VL)
            vstore(weight + l, delta_left(room, r, begin + l, order) * vload(room->kk + r * ET_PIECE + begin + l) *
                                   vload(room->beta + begin + l));
        for (int j = 0; j < C; j += 2 * VL) {
            vec low = vload(x + r * DELTA_C + j);
            vec high = vload(x + r * DELTA_C + j + VL);
            for (int s = from; s < to; s++) {
                low -= weight[s - begin] * vload(x + s * DELTA_C + j);
                high -= weight[s - begin] * vload(x + s * DELTA_C + j + VL);
            }
            vstore(x + r * DELTA_C + j, low);
            vstore(x + r * DELTA_C + j + VL, high);
        }
    }
}

/* What the strip from token `from` on takes from that at `to`. */
INLINE void delta_solve_other(struct delta_room *room, float *x, int to, int from, int C,
                              const enum delta_order order) {
    bf16 weights[STRIP * STRIP], others[STRIP * DELTA_C];
    for (int r = 0; r < STRIP; r++) {
        vec x2[2];
        UNROLL for (int l = 0; l < 2; l++) {
            int at = from + l * VL;
            x2[l] = -delta_left(room, to + r, at, order) * vload(room->kk + (to + r) * ET_PIECE + at) *
                    vload(room->beta + at);
        }
        store_rounded(weights + r * STRIP, x2[0], x2[1]);
        round_row(others + r * C, x + (from + r) * DELTA_C, C, C);
    }
    pack_down(room->pairs, (struct tokens){others, C}, STRIP, C);
    strip_product(x + to * DELTA_C, DELTA_C, weights, STRIP, room->pairs, C, STRIP, C, STRIP, 1);
}

static void delta_solve(struct delta_room *room, float *x, int C) {
    delta_solve_strip(room, x, 0, C, DELTA_BEFORE);
    if (room->n <= STRIP)
        return;
    delta_solve_other(room, x, STRIP, 0, C, DELTA_BEFORE);
    delta_solve_strip(room, x, STRIP, C, DELTA_BEFORE);
}

static void delta_solve_back(struct delta_room *room, float *x, int C) {
    if (room->n > STRIP) {
        delta_solve_strip(room, x, STRIP, C, DELTA_AFTER);
        delta_solve_other(room, x, 0, STRIP, C, DELTA_AFTER);
    }
    delta_solve_strip(room, x, 0, C, DELTA_AFTER);
}

/* ---- forward --------------------------------------------------------------------------------------------------- */

/* e, of S^T k there where there is a state */
static void delta_half_errors(struct delta_room *room, const struct delta_args *a, int h, int has_state) {
    int C = a->C;
    for (int r = 0; r < room->n; r++) {
        et_array v = delta_row(a->qkv, a, room->token[r], 2 * a->G + h);
        delta_ask(room, r + DELTA_AHEAD, a->qkv, a, 2 * a->G + h);
        float *e = room->e + r * DELTA_C;
        for (int i = 0; i < C; i += VL)
            vstore(e + i, has_state ? load_part(v, i, VL) - room->passed[r] * vload(e + i) : load_part(v, i, VL));
    }
    for (int r = room->n; r < whole_strips(room->n); r++)
        memset(room->e + r * DELTA_C, 0, (size_t)C * sizeof *room->e);
    delta_solve(room, room->e, C);
}

/* factor = beta, times what is left or passed where it is not NULL */
static void delta_factors(struct delta_room *room, const float *of, float sign) {
    for (int i = 0; i < ET_PIECE; i += VL)
        vstore(room->factor + i, sign * vload(room->beta + i) * (of ? vload(of + i) : splat(1.0f)));
}

static void delta_half_head(struct delta_room *room, const struct delta_args *a, int h, const float *source,
                            float *kept) {
    int C = a->C;
    delta_half_gates(room, a, h);
    if (source) {
        delta_state_down(room, source, C);
        delta_of_state(room, room->e, room->half_k, C, 0);
        delta_of_state(room, room->dq, room->half_q, C, 0); /* S^T q */
    }
    delta_half_errors(room, a, h, source != NULL);
    delta_rows(room, room->e, room->beta, C);
    delta_mix(room, room->qk, NULL, DELTA_UNTIL);
    delta_down(room, room->rows, C);
    delta_of_tokens(room, room->dk, C, 0);
    for (int r = room->replayed; r < room->n; r++) {
        et_array out = array_at(a->out, ((int64_t)room->token[r] * a->H + h) * C);
        for (int i = 0; i < C; i += VL) {
            vec x = vload(room->dk + r * DELTA_C + i);
            store_part(out, i, source ? x + room->passed[r] * vload(room->dq + r * DELTA_C + i) : x, VL);
        }
    }
    if (!kept)
        return;
    for (int64_t i = 0; source && i < (int64_t)C * C; i += VL)
        vstore(kept + i, room->passed[room->n - 1] * vload(source + i));
    delta_factors(room, room->left, 1.0f);
    delta_rows(room, room->e, room->factor, C);
    delta_add_tokens(room, kept, room->k_across, C, source != NULL);
}

static void delta_half_forward(struct delta_room *room, const struct delta_args *a, int g, const int32_t *piece) {
    delta_half_keys(room, a->C, 0);
    for (int h = g; h < a->H; h += a->G)
        delta_half_head(room, a, h, delta_state(a->states, a, piece[3], h), delta_state(a->states, a, piece[4], h));
}

#endif
