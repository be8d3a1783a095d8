/* Grouped-query attention in tiles, as FlashAttention-2 has it (Dao 2023): forward by an online softmax;
 * backward makes the probabilities again from lse, once for dq by tiles of queries, once for dk and dv by tiles of
 * keys, so that nothing is added by two blocks.
 *
 * Tokens are a forest in depth-first order (et.h): a tile of keys begins at one that is seen, past the subtrees that
 * the queries are not in and what their window leaves out. Where a tile of keys is a path and the queries are all below
 * it, no pair is looked at alone. Where tokens see both ways, `begin` to `end` are a document without branches. */
#include "attention.h"
#include "kernel.h"

/* n tokens from `t` on of head h, whose keys are head g's. */
struct attention_tile {
    int h, g, t, n, last;
    int least; /* position, where there is a window */
};

DEVICE int least_position(const attention_args &a, int t, int n) {
    int least = a.position[t];
    for (int i = 1; i < n; i++)
        least = min(least, a.position[t + i]);
    return least;
}

/* The block's `rows` queries: the last see most and come first, so that the blocks end together. */
DEVICE attention_tile query_tile(const attention_args &a, int rows) {
    attention_tile tile;
    tile.h = (int)blockIdx.x % a.H;
    tile.g = tile.h / (a.H / a.G);
    tile.t = a.first + (int)(gridDim.x / (unsigned)a.H - 1 - blockIdx.x / (unsigned)a.H) * rows;
    tile.n = min(rows, a.T - tile.t);
    tile.last = tile.t + tile.n - 1;
    tile.least = a.window ? least_position(a, tile.t, tile.n) : 0;
    return tile;
}

/* The block's `rows` keys. */
DEVICE attention_tile key_tile(const attention_args &a, int rows) {
    attention_tile tile;
    tile.g = (int)blockIdx.x % a.G;
    tile.h = tile.g * (a.H / a.G);
    tile.t = (int)(blockIdx.x / (unsigned)a.G) * rows;
    tile.n = min(rows, a.T - tile.t);
    tile.last = tile.t + tile.n - 1;
    tile.least = 0;
    return tile;
}

/* One past the last key that some query of the tile sees, but for a window. */
DEVICE int end_of_keys(const attention_args &a, const attention_tile &queries) {
    return a.begin ? a.end[queries.last] : queries.last + 1;
}

/* The first key from k on that some query of the tile sees, or `end_of_keys`, or one past it. A key whose subtree has
 * queries is above all tokens between, and no position rises by more than one a token: what the window leaves out is
 * passed at once. */
DEVICE int next_key(const attention_args &a, const attention_tile &queries, int k) {
    int end = end_of_keys(a, queries);
    while (k < end) {
        int distance = a.window ? queries.least - a.position[k] : 0;
        if (a.end[k] <= queries.t)
            k = a.end[k];
        else if (a.window && distance >= a.window)
            k += distance - a.window + 1;
        else
            break;
    }
    return k;
}

/* The first query that may see some of the keys, */
DEVICE int begin_of_sight(const attention_args &a, const attention_tile &keys) {
    return max(a.begin ? a.begin[keys.t] : keys.t, a.first);
}

/* and one past the last. */
DEVICE int end_of_sight(const attention_args &a, const attention_tile &keys) {
    int k = keys.t;
    while (k <= keys.last)
        k = a.end[k];
    return k;
}

/* Whether the window hides all the keys, the highest of which is at `highest`, from queries q .. q + n - 1. */
DEVICE bool beyond_window(const attention_args &a, int q, int n, int highest) {
    return a.window && least_position(a, q, n) - highest >= a.window;
}

DEVICE int highest_position(const attention_args &a, const attention_tile &keys) {
    int highest = a.position[keys.t];
    for (int k = keys.t + 1; k <= keys.last; k++)
        highest = max(highest, a.position[k]);
    return highest;
}

/* Token t may be past the last: it sees nothing, and nothing sees such a key. */
DEVICE bool sees(const attention_args &a, int t, int k) {
    if (t >= a.T || (a.begin ? k >= a.T || t < a.begin[k] : k > t))
        return false;
    int distance = a.window ? a.position[t] - a.position[k] : 0;
    return t < a.end[k] && (!a.window || (distance < a.window && -distance < a.window));
}

/* Whether queries q .. last_q all see keys k .. last_k, if these are a path. */
DEVICE bool see_all(const attention_args &a, int q, int last_q, int k, int last_k) {
    if (a.begin)
        return a.begin[q] == a.begin[last_q] && a.begin[k] == a.begin[q] && a.begin[last_k] == a.begin[q] &&
               (!a.window || (last_q - k < a.window && last_k - q < a.window));
    return last_k <= q && last_q < a.end[k] && last_q < a.end[last_k] &&
           a.position[last_k] - a.position[k] == last_k - k && (!a.window || last_q - k < a.window);
}

/* The first element of token t of head h of [Q, H, C], of head g of [T, G, C]; and of [H, Q]. */
DEVICE int64_t query_at(const attention_args &a, int h, int t) { return ((int64_t)(t - a.first) * a.H + h) * a.C; }
DEVICE int64_t key_at(const attention_args &a, int g, int t) { return ((int64_t)t * a.G + g) * a.C; }
DEVICE int64_t row_at(const attention_args &a, int h, int t) { return (int64_t)h * (a.T - a.first) + t - a.first; }

/* delta = rowsum(dout * out), which is rowsum(p * (dout . v^T)): a warp a row. */
KERNEL(attention_delta, attention_args) {
    int64_t Q = a.T - a.first;
    int64_t row = (int64_t)blockIdx.x * (blockDim.x / ET_WARP) + threadIdx.x / ET_WARP;
    if (row >= Q * a.H)
        return;
    float sum = 0;
    for (int c = (int)threadIdx.x % ET_WARP; c < a.C; c += ET_WARP) {
        float dout = array_get(a.dout.x, row * a.C + c);
        dout = a.rounds ? bf16_to_float(float_to_bf16(dout)) : dout; /* of what is multiplied */
        sum += dout * array_get(a.out, row * a.C + c);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % ET_WARP == 0)
        a.delta[row % a.H * Q + row / a.H] = sum;
}

#include "attention_float.cuh"
#include "attention_bf16.cuh"
