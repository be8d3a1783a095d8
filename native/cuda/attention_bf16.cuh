/* Attention by tensor cores: q, k, v, dout, the probabilities and the gradients of the scores are rounded to bf16. A
 * warp has 16 rows of its block's own, whose scores become the left side of the next product where they are, in
 * registers. Exponents are to base 2. */

#define LOG2_E 1.44269504f
#define LN_2 0.693147181f
enum { WARP_ROWS = 16 };

/* ---- rows into shared memory --------------------------------------------------------------------------------- */

/* tile [rows, C] = n rows of x from element `at` on, the next `stride` further, and zeros. They are there once copies
 * were waited for and the block has met. */
template <int C>
DEVICE void copy_rows(uint16_t (*tile)[C + 8], int rows, const attention_rows &x, int64_t at, int64_t stride, int n,
                      int width) {
    if (x.whole) {
        ROLLED for (int i = (int)threadIdx.x; i < rows * (C / 8); i += (int)blockDim.x) {
            int row = i / (C / 8);
            int c = i % (C / 8) * 8;
            bool have = row < n && c < width;
            copy_async(&tile[row][c], (const uint16_t *)x.x.data + (have ? at + row * stride + c : 0), have ? 16 : 0);
        }
        return;
    }
    ROLLED for (int i = (int)threadIdx.x; i < rows * (C / 2); i += (int)blockDim.x) {
        int row = i / (C / 2);
        int c = i % (C / 2) * 2;
        int64_t from = at + row * stride + c;
        float first = row < n && c < width ? array_get(x.x, from) : 0.0f;
        float second = row < n && c + 1 < width ? array_get(x.x, from + 1) : 0.0f;
        uint32_t *pair = (uint32_t *)&tile[row][c];
        *pair = pack_bf16(first, second);
    }
}

template <int C>
DEVICE void copy_queries(uint16_t (*tile)[C + 8], int rows, const attention_args &a, const attention_rows &x, int h,
                         int t, int n) {
    copy_rows<C>(tile, rows, x, query_at(a, h, t), (int64_t)a.H * a.C, n, a.C);
}

template <int C>
DEVICE void copy_keys(uint16_t (*tile)[C + 8], int rows, const attention_args &a, const attention_rows &x, int g, int t,
                      int n) {
    copy_rows<C>(tile, rows, x, key_at(a, g, t), (int64_t)a.G * a.C, n, a.C);
}

/* Until all copies of the block are there. */
DEVICE void wait_for_rows() {
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
}

/* ---- products of a warp -------------------------------------------------------------------------------------- */

DEVICE int this_lane() { return (int)threadIdx.x % ET_WARP; }
DEVICE int this_warp() { return (int)threadIdx.x / ET_WARP; }
/* Of what mma adds to: a lane's first row and column; the others are 8 rows and 1 column on. */
DEVICE int lane_row() { return this_lane() / 4; }
DEVICE int lane_column() { return this_lane() % 4 * 2; }

/* s [16, N] = rows `row` on of own . passing [N, C]^T */
template <int C, int N>
DEVICE void multiply_rows(float s[N / 8][4], const uint16_t (*own)[C + 8], int row, const uint16_t (*passing)[C + 8]) {
    const uint16_t *left = &own[row + this_lane() % 16][this_lane() / 16 * 8];
    const uint16_t *right = &passing[this_lane() / 16 * 8 + this_lane() % 8][this_lane() / 8 % 2 * 8];
    UNROLL for (int j = 0; j < N / 8; j++)
        s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
    UNROLL for (int c = 0; c < C; c += 16) {
        uint32_t x[4];
        load_matrix(x, left + c);
        UNROLL for (int j = 0; j < N; j += 16) {
            uint32_t y[4];
            load_matrix(y, right + j * (C + 8) + c);
            mma(s[j / 8], x, y);
            mma(s[j / 8 + 1], x, y + 2);
        }
    }
}

/* sums [16, W] += p [16, N], rounded, . columns `column` on of passing [N, C] */
template <int C, int N, int W>
DEVICE void add_product(float sums[W / 8][4], const float p[N / 8][4], const uint16_t (*passing)[C + 8], int column) {
    const uint16_t *right = &passing[this_lane() % 16][column + this_lane() / 16 * 8];
    UNROLL for (int j = 0; j < N; j += 16) {
        const float *low = p[j / 8];
        const float *high = p[j / 8 + 1];
        uint32_t x[4] = {pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]), pack_bf16(high[0], high[1]),
                         pack_bf16(high[2], high[3])};
        UNROLL for (int c = 0; c < W; c += 16) {
            uint32_t y[4];
            load_matrix_transposed(y, right + j * (C + 8) + c);
            mma(sums[c / 8], x, y);
            mma(sums[c / 8 + 1], x, y + 2);
        }
    }
}

