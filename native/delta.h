/* The gated delta rule of Qwen3.5. Each value head has a state S [C, C], which a token changes and reads:
 *
 *   P = e^g S,  u = P^T k,  d = beta (v - u),  S = P + k d^T,  out = S^T q.
 *
 * q and k have length 1, but for q's factor 1 / sqrt(C). Columns of S do not depend on each other, so they are computed
 * DELTA_W at a time, which fit into the first cache. Tokens come in pieces (edgetune/data/packing.py), and states are
 * kept after some of them only.
 *
 * Backward takes the pieces from the last to the first. It makes e = v - u of a piece's tokens again and passes the
 * gradient G of the state back through it, both a few columns at a time. The gradients of q and k are sums over what is
 * added to S and to G, which within a piece are products of matrices (delta_queries). In bf16 all of it is products
 * (delta_bf16.h). */

enum {
    DELTA_NV = VL < 8 ? 4 : 2, /* vectors of a row: enough sums to hide an addition's latency, few enough registers */
    DELTA_W = DELTA_NV * VL,
    DELTA_MR = VL < 16 ? 4 : 8, /* rows of a tile of products: their sums fill the registers */
    DELTA_C = ET_MAX_STATE,
    DELTA_AHEAD = 8, /* rows that are asked for before they are read */
};

struct delta_args {
    et_context *ctx;
    et_array out, dqkv, dout, qkv; /* qkv: of each token q of G heads, k of G heads, v of H heads */
    float *states, *dbeta, *dalpha, *dstates;
    const float *beta, *alpha, *a, *dt;
    const int32_t *before, *pieces;
    float eps;
    int64_t floats; /* of states */
    int T, H, G, C, P;
    int rounds; /* whether pieces of enough tokens are multiplied in bf16 */
};

/* What a thread has of a piece: of each of its tokens, those that it replays first. Rows are C wide, then zero. */
struct delta_room {
    float q[ET_PIECE * DELTA_C], k[ET_PIECE * DELTA_C];  /* of a key head */
    float e[ET_PIECE * DELTA_C], dd[ET_PIECE * DELTA_C]; /* of a value head */
    float dq[ET_PIECE * DELTA_C], dk[ET_PIECE * DELTA_C];
    union {
        struct {
            float dout[ET_PIECE * DELTA_C];
            float first[DELTA_C * DELTA_C], last[DELTA_C * DELTA_C]; /* transposed matrices, or columns of S and G */
            float reads[ET_PIECE * ET_PIECE], writes[ET_PIECE * ET_PIECE];
        };
#ifdef ET_BF16_PRODUCTS
        struct {
            bf16 half_q[ET_PIECE * DELTA_C], half_k[ET_PIECE * DELTA_C], half_dout[ET_PIECE * DELTA_C];
            bf16 q_across[DELTA_C * ET_PIECE], k_across[DELTA_C * ET_PIECE];
            bf16 rows[ET_PIECE * DELTA_C], mixed[ET_PIECE * ET_PIECE], state[DELTA_C * DELTA_C]; /* on their way */
            float pairs[DELTA_C * DELTA_C / 2]; /* the second side of a product */
            float kk[ET_PIECE * ET_PIECE], qk[ET_PIECE * ET_PIECE], wide[ET_PIECE * ET_PIECE];
            float passed[ET_PIECE], left[ET_PIECE], factor[ET_PIECE]; /* passed: e^u; left: what is so until the end */
        };
#endif
    };
    float beta[ET_PIECE], decay[ET_PIECE], kq[ET_PIECE], read[ET_PIECE], q_unit[ET_PIECE], k_unit[ET_PIECE];
    float u[ET_PIECE], du[ET_PIECE]; /* u: the sum of g until a token */
    int32_t token[ET_PIECE];
    int n, replayed;
};

_Static_assert(sizeof(struct delta_room) <= ET_THREAD_FLOATS * sizeof(float), "a thread's scratch holds a piece");
_Static_assert(DELTA_C % DELTA_W == 0 && ET_PIECE % DELTA_W == 0, "rows are padded to whole columns");

/* n, rounded up to what is computed at a time. */
static inline int delta_padded(int n) { return ceil_div(n, DELTA_W) * DELTA_W; }

/* ---- arrays ---------------------------------------------------------------------------------------------------- */

static inline vec delta_load(const float *p, int64_t n) { return n > 0 ? vload_part(p, n) : (vec){0}; }

