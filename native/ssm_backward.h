/* Backward of ssm.h. G being the gradient of a piece's last state, D_t that of its outputs, and M_ts = (C_t . B_s)
 * e^(u_t - u_s):
 *
 *   V_s = sum over t >= s of M_ts D_t + e^(u - u_s) G^T B_s,  dx_s = dt_s V_s + skip D_s,
 *   dscores_ts = e^(u_t - u_s) dt_s (D_t . x_s), from which dB and dC follow, with
 *   dC_t += e^(u_t) S D_t,  dB_s += e^(u - u_s) dt_s G x_s,
 *   du_t = D_t . (out_t - skip x_t) - dt_t V_t . x_t, and G . S at the end more for the last: what e^u multiplies,
 *   d(dt)_t = V_t . x_t + a (the sum of du from t on).
 *
 * First the gradients of kept states are made, from the last piece to the first; then those of all inputs of a piece.
 * Pieces that replay the same tokens are one task, which adds up what they say of these. */

/* The gradient of the state that a piece begins from, of a head. */
static void ssm_dstate_of_piece(const struct ssm_args *a, struct ssm_room *r, int h) {
    float *dstate = ssm_state(a, a->dstates, r->source, h);
    int C = a->C;
    int own = r->replayed;
    ssm_take_head(a, r, h);
    ssm_take_rows(a, r, r->dout, a->dout, a->H * C, h);
    ssm_scale_rows(r->dout, r->begin, r->n, C);
    if (r->kept >= 0) {
        const float *last = ssm_state(a, a->dstates, r->kept, h);
        for (int i = 0; i < a->N * C; i += VL)
            vstore(dstate + i, vload(dstate + i) + vload(last + i) * r->decay);
    }
    ssm_product(dstate, C, ssm_side(r->c + own, ET_PIECE), r->dout + own * C, C, a->N, C, r->n - own, 1,
                SSM_ALL);
}

/* Those of all kept states, of a few heads. */
static void ssm_dstates_task(void *arg, int task, int thread) {
    const struct ssm_args *a = arg;
    struct ssm_room *r = ssm_room(a, thread);
    int begin = task * SSM_HEADS;
    int end = min_int(begin + SSM_HEADS, a->H);
    int64_t slots = a->floats / ((int64_t)a->H * a->N * a->C);
    for (int64_t slot = 0; slot < slots; slot++)
        memset(ssm_state(a, a->dstates, (int)slot, begin), 0, (size_t)(end - begin) * a->N * a->C * sizeof(float));
    for (int p = a->P - 1; p >= 0; p--) {
        ssm_take_piece(a, r, p);
        if (r->source < 0)
            continue;
        for (int h = begin; h < end; h++) {
            int g = h / (a->H / a->G);
            if (h == begin || h % (a->H / a->G) == 0)
                ssm_take_across(a, r, r->c, a->H * a->C + (a->G + g) * a->N);
            ssm_dstate_of_piece(a, r, h);
        }
    }
}

/* Of what tokens replay nothing is an output. */
static void ssm_take_dout(const struct ssm_args *a, struct ssm_room *r, int h) {
    ssm_take_rows(a, r, r->dout, a->dout, a->H * a->C, h);
    memset(r->dout, 0, (size_t)(r->replayed * a->C) * sizeof *r->dout);
    pack_transposed(r->dout_across, ET_PIECE, r->dout, a->C, r->n, a->C);
    pack_transposed(r->x_across, ET_PIECE, r->x, a->C, r->n, a->C);
}