DEVICE void put(float *p, float x) { *p = x; }
DEVICE void put(uint16_t *p, float x) { *p = float_to_bf16(x); }

/* n values from p on = scale * sums [W] of a lane's row, 0 or 1: its columns, of which p is the first. */
template <int W, typename type> DEVICE void put_row(type *p, const float (*sums)[4], int row, float scale, int n) {
    UNROLL for (int j = 0; j < W / 8; j++) {
        if (j * 8 < n)
            put(p + j * 8, scale * sums[j][2 * row]);
        if (j * 8 + 1 < n)
            put(p + j * 8 + 1, scale * sums[j][2 * row + 1]);
    }
}

/* out from element `at` on = scale * sums [.., W] of a lane's row, 0 or 1, its columns from `column` on. */
template <int W>
DEVICE void store_row(et_array out, int64_t at, const float (*sums)[4], int row, float scale, int column, int C) {
    column += lane_column();
    if (out.type == ET_F32)
        put_row<W>((float *)out.data + at + column, sums, row, scale, C - column);
    else
        put_row<W>((uint16_t *)out.data + at + column, sums, row, scale, C - column);
}

/* Over the four lanes that share a row. */
DEVICE float lanes_sum(float x) {
    x += __shfl_xor_sync(ET_ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ET_ALL_LANES, x, 2);
}

DEVICE float lanes_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ET_ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ET_ALL_LANES, x, 2));
}

/* ---- forward ------------------------------------------------------------------------------------------------- */

/* The lane's two rows: their maximum so far, and the sum of what the lane saw of them. */
struct softmax_rows {
    float most[2], sum[2];
};