static et_array delta_row(et_array qkv, const struct delta_args *a, int token, int head) {
    return array_at(qkv, ((int64_t)token * (2 * a->G + a->H) + head) * a->C);
}

static float *delta_state(float *states, const struct delta_args *a, int slot, int h) {
    return slot < 0 ? NULL : states + ((int64_t)slot * a->H + h) * a->C * a->C;
}

/* Asks for the row of a head of token r, where there is one: rows are far apart. */
static inline void delta_ask(const struct delta_room *room, int r, et_array qkv, const struct delta_args *a, int head) {
    if (r < 0 || r >= room->n)
        return;
    const char *row = delta_row(qkv, a, room->token[r], head).data;
    for (int i = 0; i < a->C * (qkv.type == ET_F32 ? 4 : 2); i += 64)
        __builtin_prefetch(row + i);
}

/* The n floats of a row, then zeros. */
static void delta_read(float *row, et_array from, int n) {
    for (int64_t i = 0; i < delta_padded(n); i += VL)
        vstore(row + i, i < n ? load_part(from, i, n - i) : (vec){0});
}

/* to [n] += factor * row */
static void delta_add(et_array to, const float *row, float factor, int n) {
    EACH_VECTOR(i, part, 0, n, store_part(to, i, load_part(to, i, part) + factor * vload_part(row + i, part), part));
}

/* Makes a row, of `padded` values, as long as `length`; returns what it was divided by length for: 1 / its length. */
static float delta_unit(float *row, float length, float eps, int padded) {
    float unit = 1.0f / sqrtf(dot(row, row, padded) + eps);
    for (int64_t i = 0; i < padded; i += VL)
        vstore(row + i, unit * length * vload(row + i));
    return unit;
}

/* to [columns, rows], at to_row floats a row, = from [rows, columns] transposed: a few columns at a time, as rows of
 * `from` are where they meet in the cache. */
static void delta_transpose(float *to, int64_t to_row, const float *from, int64_t from_row, int rows, int columns) {
    for (int64_t begin = 0; begin < columns; begin += 16)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = begin; i < begin + 16 && i < columns; i++)
                to[i * to_row + r] = from[r * from_row + i];
}

/* out [m, n] += a . b [k, n]; a's element (r, s) is at a[r * row + s * column]. m is rounded up to a multiple of
 * DELTA_MR, n to one of DELTA_W. */
static void delta_product(float *out, int64_t out_row, const float *a, int64_t row, int64_t column, const float *b,
                          int64_t b_row, int m, int n, int k) {
    for (int64_t i = 0; i < n; i += DELTA_W)
        for (int64_t r = 0; r < m; r += DELTA_MR) {
            vec sum[DELTA_MR][DELTA_NV];
            for (int x = 0; x < DELTA_MR; x++)
                for (int j = 0; j < DELTA_NV; j++)
                    sum[x][j] = vload(out + (r + x) * out_row + i + j * VL);
            for (int64_t s = 0; s < k; s++) {
                vec factor[DELTA_NV];
                for (int j = 0; j < DELTA_NV; j++)
                    factor[j] = vload(b + s * b_row + i + j * VL);
                for (int x = 0; x < DELTA_MR; x++)
                    for (int j = 0; j < DELTA_NV; j++)
                        sum[x][j] += a[(r + x) * row + s * column] * factor[j];
            }
            for (int x = 0; x < DELTA_MR; x++)
                for (int j = 0; j < DELTA_NV; j++)
                    vstore(out + (r + x) * out_row + i + j * VL, sum[x][j]);
        }
}

/* ---- a piece ----------------------------------------------------------------------------------------------------- */

/* The tokens of a piece; queries and keys of head g. */
static void delta_keys(struct delta_room *room, const struct delta_args *a, const int32_t *piece, int g) {
    int32_t at = piece[0];
    room->replayed = piece[2];
    room->n = piece[2] + piece[1] - piece[0];
    for (int r = room->replayed; r-- > 0;)
        room->token[r] = at = a->before[at];
    for (int r = room->replayed; r < room->n; r++)
        room->token[r] = piece[0] + r - room->replayed;
    int padded = delta_padded(a->C);
    for (int r = 0; r < room->n; r++) {
        float *q = room->q + r * DELTA_C;
        float *k = room->k + r * DELTA_C;
        delta_ask(room, r + DELTA_AHEAD, a->qkv, a, g);
        delta_ask(room, r + DELTA_AHEAD, a->qkv, a, a->G + g);
        delta_read(q, delta_row(a->qkv, a, room->token[r], g), a->C);
        delta_read(k, delta_row(a->qkv, a, room->token[r], a->G + g), a->C);
        room->q_unit[r] = delta_unit(q, 1.0f / sqrtf((float)a->C), a->eps, padded);
        room->k_unit[r] = delta_unit(k, 1.0f, a->eps, padded);
        room->kq[r] = dot(q, k, padded);
    }
}

