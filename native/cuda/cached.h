/* The cache of keys and values, and attention of new queries over it. */
#ifndef ET_CACHED_H
#define ET_CACHED_H

#include "../et.h"
#include "launch.h"

struct cache_store_args {
    et_array keys, values, k, v; /* [L, G, C, ET_CACHE], [L, G, ET_CACHE, C], [T, G, C] */
    const int32_t *slot;         /* [T] */
    int G, C;
    int64_t n; /* T * G * C */
};

struct cached_args {
    et_array out, q, keys, values; /* [T, H, C], [T, H, C], and the cache */
    const int32_t *path;           /* [T, P] */
    float scale;
    int window, P, H, G, C;
};

/* A block is of CACHED_WARPS warps, each of which goes over blocks of the cache of its own. */
enum { CACHED_WARPS = 8 };
struct cached_shared {
    float q[ET_NARROW_HEAD], most[CACHED_WARPS], sum[CACHED_WARPS], sums[CACHED_WARPS][ET_NARROW_HEAD];
};

#endif
