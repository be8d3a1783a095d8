/* Attention whose products are in float: a thread has one score of own x passing rows, and of the block's sums every
 * FLOAT_PASSING-th column of its row. */

enum { FLOAT_SUMS = ET_NARROW_HEAD / FLOAT_PASSING };

struct float_thread {
    int row, column;
};

DEVICE float_thread this_thread() { return {(int)threadIdx.x / FLOAT_PASSING, (int)threadIdx.x % FLOAT_PASSING}; }

/* tile [rows] = n rows of x from element `at` on, the next `stride` further, and zeros; once the block is done with
 * what was in the tile. */
DEVICE void load_floats(float (*tile)[ET_NARROW_HEAD + 1], int rows, et_array x, int64_t at, int64_t stride, int n,
                        int C) {
    __syncthreads();
    for (int row = (int)threadIdx.x / ET_WARP; row < rows; row += FLOAT_THREADS / ET_WARP)
        for (int c = (int)threadIdx.x % ET_WARP; c < C; c += ET_WARP)
            tile[row][c] = row < n ? array_get(x, at + row * stride + c) : 0.0f;
    __syncthreads();
}

DEVICE void load_query_floats(float (*tile)[ET_NARROW_HEAD + 1], int rows, const attention_args &a, et_array x, int h,
                              int t, int n) {
    load_floats(tile, rows, x, query_at(a, h, t), (int64_t)a.H * a.C, n, a.C);
}

DEVICE void load_key_floats(float (*tile)[ET_NARROW_HEAD + 1], int rows, const attention_args &a, et_array x, int g,
                            int t, int n) {
    load_floats(tile, rows, x, key_at(a, g, t), (int64_t)a.G * a.C, n, a.C);
}

DEVICE float dot(const float *x, const float *y, int C) {
    float sum = 0;
    for (int c = 0; c < C; c++)
        sum += x[c] * y[c];
    return sum;
}

/* sums += a row of p . passing, in the thread's columns */
DEVICE void add_floats(float sums[FLOAT_SUMS], const float *p, const float (*passing)[ET_NARROW_HEAD + 1], int C) {
    ROLLED for (int j = 0; j < FLOAT_PASSING; j++) {
        UNROLL for (int i = 0; i < FLOAT_SUMS; i++) {
            int c = i * FLOAT_PASSING + this_thread().column;
            if (c < C)
                sums[i] += p[j] * passing[j][c];
        }
    }
}

/* out from element `at` on = scale * sums, in the thread's columns */
DEVICE void store_floats(et_array out, int64_t at, const float sums[FLOAT_SUMS], float scale, int C) {
    UNROLL for (int i = 0; i < FLOAT_SUMS; i++) {
        int c = i * FLOAT_PASSING + this_thread().column;
        if (c < C)
            array_put(out, at + c, scale * sums[i]);
    }
}

KERNEL(attention_forward_float, attention_args) {
    attention_float_shared *shared = shared_memory<attention_float_shared>();
    attention_tile tile = query_tile(a, FLOAT_OWN);
    float_thread thread = this_thread();
    float sums[FLOAT_SUMS] = {};
    float most = -INFINITY;
    float sum = 0;
    load_query_floats(shared->own[0], FLOAT_OWN, a, a.q.x, tile.h, tile.t, tile.n);
    for (int k = next_key(a, tile, 0); k < end_of_keys(a, tile); k = next_key(a, tile, k + FLOAT_PASSING)) {
        int n = min(FLOAT_PASSING, a.T - k);
        load_key_floats(shared->passing, FLOAT_PASSING, a, a.k.x, tile.g, k, n);
        float s = a.scale * dot(shared->own[0][thread.row], shared->passing[thread.column], a.C);
        s = sees(a, tile.t + thread.row, k + thread.column) ? s : -INFINITY;
        float before = most;
        most = fmaxf(most, warp_max<FLOAT_PASSING>(s));
        float base = most == -INFINITY ? 0.0f : most; /* nothing seen yet: -inf - 0 stays -inf */
        float factor = expf(before - base);
        float p = expf(s - base);
        sum = sum * factor + warp_sum<FLOAT_PASSING>(p);
        shared->p[thread.row][thread.column] = p;
        for (float &x : sums)
            x *= factor;
        load_key_floats(shared->passing, FLOAT_PASSING, a, a.v.x, tile.g, k, n);
        add_floats(sums, shared->p[thread.row], shared->passing, a.C);
    }
    int t = tile.t + thread.row;
    if (t > tile.last)
        return;
    store_floats(a.out, query_at(a, tile.h, t), sums, 1.0f / sum, a.C);
    if (thread.column == 0)
        a.lse[row_at(a, tile.h, t)] = most + logf(sum);
}