static inline float delta_sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* beta and e^g of value head h: g = a ln(1 + e^(alpha + dt)). */
static void delta_gates(struct delta_room *room, const struct delta_args *a, int h) {
    for (int r = 0; r < room->n; r++) {
        int64_t at = (int64_t)room->token[r] * a->H + h;
        float x = a->alpha[at] + a->dt[h];
        room->beta[r] = delta_sigmoid(a->beta[at]);
        float g = a->a[h] * (x > 20.0f ? x : log1pf(expf(x)));
        room->decay[r] = expf(g);
        room->u[r] = g + (r ? room->u[r - 1] : 0);
    }
}

/* columns [C, DELTA_W] = those of a state [C, C] from `begin` on; zeros where there is no state. */
static void delta_take(float *columns, const float *state, int begin, int C) {
    for (int64_t i = 0; i < C; i++)
        for (int j = 0; j < DELTA_NV; j++)
            vstore(columns + i * DELTA_W + j * VL,
                   state ? delta_load(state + i * C + begin + j * VL, C - begin - j * VL) : (vec){0});
}

/* state (accumulate: +)= decay (columns + k d^T) there */
static void delta_put(float *state, const float *columns, const float *k, const vec *d, float decay, int begin, int C,
                      int accumulate) {
    for (int64_t i = 0; i < C; i++)
        for (int j = 0; j < DELTA_NV && begin + j * VL < C; j++) {
            float *to = state + i * C + begin + j * VL;
            int64_t n = C - begin - j * VL;
            vec x = decay * (vload(columns + i * DELTA_W + j * VL) + k[i] * d[j]);
            vstore_part(to, accumulate ? x + vload_part(to, n) : x, n);
        }
}

/* Columns of S to P of the next token: S is `columns` + k0 d0^T. u = P^T k, w = P^T q. */
static void delta_step(float *columns, const float *k0, const vec *d0, float decay, const float *k, const float *q,
                       int C, vec *u, vec *w) {
    vec sums[2][2][DELTA_NV] = {0};
    for (int64_t i = 0; i < C; i += 2)
        for (int x = 0; x < 2; x++)
            for (int j = 0; j < DELTA_NV; j++) {
                float *at = columns + (i + x) * DELTA_W + j * VL;
                vec p = decay * (vload(at) + k0[i + x] * d0[j]);
                sums[x][0][j] += k[i + x] * p;
                sums[x][1][j] += q[i + x] * p;
                vstore(at, p);
            }
    for (int j = 0; j < DELTA_NV; j++) {
        u[j] = sums[0][0][j] + sums[1][0][j];
        w[j] = sums[0][1][j] + sums[1][1][j];
    }
}

/* Columns of G, the gradient of the next token's P, to that of this token's S: G is `columns` + k0 du0^T, and its
 * decay that of the next. dd = G^T k. */
static void delta_step_back(float *columns, const float *k0, const vec *du0, float decay, const float *q,
                            const vec *dout, const float *k, int C, vec *dd) {
    vec sums[2][DELTA_NV] = {0};
    for (int64_t i = 0; i < C; i += 2)
        for (int x = 0; x < 2; x++)
            for (int j = 0; j < DELTA_NV; j++) {
                float *at = columns + (i + x) * DELTA_W + j * VL;
                vec grad = decay * (vload(at) + k0[i + x] * du0[j]) + q[i + x] * dout[j];
                sums[x][j] += k[i + x] * grad;
                vstore(at, grad);
            }
    for (int j = 0; j < DELTA_NV; j++)
        dd[j] = sums[0][j] + sums[1][j];
}

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