/* mixed = M, dscores += their gradient, du = the sum of dscores * scores over s. */
static void ssm_scores_backward(const struct ssm_args *a, struct ssm_room *r) {
    ssm_product(r->mixed, ET_PIECE, ssm_side(r->dout, a->C), r->x_across, ET_PIECE, r->n, ET_PIECE, a->C, 0,
                SSM_CAUSAL);
    for (int t = 0; t < r->n; t++) {
        vec sum = {0};
        for (int i = 0; i < ssm_columns(t); i += VL) {
            int at = t * ET_PIECE + i;
            vec decay = vec_exp(r->u[t] - vload(r->u + i));
            vec score = ssm_causal(vload(r->scores + at), t, i);
            vec dscore = ssm_causal(vload(r->mixed + at) * decay * vload(r->dt + i), t, i);
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
    int continued = r->kept >= 0;
    if (continued) {
        ssm_product(r->y, C, ssm_across(r->b, ET_PIECE), ssm_state(a, a->dstates, r->kept, h), C, r->n, C,
                    a->N, 0, SSM_ALL);
        ssm_scale_rows(r->y, r->end, r->n, C);
    }
    ssm_product(r->y, C, ssm_across(r->mixed, ET_PIECE), r->dout, C, r->n, C, r->n, continued, SSM_UPPER);
}

/* sum [N, tokens] += factor * state . x_across; sums (NULL: not wanted) += the sum over N of that times `by`. */
static void ssm_add_across(const struct ssm_args *a, struct ssm_room *r, float *sum, const float *state,
                           const float *across, const float *factor, const float *by, float *sums) {
    float part[MR * ET_PIECE];
    for (int n = 0; n < a->N; n += MR) {
        ssm_product(part, ET_PIECE, ssm_side(state + n * a->C, a->C), across, ET_PIECE, MR, ET_PIECE, a->C, 0,
                    SSM_ALL);
        for (int i = 0; i < r->n; i += VL) {
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

/* Row i of a piece's tokens: set by the piece whose own it is, added to by those that replay it. */
static void ssm_put_row(const struct ssm_args *a, const struct ssm_room *r, int i, int at, const float *x, int n) {
    float *out = a->dinp + (int64_t)r->token[i] * a->W + at;
    for (int j = 0; j < n; j += VL)
        vstore(out + j, i < r->replayed ? vload(out + j) + vload(x + j) : vload(x + j));
}

/* dx, and the gradient of dt. */
static void ssm_tokens_backward(const struct ssm_args *a, struct ssm_room *r, int h) {
    int C = a->C;
    float *ddt = a->steps + ((ptrdiff_t)2 * a->H + h) * a->T;
    float sum = r->kept < 0 ? 0 : dot(ssm_state(a, a->states, r->kept, h), ssm_state(a, a->dstates, r->kept, h),
                                      (int64_t)a->N * C);
    for (int i = r->n - 1; i >= 0; i--) {
        float own = dot(r->x + i * C, r->y + i * C, C);
        sum += r->du[i] - r->dt[i] * own;
        float grad = own + a->a[h] * sum;
        ddt[r->token[i]] = i < r->replayed ? ddt[r->token[i]] + grad : grad;
        for (int j = i * C; j < (i + 1) * C; j += VL)
            vstore(r->y + j, vload(r->y + j) * r->dt[i] + a->skip[h] * vload(r->dout + j));
        ssm_put_row(a, r, i, h * C, r->y + i * C, C);
    }
}

static void ssm_head_backward(const struct ssm_args *a, struct ssm_room *r, int h) {
    float factor[ET_PIECE];
    ssm_take_head(a, r, h);
    ssm_take_dout(a, r, h);
    ssm_scores_backward(a, r);
    ssm_values_backward(a, r, h);
    if (r->source >= 0)
        ssm_add_across(a, r, r->dc, ssm_state(a, a->states, r->source, h), r->dout_across, r->begin, r->c, r->du);
    for (int i = 0; i < ET_PIECE; i++)
        factor[i] = r->end[i] * r->dt[i];
    if (r->kept >= 0)
        ssm_add_across(a, r, r->db, ssm_state(a, a->dstates, r->kept, h), r->x_across, factor, NULL, NULL);
    ssm_tokens_backward(a, r, h);
}

/* dB and dC of a group. */
static void ssm_group_backward(const struct ssm_args *a, struct ssm_room *r, int g) {
    int N = a->N;
    ssm_product(r->db, ET_PIECE, ssm_side(r->c, ET_PIECE), r->dscores, ET_PIECE, N, ET_PIECE, r->n, 1,
                SSM_ALL);
    pack_transposed(r->mixed, ET_PIECE, r->dscores, ET_PIECE, r->n, r->n);
    ssm_product(r->dc, ET_PIECE, ssm_side(r->b, ET_PIECE), r->mixed, ET_PIECE, N, ET_PIECE, r->n, 1, SSM_ALL);
    pack_transposed(r->x, N, r->db, ET_PIECE, N, r->n);
    pack_transposed(r->y, N, r->dc, ET_PIECE, N, r->n);
    for (int i = 0; i < r->n; i++) {
        ssm_put_row(a, r, i, a->H * a->C + g * N, r->x + i * N, N);
        ssm_put_row(a, r, i, a->H * a->C + (a->G + g) * N, r->y + i * N, N);
    }
}

/* A piece that replays nothing, and those that replay its tokens. */
static void ssm_backward_task(void *arg, int task, int thread) {
    const struct ssm_args *a = arg;
    struct ssm_room *r = ssm_room(a, thread);
    for (int p = task; p >= 0 && (p != task || !a->pieces[(ptrdiff_t)p * ET_PIECE_COLUMNS + 2]); p = a->next[p]) {
        ssm_take_piece(a, r, p);
        for (int g = 0; g < a->G; g++) {
            ssm_take_group(a, r, g);
            ssm_scores(a, r);
            memset(r->db, 0, (size_t)a->N * ET_PIECE * sizeof *r->db);
            memset(r->dc, 0, (size_t)a->N * ET_PIECE * sizeof *r->dc);
            memset(r->dscores, 0, sizeof r->dscores);
            for (int h = g * (a->H / a->G); h < (g + 1) * (a->H / a->G); h++)
                ssm_head_backward(a, r, h);
            ssm_group_backward(a, r, g);
        }
    }
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

static void ssm_backward(et_context *ctx, float *dinp, et_array drows, float *states, float *dstates, float *steps,
                         et_array dout, et_array inp, et_array rows, const float *bias, const float *a,
                         const float *skip, const int32_t *before, const int32_t *pieces, int64_t floats, int T, int W,
                         int E, int H, int C, int N, int P) {
    int32_t *room = (int32_t *)(void *)et_shared(ctx);
    struct ssm_args args = {.ctx = ctx, .dinp = dinp, .drows = drows, .states = states, .dstates = dstates,
                            .steps = steps, .dout = dout, .inp = inp, .rows = rows, .bias = bias, .a = a,
                            .skip = skip, .before = before, .pieces = pieces, .next = room, .floats = floats,
                            .T = T, .W = W, .E = E, .H = H, .C = C, .N = N, .G = (W - H * C) / (2 * N), .P = P};
    ssm_chain(&args, room + P);
    ssm_states(&args);
    et_parallel(ctx, ssm_dstates_task, &args, ceil_div(H, SSM_HEADS));
    et_parallel(ctx, ssm_backward_task, &args, P);
    et_parallel(ctx, ssm_steps_backward_task, &args, row_tasks(T, H));
}