/* p = softmax(scores), where query t sees key k */
DEVICE float probability(const attention_args &a, int h, int t, int k, float s) {
    return sees(a, t, k) ? expf(a.scale * s - a.lse[row_at(a, h, t)]) : 0.0f;
}

/* The gradient of its score. */
DEVICE float score_gradient(const attention_args &a, int h, int t, float p, float dp) {
    return p == 0.0f ? 0.0f : p * (dp - a.delta[row_at(a, h, t)]);
}

/* dq = scale * ds . k */
KERNEL(attention_dq_float, attention_args) {
    attention_float_shared *shared = shared_memory<attention_float_shared>();
    attention_tile tile = query_tile(a, FLOAT_OWN);
    float_thread thread = this_thread();
    float sums[FLOAT_SUMS] = {};
    int t = tile.t + thread.row;
    load_query_floats(shared->own[0], FLOAT_OWN, a, a.q.x, tile.h, tile.t, tile.n);
    load_query_floats(shared->own[1], FLOAT_OWN, a, a.dout.x, tile.h, tile.t, tile.n);
    for (int k = next_key(a, tile, 0); k < end_of_keys(a, tile); k = next_key(a, tile, k + FLOAT_PASSING)) {
        int n = min(FLOAT_PASSING, a.T - k);
        load_key_floats(shared->passing, FLOAT_PASSING, a, a.v.x, tile.g, k, n);
        float dp = dot(shared->own[1][thread.row], shared->passing[thread.column], a.C);
        load_key_floats(shared->passing, FLOAT_PASSING, a, a.k.x, tile.g, k, n);
        float s = dot(shared->own[0][thread.row], shared->passing[thread.column], a.C);
        float p = probability(a, tile.h, t, k + thread.column, s);
        shared->ds[thread.row][thread.column] = score_gradient(a, tile.h, t, p, dp);
        __syncthreads();
        add_floats(sums, shared->ds[thread.row], shared->passing, a.C);
    }
    if (t <= tile.last)
        store_floats(a.dq, query_at(a, tile.h, t), sums, a.scale, a.C);
}

/* What queries t .. t + n - 1 of head h add to dk and dv of the block's keys. */
DEVICE void add_queries_float(const attention_args &a, attention_float_shared *shared, float dk[FLOAT_SUMS],
                              float dv[FLOAT_SUMS], int h, int t, int n, int k) {
    float_thread thread = this_thread();
    load_query_floats(shared->passing, FLOAT_PASSING, a, a.q.x, h, t, n);
    float s = dot(shared->own[0][thread.row], shared->passing[thread.column], a.C);
    load_query_floats(shared->passing, FLOAT_PASSING, a, a.dout.x, h, t, n);
    float dp = dot(shared->own[1][thread.row], shared->passing[thread.column], a.C);
    float p = probability(a, h, t + thread.column, k + thread.row, s);
    shared->p[thread.row][thread.column] = p;
    shared->ds[thread.row][thread.column] = score_gradient(a, h, t + thread.column, p, dp);
    __syncthreads();
    add_floats(dv, shared->p[thread.row], shared->passing, a.C);
    load_query_floats(shared->passing, FLOAT_PASSING, a, a.q.x, h, t, n);
    add_floats(dk, shared->ds[thread.row], shared->passing, a.C);
}

/* dk = scale * ds^T . q and dv = p^T . dout, summed over the heads that share the keys. */
KERNEL(attention_dkv_float, attention_args) {
    attention_float_shared *shared = shared_memory<attention_float_shared>();
    attention_tile tile = key_tile(a, FLOAT_OWN);
    float dk[FLOAT_SUMS] = {};
    float dv[FLOAT_SUMS] = {};
    int end = end_of_sight(a, tile);
    int highest = a.window ? highest_position(a, tile) : 0;
    load_key_floats(shared->own[0], FLOAT_OWN, a, a.k.x, tile.g, tile.t, tile.n);
    load_key_floats(shared->own[1], FLOAT_OWN, a, a.v.x, tile.g, tile.t, tile.n);
    for (int h = tile.h; h < tile.h + a.H / a.G; h++)
        for (int t = begin_of_sight(a, tile); t < end; t += FLOAT_PASSING) {
            int n = min(FLOAT_PASSING, end - t);
            if (!beyond_window(a, t, n, highest))
                add_queries_float(a, shared, dk, dv, h, t, n, tile.t);
        }
    int k = tile.t + this_thread().row;
    if (k > tile.last)
        return;
    store_floats(a.dk, key_at(a, tile.g, k), dk, a.scale, a.C);
    store_floats(a.dv, key_at(a, tile.g, k), dv, 1.0f, a.C);
}