/* What a pass does with a piece: in bf16 (delta_bf16.h) where it has tokens enough for that to be faster. */
#ifdef ET_BF16_PRODUCTS
static void delta_half_forward(struct delta_room *room, const struct delta_args *a, int g, const int32_t *piece);
static void delta_half_backward(struct delta_room *room, const struct delta_args *a, int g, const int32_t *piece);
#define DELTA_PIECE(pass, room, a, g, piece)                                                                           \
    ((a)->rounds && (room)->n > STRIP / 2 ? delta_half_##pass(room, a, g, piece)                                       \
                                          : delta_float_##pass(room, a, g, piece))
#define DELTA_BEGIN(a, before) ((a)->rounds ? bf16_begin(before) : (void)0)
#define DELTA_END(a, before) ((a)->rounds ? bf16_end(before) : (void)0)
#define DELTA_ROUNDS(ctx, C) (et_precision(ctx) != ET_EXACT && (C) % STRIP == 0)
#else
#define DELTA_PIECE(pass, room, a, g, piece) delta_float_##pass(room, a, g, piece)
#define DELTA_BEGIN(a, before) (void)(before)
#define DELTA_END(a, before) (void)(before)
#define DELTA_ROUNDS(ctx, C) 0
#endif

/* ---- forward ----------------------------------------------------------------------------------------------------- */

/* A piece's columns from `begin` on of value head h, whose columns of S are left in `columns`, before the last token's
 * k d^T; d is that of the last. Without `backward` sets out, else e, and adds to `read`, which is dout . out. */
INLINE void delta_columns(struct delta_room *room, const struct delta_args *a, int h, int begin, float *columns, vec *d,
                          const int backward) {
    vec u[DELTA_NV], w[DELTA_NV];
    for (int j = 0; j < DELTA_NV; j++)
        d[j] = (vec){0};
    for (int r = 0; r < room->n; r++) {
        const float *k = room->k + r * DELTA_C;
        et_array v = delta_row(a->qkv, a, room->token[r], 2 * a->G + h);
        delta_step(columns, r ? k - DELTA_C : k, d, room->decay[r], k, room->q + r * DELTA_C, a->C, u, w);
        vec read = {0};
        for (int j = 0; j < DELTA_NV && begin + j * VL < a->C; j++) {
            int64_t i = begin + j * VL;
            vec e = first_lanes(load_part(v, i, a->C - i) - u[j], a->C - i);
            d[j] = room->beta[r] * e;
            vec out = w[j] + room->kq[r] * d[j];
            if (backward) {
                vstore(room->e + r * DELTA_C + i, e);
                read += out * vload(room->dout + r * DELTA_C + i);
            } else if (r >= room->replayed)
                store_part(array_at(a->out, ((int64_t)room->token[r] * a->H + h) * a->C), i, out, a->C - i);
        }
        if (backward)
            room->read[r] += lanes_sum(read);
    }
}

static void delta_float_forward(struct delta_room *room, const struct delta_args *a, int g, const int32_t *piece) {
    static const float none[DELTA_C];
    const float *k = room->n ? room->k + (room->n - 1) * DELTA_C : none;
    for (int h = g; h < a->H; h += a->G) {
        const float *source = delta_state(a->states, a, piece[3], h);
        float *kept = delta_state(a->states, a, piece[4], h);
        delta_gates(room, a, h);
        for (int begin = 0; begin < a->C; begin += DELTA_W) {
            vec d[DELTA_NV];
            delta_take(room->last, source, begin, a->C);
            delta_columns(room, a, h, begin, room->last, d, 0);
            if (kept)
                delta_put(kept, room->last, k, d, 1.0f, begin, a->C, 0);
        }
    }
}

static void delta_forward_task(void *arg, int g, int thread) {
    const struct delta_args *a = arg;
    struct delta_room *room = (struct delta_room *)et_scratch(a->ctx, thread);
    uint8_t before[TILE_STATE];
    DELTA_BEGIN(a, before);
    for (int p = 0; p < a->P; p++) {
        const int32_t *piece = a->pieces + p * ET_PIECE_COLUMNS;
        delta_keys(room, a, piece, g);
        DELTA_PIECE(forward, room, a, g, piece);
    }
    DELTA_END(a, before);
}

/* out [T, H, C]; states [floats / (H C C), H, C, C]: what the pieces say to keep. */
static void delta_forward(et_context *ctx, et_array out, float *states, et_array qkv, const float *beta,
                          const float *alpha, const float *a, const float *dt, const int32_t *before,
                          const int32_t *pieces, float eps, int64_t floats, int T, int H, int E, int C, int P) {
    struct delta_args args = {.ctx = ctx,
                              .out = out,
                              .states = states,
                              .qkv = qkv,
                              .beta = beta,
                              .alpha = alpha,
                              .a = a,
                              .dt = dt,
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
    et_parallel(ctx, delta_forward_task, &args, args.G);
}