/* One step of the online softmax: s becomes exp2(s * exponent - the new maximum), and out is brought under that. */
template <int W, int N>
DEVICE void softmax_step(float s[N / 8][4], float out[W / 8][4], softmax_rows &rows, float exponent) {
    UNROLL for (int r = 0; r < 2; r++) {
        float most = rows.most[r];
        UNROLL for (int j = 0; j < N / 8; j++) {
            s[j][2 * r] *= exponent;
            s[j][2 * r + 1] *= exponent;
            most = fmaxf(most, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
        }
        most = lanes_max(most);
        float base = most == -INFINITY ? 0.0f : most; /* nothing seen yet: -inf - 0 stays -inf */
        float factor = exp2f(rows.most[r] - base);
        float sum = rows.sum[r] * factor;
        UNROLL for (int j = 0; j < N / 8; j++) {
            s[j][2 * r] = exp2f(s[j][2 * r] - base);
            s[j][2 * r + 1] = exp2f(s[j][2 * r + 1] - base);
            sum += s[j][2 * r] + s[j][2 * r + 1];
        }
        rows.most[r] = most;
        rows.sum[r] = sum;
        UNROLL for (int j = 0; j < W / 8; j++) {
            out[j][2 * r] *= factor;
            out[j][2 * r + 1] *= factor;
        }
    }
}

/* s where query t sees key k, elsewhere -inf; those are the lane's first. */
template <int N> DEVICE void hide_unseen(float s[N / 8][4], const attention_args &a, int t, int k) {
    UNROLL for (int j = 0; j < N / 8; j++) {
        UNROLL for (int i = 0; i < 4; i++)
            if (!sees(a, t + i / 2 * 8, k + j * 8 + i % 2))
                s[j][i] = -INFINITY;
    }
}

/* The values of a tile of keys are copied while its scores are multiplied, the next keys while these are summed. */
template <typename shared_type, int C, int QUERIES, int KEYS>
DEVICE void attention_forward_bf16(const attention_args &a) {
    shared_type *shared = shared_memory<shared_type>();
    attention_tile tile = query_tile(a, QUERIES);
    int row = this_warp() * WARP_ROWS;
    float out[C / 8][4] = {};
    softmax_rows rows = {{-INFINITY, -INFINITY}, {0, 0}};
    int k = next_key(a, tile, 0);
    int last = end_of_keys(a, tile);
    copy_queries<C>(shared->q, QUERIES, a, a.q, tile.h, tile.t, tile.n);
    copy_keys<C>(shared->k, KEYS, a, a.k, tile.g, k, a.T - k);
    while (k < last) {
        wait_for_rows();
        copy_keys<C>(shared->v, KEYS, a, a.v, tile.g, k, a.T - k);
        int next = next_key(a, tile, k + KEYS);
        float s[KEYS / 8][4];
        multiply_rows<C, KEYS>(s, shared->q, row, shared->k);
        if (k + KEYS > a.T || !see_all(a, tile.t, tile.last, k, k + KEYS - 1))
            hide_unseen<KEYS>(s, a, tile.t + row + lane_row(), k + lane_column());
        softmax_step<C, KEYS>(s, out, rows, a.scale * LOG2_E);
        wait_for_rows();
        if (next < last)
            copy_keys<C>(shared->k, KEYS, a, a.k, tile.g, next, a.T - next);
        add_product<C, KEYS, C>(out, s, shared->v, 0);
        k = next;
    }
    UNROLL for (int r = 0; r < 2; r++) {
        int t = tile.t + row + lane_row() + r * 8;
        float sum = lanes_sum(rows.sum[r]);
        if (t > tile.last)
            continue;
        store_row<C>(a.out, query_at(a, tile.h, t), out, r, 1.0f / sum, 0, a.C);
        if (lane_column() == 0)
            a.lse[row_at(a, tile.h, t)] = rows.most[r] * LN_2 + logf(sum);
    }
}

/* ---- backward ------------------------------------------------------------------------------------------------ */

/* p = exp2(s * exponent - base) and ds = p * (dp - delta), in s and dp. */
DEVICE void score_backward(float &s, float &dp, float exponent, float base, float delta, bool seen) {
    s = seen ? exp2f(s * exponent - base) : 0.0f;
    dp = seen ? s * (dp - delta) : 0.0f;
}

/* dq = scale * ds . k. Keys come after values, as they are multiplied twice. */
template <typename shared_type, int C, int QUERIES, int KEYS, int BUFFERS>
DEVICE void attention_dq_bf16(const attention_args &a) {
    shared_type *shared = shared_memory<shared_type>();
    attention_tile tile = query_tile(a, QUERIES);
    int row = this_warp() * WARP_ROWS;
    int t = tile.t + row + lane_row();
    float dq[C / 8][4] = {};
    float base[2] = {};
    float delta[2] = {};
    for (int r = 0; r < 2; r++)
        if (t + r * 8 <= tile.last) {
            base[r] = a.lse[row_at(a, tile.h, t + r * 8)] * LOG2_E;
            delta[r] = a.delta[row_at(a, tile.h, t + r * 8)];
        }
    copy_queries<C>(shared->own[0], QUERIES, a, a.q, tile.h, tile.t, tile.n);
    copy_queries<C>(shared->own[1], QUERIES, a, a.dout, tile.h, tile.t, tile.n);
    uint16_t (*values)[C + 8] = shared->passing[0];
    uint16_t (*keys)[C + 8] = shared->passing[BUFFERS - 1];
    for (int k = next_key(a, tile, 0); k < end_of_keys(a, tile); k = next_key(a, tile, k + KEYS)) {
        float s[KEYS / 8][4], dp[KEYS / 8][4];
        copy_keys<C>(values, KEYS, a, a.v, tile.g, k, a.T - k);
        if (BUFFERS == 2)
            copy_keys<C>(keys, KEYS, a, a.k, tile.g, k, a.T - k);
        wait_for_rows();
        multiply_rows<C, KEYS>(dp, shared->own[1], row, values);
        if (BUFFERS == 1) {
            __syncthreads();
            copy_keys<C>(keys, KEYS, a, a.k, tile.g, k, a.T - k);
            wait_for_rows();
        }
        multiply_rows<C, KEYS>(s, shared->own[0], row, keys);
        bool all = k + KEYS <= a.T && see_all(a, tile.t, tile.last, k, k + KEYS - 1);
        UNROLL for (int j = 0; j < KEYS / 8; j++) {
            UNROLL for (int i = 0; i < 4; i++)
                score_backward(s[j][i], dp[j][i], a.scale * LOG2_E, base[i / 2], delta[i / 2],
                               all || sees(a, t + i / 2 * 8, k + j * 8 + lane_column() + i % 2));
        }
        add_product<C, KEYS, C>(dq, dp, keys, 0);
        __syncthreads();
    }
    UNROLL for (int r = 0; r < 2; r++)
        if (t + r * 8 <= tile.last)
            store_row<C>(a.dq, query_at(a, tile.h, t + r * 8), dq, r, a.scale, 0, a.C);
}

/* What queries t .. t + n - 1 of head h add to dk and dv of the block's keys, in the columns from `column` on. */
template <typename shared_type, int C, int QUERIES, int BUFFERS, int W>
DEVICE void add_queries_bf16(const attention_args &a, shared_type *shared, const attention_tile &keys,
                             float dk[W / 8][4], float dv[W / 8][4], int h, int t, int n, int row, int column) {
    float s[QUERIES / 8][4], dp[QUERIES / 8][4];
    uint16_t (*q)[C + 8] = shared->passing[0];
    uint16_t (*dout)[C + 8] = shared->passing[BUFFERS - 1];
    copy_queries<C>(q, QUERIES, a, a.q, h, t, n);
    if (BUFFERS == 2)
        copy_queries<C>(dout, QUERIES, a, a.dout, h, t, n);
    for (int i = (int)threadIdx.x; i < QUERIES; i += (int)blockDim.x) {
        shared->base[i] = i < n ? a.lse[row_at(a, h, t + i)] * LOG2_E : 0.0f;
        shared->delta[i] = i < n ? a.delta[row_at(a, h, t + i)] : 0.0f;
    }
    wait_for_rows();
    multiply_rows<C, QUERIES>(s, shared->own[0], row, q);
    if (BUFFERS == 1) {
        __syncthreads();
        copy_queries<C>(dout, QUERIES, a, a.dout, h, t, n);
        wait_for_rows();
    }
    multiply_rows<C, QUERIES>(dp, shared->own[1], row, dout);
    bool all = n == QUERIES && see_all(a, t, t + n - 1, keys.t, keys.last);
    UNROLL for (int j = 0; j < QUERIES / 8; j++) {
        UNROLL for (int i = 0; i < 4; i++) {
            int query = j * 8 + lane_column() + i % 2;
            int key = keys.t + row + lane_row() + i / 2 * 8;
            score_backward(s[j][i], dp[j][i], a.scale * LOG2_E, shared->base[query], shared->delta[query],
                           all || (query < n && sees(a, t + query, key)));
        }
    }
    add_product<C, QUERIES, W>(dv, s, dout, column);
    if (BUFFERS == 1) {
        __syncthreads();
        copy_queries<C>(q, QUERIES, a, a.q, h, t, n);
        wait_for_rows();
    }
    add_product<C, QUERIES, W>(dk, dp, q, column);
    __syncthreads();
}

/* dk = scale * ds^T . q and dv = p^T . dout, summed over the heads that share the keys: rows are keys. */
template <typename shared_type, int C, int KEYS, int QUERIES, int BUFFERS, int PARTS>
DEVICE void attention_dkv_bf16(const attention_args &a) {
    enum { W = C / PARTS };
    shared_type *shared = shared_memory<shared_type>();
    attention_tile tile = key_tile(a, KEYS);
    int row = this_warp() / PARTS * WARP_ROWS;
    int column = this_warp() % PARTS * W;
    float dk[W / 8][4] = {};
    float dv[W / 8][4] = {};
    int end = end_of_sight(a, tile);
    int highest = a.window ? highest_position(a, tile) : 0;
    copy_keys<C>(shared->own[0], KEYS, a, a.k, tile.g, tile.t, tile.n);
    copy_keys<C>(shared->own[1], KEYS, a, a.v, tile.g, tile.t, tile.n);
    for (int h = tile.h; h < tile.h + a.H / a.G; h++)
        for (int t = begin_of_sight(a, tile); t < end; t += QUERIES) {
            int n = min(QUERIES, end - t);
            if (!beyond_window(a, t, n, highest))
                add_queries_bf16<shared_type, C, QUERIES, BUFFERS, W>(a, shared, tile, dk, dv, h, t, n, row, column);
        }
    wait_for_rows(); /* of keys before the queries, that none of them sees */
    UNROLL for (int r = 0; r < 2; r++) {
        int k = tile.t + row + lane_row() + r * 8;
        if (k > tile.last)
            continue;
        store_row<W>(a.dk, key_at(a, tile.g, k), dk, r, a.scale, column, a.C);
        store_row<W>(a.dv, key_at(a, tile.g, k), dv, r, 1.0f, column, a.C);
    }
}

#define WIDTH(C, QUERIES, KEYS, OWN, PASSING, BUFFERS, PARTS)                                                          \
    KERNEL(attention_forward_##C, attention_args) {                                                                    \
        attention_forward_bf16<attention_forward_shared_##C, C, QUERIES, KEYS>(a);                                     \
    }                                                                                                                  \
    KERNEL(attention_dq_##C, attention_args) {                                                                         \
        attention_dq_bf16<attention_backward_shared_##C, C, OWN, PASSING, BUFFERS>(a);                                 \
    }                                                                                                                  \
    KERNEL(attention_dkv_##C, attention_args) {                                                                        \
        attention_dkv_bf16<attention_backward_shared_##C, C, OWN, PASSING, BUFFERS, PARTS>(a);                         \
    }
ATTENTION_WIDTHS(WIDTH)
#undef WIDTH
