/* The cache: a thread a value that is stored; a block a query and head. */
#include "cached.h"

#include "set.h"

void cuda_cache_store(et_context *ctx, et_array keys, et_array values, et_array k, et_array v, const int32_t *slot,
                      int T, int L, int G, int C) {
    (void)L; /* dispatch has checked slots against it */
    struct cache_store_args args = {
        .keys = keys, .values = values, .k = k, .v = v, .slot = slot, .G = G, .C = C, .n = (int64_t)T * G * C};
    struct et_grid grid = {blocks_of(args.n, ET_BLOCK), 1, 1};
    et_launch(ctx, ET_KERNEL_cache_store, 0, grid, ET_BLOCK, 0, &args);
}

void cuda_attention_cached(et_context *ctx, et_array out, et_array q, et_array keys, et_array values,
                           const int32_t *path, float scale, int window, int T, int P, int L, int H, int G, int C) {
    (void)L;
    struct cached_args args = {.out = out,
                               .q = q,
                               .keys = keys,
                               .values = values,
                               .path = path,
                               .scale = scale,
                               .window = window,
                               .P = P,
                               .H = H,
                               .G = G,
                               .C = C};
    struct et_grid grid = {blocks_of((int64_t)T * H, 1), 1, 1};
    et_launch(ctx, ET_KERNEL_attention_cached, 0, grid, CACHED_WARPS * ET_WARP, sizeof(struct cached_shared), &args);
}
