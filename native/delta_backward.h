/* The gradient of the gated delta rule (delta.h), which says what the letters are. */

/* e of value head h's tokens, and dd = G^T k, which is the gradient of d, as G passes back through them. The gradient of
 * the state at the begin of the piece is added to that of `source`. Returns the sum of S G at its end. */
static float delta_passes(struct delta_room *room, const struct delta_args *a, int h, const int32_t *piece) {
    float *s = room->last;
    float *grad = room->last + DELTA_C * DELTA_W;
    float *before = delta_state(a->dstates, a, piece[3], h);
    vec total = {0};
    for (int begin = 0; begin < a->C; begin += DELTA_W) {
        vec d[DELTA_NV], dd[DELTA_NV], du[DELTA_NV], dout[DELTA_NV];
        delta_take(s, delta_state(a->states, a, piece[3], h), begin, a->C);
        delta_columns(room, a, h, begin, s, d, 1);
        delta_take(grad, delta_state(a->dstates, a, piece[4], h), begin, a->C);
        const float *k = room->k + (room->n - 1) * DELTA_C;
        for (int64_t i = 0; piece[4] >= 0 && i < a->C; i++)
            for (int j = 0; j < DELTA_NV; j++)
                total += vload(grad + i * DELTA_W + j * VL) * (vload(s + i * DELTA_W + j * VL) + k[i] * d[j]);
        for (int j = 0; j < DELTA_NV; j++)
            du[j] = (vec){0};
        for (int r = room->n - 1; r >= 0; r--) {
            const int is_last = r == room->n - 1;
            const float *own = room->k + r * DELTA_C;
            for (int j = 0; j < DELTA_NV; j++)
                dout[j] = vload(room->dout + r * DELTA_C + begin + j * VL);
            delta_step_back(grad, is_last ? own : own + DELTA_C, du, is_last ? 1.0f : room->decay[r + 1],
                            room->q + r * DELTA_C, dout, own, a->C, dd);
            for (int j = 0; j < DELTA_NV; j++) {
                vstore(room->dd + r * DELTA_C + begin + j * VL, dd[j]);
                du[j] = -room->beta[r] * dd[j];
            }
        }
        if (before)
            delta_put(before, grad, room->k, du, room->decay[0], begin, a->C, 1);
    }
    return lanes_sum(total);
}

/* du: what the decay until a token has of it, dout . out - beta dd . v; of which `read` is the first. */
static void delta_decay_gradients(struct delta_room *room, const struct delta_args *a, int h) {
    for (int r = 0; r < room->n; r++) {
        float v[DELTA_C];
        delta_read(v, delta_row(a->qkv, a, room->token[r], 2 * a->G + h), a->C);
        room->du[r] = room->read[r] - room->beta[r] * dot(room->dd + r * DELTA_C, v, a->C);
    }
}

/* Adds to the gradients of v, beta and alpha of value head h. total: the sum of S G at the end of the piece; that of
 * P G of a token is the gradient of its g. */
static void delta_gate_gradients(const struct delta_room *room, const struct delta_args *a, int h, float total) {
    for (int r = room->n - 1; r >= 0; r--) {
        int64_t at = (int64_t)room->token[r] * a->H + h;
        const float *dd = room->dd + r * DELTA_C;
        float beta = room->beta[r];
        total += room->du[r];
        a->dbeta[at] += dot(dd, room->e + r * DELTA_C, a->C) * beta * (1.0f - beta);
        a->dalpha[at] += total * a->a[h] * delta_sigmoid(a->alpha[at] + a->dt[h]);
        delta_ask(room, r - DELTA_AHEAD, a->dqkv, a, 2 * a->G + h);
        delta_add(delta_row(a->dqkv, a, room->token[r], 2 * a->G + h), dd, beta, a->C);
    }
}

/* The next row of decays: of what was written at each token before until token r, which it is of. */
static void delta_decays(float *decays, float decay, int r) {
    const vec least = splat(1e-30f); /* what is less adds nothing, and products of it would be denormals */
    for (int64_t s = 0; s < r; s += VL) {
        vec x = decay * vload(decays + s);
        vstore(decays + s, blend(x > least, x, (vec){0}));
    }
    decays[r] = 1.0f;
}

