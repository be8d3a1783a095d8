/* Backward of a piece of the delta rule in bf16: delta_bf16.h has the formulas. */

#ifdef ET_BF16_PRODUCTS

/* What G gives to x and to dk; returns the sum of G and what tokens add to S. */
static float delta_last_backward(struct delta_room *room, const float *grad, int C) {
    float total = 0;
    delta_state_down(room, grad, C);
    delta_of_state(room, room->dd, room->half_k, C, 0);
    for (int r = 0; r < whole_strips(room->n); r++) {
        vec sum = {0};
        for (int i = r * DELTA_C; i < r * DELTA_C + C; i += VL) {
            vec x = room->left[r] * vload(room->dd + i);
            vstore(room->dd + i, x);
            sum += x * vload(room->e + i);
        }
        float written = room->beta[r] * lanes_sum(sum);
        room->du[r] -= written;
        total += written;
    }
    delta_state_across(room, grad, C);
    delta_factors(room, room->left, 1.0f);
    delta_rows(room, room->e, room->factor, C);
    delta_of_state(room, room->dk, room->rows, C, 1);
    return total;
}

/* du += sign (q . dq + k . dk) */
static void delta_add_du(struct delta_room *room, float sign, int C) {
    for (int r = 0; r < room->n; r++)
        room->du[r] += sign * (dot(room->q + r * DELTA_C, room->dq + r * DELTA_C, C) +
                               dot(room->k + r * DELTA_C, room->dk + r * DELTA_C, C));
}

/* The products x of pairs of tokens with their scores: added to du of the token of a row, taken from that of a column.
 * Or the other way round, by sign. */
static void delta_add_pairs(struct delta_room *room, const float *x, const float *scores, float sign) {
    for (int i = 0; i < whole_strips(room->n); i += STRIP) {
        vec of_columns[2] = {0};
        for (int r = 0; r < room->n; r++) {
            vec of_row = {0};
            UNROLL for (int l = 0; l < 2; l++) {
                int at = r * ET_PIECE + i + l * VL;
                vec product = sign * vload(x + at) * vload(scores + at);
                of_columns[l] += product;
                of_row += product;
            }
            room->du[r] += lanes_sum(of_row);
        }
        vstore(room->du + i, vload(room->du + i) - of_columns[0]);
        vstore(room->du + i + VL, vload(room->du + i + VL) - of_columns[1]);
    }
}

/* What S gives to dq and dk, and its gradient. */
static void delta_first_backward(struct delta_room *room, const float *source, float *dsource, const float *grad,
                                 int C) {
    delta_add_du(room, -1.0f, C);
    delta_state_across(room, source, C);
    delta_half_rows(room, room->half_dout, room->passed, C);
    delta_of_state(room, room->dq, room->rows, C, 1);
    delta_factors(room, room->passed, -1.0f);
    delta_rows(room, room->dd, room->factor, C);
    delta_of_state(room, room->dk, room->rows, C, 1);
    delta_add_du(room, 1.0f, C);
    for (int64_t i = 0; grad && i < (int64_t)C * C; i += VL)
        vstore(dsource + i, vload(dsource + i) + room->passed[room->n - 1] * vload(grad + i));
    delta_add_tokens(room, dsource, room->k_across, C, 1);
    delta_half_rows(room, room->half_dout, room->passed, C);
    delta_add_tokens(room, dsource, room->q_across, C, 1);
}

/* What tokens give to each other's dq and dk. */
static void delta_tokens_backward(struct delta_room *room, int C) {
    const int all = ET_PIECE * ET_PIECE;
    float *across = room->pairs; /* the transpose, before pairs are made */
    delta_rows(room, room->e, room->beta, C);
    delta_across(room, room->rows, C);
    delta_dots(room, room->wide, room->half_dout, C);
    delta_mix(room, room->wide, room->wide, DELTA_UNTIL);
    delta_down(room, room->half_k, C);
    delta_of_tokens(room, room->dq, C, 1);
    pack_transposed(across, ET_PIECE, room->wide, ET_PIECE, ET_PIECE, ET_PIECE);
    delta_add_pairs(room, across, room->qk, -1.0f);
    round_row(room->mixed, across, all, all);
    delta_down(room, room->half_q, C);
    delta_of_tokens(room, room->dk, C, 1);

    delta_across(room, room->rows, C);
    delta_factors(room, NULL, -1.0f);
    delta_rows(room, room->dd, room->factor, C);
    delta_dots(room, room->wide, room->rows, C);
    delta_mix(room, room->wide, room->wide, DELTA_BEFORE);
    delta_add_pairs(room, room->wide, room->kk, 1.0f);
    pack_transposed(across, ET_PIECE, room->wide, ET_PIECE, ET_PIECE, ET_PIECE);
    for (int i = 0; i < all; i += VL)
        vstore(across + i, vload(across + i) + vload(room->wide + i));
    round_row(room->mixed, across, all, all);
    delta_down(room, room->half_k, C);
    delta_of_tokens(room, room->dk, C, 1);
}

/* dout, of tokens that are not replayed. */
static void delta_half_dout(struct delta_room *room, const struct delta_args *a, int h) {
    int C = a->C;
    memset(room->half_dout, 0, (size_t)(whole_strips(room->n) * C) * sizeof *room->half_dout);
    for (int r = room->replayed; r < room->n; r++)
        for (int i = 0; i < C; i += BF16_RUN)
            pack_run(room->half_dout + r * C + i, array_at(a->dout, ((int64_t)room->token[r] * a->H + h) * C + i),
                     BF16_RUN);
}

static void delta_half_head_backward(struct delta_room *room, const struct delta_args *a, int h, const int32_t *piece) {
    int C = a->C;
    const float *source = delta_state(a->states, a, piece[3], h);
    const float *grad = delta_state(a->dstates, a, piece[4], h);
    float total = 0;
    memset(room->du, 0, sizeof room->du);
    delta_half_gates(room, a, h);
    delta_half_dout(room, a, h);
    if (source) {
        delta_state_down(room, source, C);
        delta_of_state(room, room->e, room->half_k, C, 0);
    }
    delta_half_errors(room, a, h, source != NULL);
    if (grad)
        total = delta_last_backward(room, grad, C);
    if (grad && source)
        total += room->passed[room->n - 1] * dot(source, grad, (int64_t)C * C);
    delta_mix(room, room->qk, NULL, DELTA_SINCE);
    delta_down(room, room->half_dout, C);
    delta_of_tokens(room, room->dd, C, grad != NULL);
    delta_solve_back(room, room->dd, C);
    if (source)
        delta_first_backward(room, source, delta_state(a->dstates, a, piece[3], h), grad, C);
    delta_tokens_backward(room, C);
    delta_gate_gradients(room, a, h, total);
}

static void delta_half_backward(struct delta_room *room, const struct delta_args *a, int g, const int32_t *piece) {
    delta_half_keys(room, a->C, 1);
    for (int h = g; h < a->H; h += a->G)
        delta_half_head_backward(room, a, h, piece);
}

#endif
