/* Attention of one new query each of many answers over a cache of keys and values, whose blocks they may share: an
 * online softmax (Milakov & Gimelshein 2018) by each warp over every CACHED_WARPS-th block of the query's path; at the
 * end they are brought under one maximum, in the warps' order. */
#include "cached.h"
#include "kernel.h"

KERNEL(cache_store, cache_store_args) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.n)
        return;
    int c = (int)(i % a.C);
    int g = (int)(i / a.C % a.G);
    int slot = a.slot[i / a.C / a.G];
    int64_t block = ((int64_t)(slot / ET_CACHE) * a.G + g) * a.C * ET_CACHE;
    array_put(a.keys, block + (int64_t)c * ET_CACHE + slot % ET_CACHE, array_get(a.k, i));
    array_put(a.values, block + (int64_t)(slot % ET_CACHE) * a.C + c, array_get(a.v, i));
}

/* What a warp has of a query: the maximum, and the sums under it; column i * ET_WARP + lane is a lane's. */
enum { CACHED_SUMS = ET_NARROW_HEAD / ET_WARP };
struct cached_sums {
    float most, sum, sums[CACHED_SUMS];
};

/* 32 entries of a path, a lane each: how many tokens the lane's has, and all before it; whether the path ends. */
struct path_part {
    int entry, tokens, before, total;
    bool ends;
};

DEVICE path_part read_path(const int32_t *path, int P, int first) {
    int lane = (int)threadIdx.x % ET_WARP;
    path_part part;
    part.entry = first + lane < P ? path[first + lane] : -1;
    int entries = (int)-warp_max(part.entry < 0 ? (float)-lane : (float)-ET_WARP); /* before the first -1 */
    part.ends = entries < ET_WARP;
    part.tokens = lane < entries ? part.entry % ET_CACHE + 1 : 0;
    int sum = part.tokens;
    for (int step = 1; step < ET_WARP; step *= 2) {
        int others = __shfl_sync(ET_ALL_LANES, sum, max(lane - step, 0));
        sum += lane >= step ? others : 0;
    }
    part.before = sum - part.tokens;
    part.total = __shfl_sync(ET_ALL_LANES, sum, ET_WARP - 1);
    return part;
}

/* How many tokens of the path the window leaves out. */
DEVICE int tokens_beyond(const cached_args &a, const int32_t *path) {
    int tokens = 0;
    if (!a.window)
        return 0;
    for (int first = 0; first < a.P; first += ET_WARP) {
        path_part part = read_path(path, a.P, first);
        tokens += part.total;
        if (part.ends)
            break;
    }
    return max(tokens - a.window, 0);
}

/* Tokens begin .. end - 1 of a block of the cache, whose keys and values are from element `at` on. */
DEVICE void add_cached(const cached_args &a, cached_sums &has, const float *q, int64_t at, int begin, int end) {
    int lane = (int)threadIdx.x % ET_WARP;
    int token = lane % ET_CACHE;
    float s = 0; /* of every second column, for two lanes a token: so a warp reads whole lines */
    for (int c = lane / ET_CACHE; c < a.C; c += ET_WARP / ET_CACHE)
        s += q[c] * array_get(a.keys, at + c * ET_CACHE + token);
    s += __shfl_xor_sync(ET_ALL_LANES, s, ET_CACHE);
    s = token >= begin && token < end ? s : -INFINITY;
    float most = fmaxf(has.most, warp_max(s));
    float base = most == -INFINITY ? 0.0f : most; /* all are -inf: -inf - 0 stays -inf */
    float factor = expf(has.most - base);
    float p = expf(s - base);
    has.most = most;
    has.sum = has.sum * factor + warp_sum(lane < ET_CACHE ? p : 0.0f);
    UNROLL for (int i = 0; i < CACHED_SUMS; i++)
        has.sums[i] *= factor;
    for (int j = begin; j < end; j++) {
        float share = __shfl_sync(ET_ALL_LANES, p, j);
        UNROLL for (int i = 0; i < CACHED_SUMS; i++)
            if (i * ET_WARP + lane < a.C)
                has.sums[i] += share * array_get(a.values, at + j * a.C + i * ET_WARP + lane);
    }
}

/* Head h of query t: a block. */
KERNEL(attention_cached, cached_args) {
    cached_shared *shared = shared_memory<cached_shared>();
    int warp = (int)threadIdx.x / ET_WARP;
    int lane = (int)threadIdx.x % ET_WARP;
    int g = (int)(blockIdx.x % (unsigned)a.H) / (a.H / a.G);
    int64_t row = (int64_t)blockIdx.x * a.C;
    const int32_t *path = a.path + (int64_t)(blockIdx.x / (unsigned)a.H) * a.P;
    for (int c = (int)threadIdx.x; c < a.C; c += (int)blockDim.x)
        shared->q[c] = a.scale * array_get(a.q, row + c);
    __syncthreads();
    int beyond = tokens_beyond(a, path);
    cached_sums has = {-INFINITY, 0, {}};
    for (int first = 0; first < a.P; first += ET_WARP) {
        path_part part = read_path(path, a.P, first);
        for (int i = warp; i < ET_WARP; i += CACHED_WARPS) {
            int block = __shfl_sync(ET_ALL_LANES, part.entry, i) / ET_CACHE;
            int tokens = __shfl_sync(ET_ALL_LANES, part.tokens, i);
            int begin = max(beyond - __shfl_sync(ET_ALL_LANES, part.before, i), 0);
            if (begin < tokens)
                add_cached(a, has, shared->q, ((int64_t)block * a.G + g) * a.C * ET_CACHE, begin, tokens);
        }
        beyond -= part.total;
        if (part.ends)
            break;
    }
    for (int i = 0; i < CACHED_SUMS; i++)
        shared->sums[warp][i * ET_WARP + lane] = has.sums[i];
    shared->most[warp] = has.most;
    shared->sum[warp] = has.sum;
    __syncthreads();
    float most = -INFINITY;
    for (int i = 0; i < CACHED_WARPS; i++)
        most = fmaxf(most, shared->most[i]);
    float sum = 0;
    for (int i = 0; i < CACHED_WARPS; i++)
        sum += shared->sum[i] * expf(shared->most[i] - most);
    for (int c = (int)threadIdx.x; c < a.C; c += (int)blockDim.x) {
        float x = 0;
        for (int i = 0; i < CACHED_WARPS; i++)
            x += shared->sums[i][c] * expf(shared->most[i] - most);
        array_put(a.out, row + c, x / sum);
    }
}