/* Multiplies the n rows by factors. */
static void delta_scale(float *rows, const float *factors, int n, int columns) {
    for (int64_t r = 0; r < n; r++)
        for (int64_t i = 0; i < columns; i += VL)
            vstore(rows + r * DELTA_C + i, factors[r] * vload(rows + r * DELTA_C + i));
}

/* reads [r, s]: dout_r . d_s, as far as it is not decayed until r, for s <= r; writes: du_r . d_s for s < r, and for
 * r < s the same of s and r. passed [r]: how far all before the piece is decayed then; decays: d_r at its end. */
static void delta_pairs(struct delta_room *room, int C, float *passed, float *decays) {
    int n = room->n;
    int columns = delta_padded(n);
    int rows = delta_padded(C);
    float *e = room->first; /* transposed: [C, n] */
    memset(e, 0, sizeof room->first);
    delta_transpose(e, ET_PIECE, room->e, DELTA_C, n, C);
    memset(room->reads, 0, sizeof room->reads);
    memset(room->writes, 0, sizeof room->writes);
    delta_product(room->reads, ET_PIECE, room->dout, DELTA_C, 1, e, ET_PIECE, n, columns, rows);
    delta_product(room->writes, ET_PIECE, room->dd, DELTA_C, 1, e, ET_PIECE, n, columns, rows);
    memset(decays, 0, ET_PIECE * sizeof *decays);
    for (int r = 0; r < n; r++) {
        float *read = room->reads + r * ET_PIECE;
        float *write = room->writes + r * ET_PIECE;
        passed[r] = (r ? passed[r - 1] : 1.0f) * room->decay[r];
        delta_decays(decays, room->decay[r], r);
        for (int64_t s = 0; s < columns; s += VL) {
            vec known = vload(decays + s) * vload(room->beta + s);
            vstore(read + s, known * vload(read + s));
            vstore(write + s, -room->beta[r] * known * vload(write + s));
        }
        write[r] = 0;
    }
    for (int64_t r = 0; r < n; r++)
        for (int64_t s = 0; s < r; s++)
            room->writes[s * ET_PIECE + r] = room->writes[r * ET_PIECE + s];
}

/* Adds to dq = S dout and dk = G d + P du of value head h, after its passes. S and P are what was there before the piece
 * and k d^T of its tokens, G is what was there after it, and q dout^T and k du^T. */
static void delta_queries(struct delta_room *room, const struct delta_args *a, int h, const int32_t *piece) {
    float passed[ET_PIECE], decays[ET_PIECE], factors[ET_PIECE];
    const float *source = delta_state(a->states, a, piece[3], h);
    const float *grad = delta_state(a->dstates, a, piece[4], h);
    const int64_t W = DELTA_C, N = ET_PIECE;
    int n = room->n;
    int C = delta_padded(a->C);
    delta_pairs(room, a->C, passed, decays);
    delta_product(room->dq, W, room->reads, N, 1, room->k, W, n, C, n);
    delta_product(room->dk, W, room->reads, 1, N, room->q, W, n, C, n);
    delta_product(room->dk, W, room->writes, N, 1, room->k, W, n, C, n);
    if (source) {
        for (int r = 0; r < n; r++)
            factors[r] = -room->beta[r] * passed[r];
        delta_scale(room->dout, passed, n, C);
        delta_scale(room->dd, factors, n, C);
        delta_transpose(room->first, W, source, a->C, a->C, a->C);
        delta_product(room->dq, W, room->dout, W, 1, room->first, W, n, C, a->C);
        delta_product(room->dk, W, room->dd, W, 1, room->first, W, n, C, a->C);
    }
    if (grad) {
        for (int r = 0; r < n; r++)
            factors[r] = room->beta[r] * decays[r];
        delta_scale(room->e, factors, n, C);
        delta_transpose(room->last, W, grad, a->C, a->C, a->C);
        delta_product(room->dk, W, room->e, W, 1, room->last, W, n, C, a->C);
    }
}

/* Adds the gradient of a row of q or k, of length `length` by delta_unit, from that of what it became. */
static void delta_unit_backward(et_array to, const float *row, float *grad, float unit, float length, int C) {
    float along = dot(row, grad, C) / length;
    EACH_VECTOR(i, n, 0, C,
                vstore_part(grad + i, length * vload_part(grad + i, n) - along * vload_part(row + i, n), n));
    delta_add(to, grad, unit, C);
}

static void delta_zero(const struct delta_args *a, int g) {
    for (int t = 0; t < a->T; t++) {
        const float zeros[VL] = {0};
        et_array row = array_at(a->dqkv, (int64_t)t * (2 * a->G + a->H) * a->C);
        for (int head = g; head < 2 * a->G + a->H; head += a->G)
            EACH_VECTOR(i, n, 0, a->C, store_part(row, (int64_t)head * a->C + i, vload(zeros), n));
        for (int h = g; h < a->H; h += a->G)
            a->dbeta[(int64_t)t * a->H + h] = a->dalpha[(int64_t)t * a->H + h] = 0;
    }
    size_t state = (size_t)a->C * (size_t)a->C;
    for (int64_t slot = 0; slot < a->floats / (int64_t)((size_t)a->H * state); slot++)
        for (int h = g; h < a->H; h += a->G)
            memset(delta_state(a->dstates, a, (int)slot, h), 0, state * sizeof *a->dstates);
}

static void delta_float_backward(struct delta_room *room, const struct delta_args *a, int g, const int32_t *piece) {
    if (a->rounds) /* others leave there what may be no numbers */
        memset(room->dout, 0, sizeof room->dout + sizeof room->first + sizeof room->last);
    for (int h = g; h < a->H; h += a->G) {
        delta_gates(room, a, h);
        memset(room->read, 0, sizeof room->read);
        memset(room->dout, 0, sizeof room->dout);
        for (int r = room->replayed; r < room->n; r++)
            delta_read(room->dout + r * DELTA_C, array_at(a->dout, ((int64_t)room->token[r] * a->H + h) * a->C), a->C);
        float total = delta_passes(room, a, h, piece);
        delta_decay_gradients(room, a, h);
        delta_gate_gradients(room, a, h, total);
        delta_queries(room, a, h, piece);
    }
}

static void delta_backward_task(void *arg, int g, int thread) {
    const struct delta_args *a = arg;
    struct delta_room *room = (struct delta_room *)et_scratch(a->ctx, thread);
    uint8_t before[TILE_STATE];
    float length = 1.0f / sqrtf((float)a->C);
    DELTA_BEGIN(a, before);
    memset(room, 0, sizeof *room); /* rows and columns behind those of a piece: numbers, whatever they are */
    delta_zero(a, g);
    for (int p = a->P - 1; p >= 0; p--) {
        const int32_t *piece = a->pieces + p * ET_PIECE_COLUMNS;
        delta_keys(room, a, piece, g);
        memset(room->dq, 0, sizeof room->dq);
        memset(room->dk, 0, sizeof room->dk);
        DELTA_PIECE(backward, room, a, g, piece);
        for (int r = 0; r < room->n; r++) {
            const float *q = room->q + r * DELTA_C;
            const float *k = room->k + r * DELTA_C;
            delta_unit_backward(delta_row(a->dqkv, a, room->token[r], g), q, room->dq + r * DELTA_C, room->q_unit[r],
                                length, a->C);
            delta_unit_backward(delta_row(a->dqkv, a, room->token[r], a->G + g), k, room->dk + r * DELTA_C,
                                room->k_unit[r], 1.0f, a->C);
        }
    }
    DELTA_END(a, before);
}

/* The gradients of qkv, beta and alpha; dstates is work space as large as states, which forward left. */
static void delta_backward(et_context *ctx, et_array dqkv, float *dbeta, float *dalpha, float *dstates, et_array dout,
                           et_array qkv, const float *beta, const float *alpha, const float *a, const float *dt,
                           const float *states, const int32_t *before, const int32_t *pieces, float eps, int64_t floats,
                           int T, int H, int E, int C, int P) {
    struct delta_args args = {.ctx = ctx,
                              .dqkv = dqkv,
                              .dbeta = dbeta,
                              .dalpha = dalpha,
                              .dstates = dstates,
                              .dout = dout,
                              .qkv = qkv,
                              .beta = beta,
                              .alpha = alpha,
                              .a = a,
                              .dt = dt,
                              .states = (float *)states,
                              .before = before,
                              .pieces = pieces,
                              .eps = eps,
                              .floats = floats,
                              .T = T,
                              .H = H,
                              .G = (E - H) / 2,
                              .C = C,
                              .P = P,
                              .rounds = DELTA_ROUNDS(ctx, C)};
    et_parallel(ctx, delta_backward_task, &args, args.G);
}
