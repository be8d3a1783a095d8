/* What the files of a device's kernel set share: the ops, each in the file of its subject, and helpers of the host. */
#ifndef ET_SET_H
#define ET_SET_H

#include "../pool.h"
#include "../quant.h"
#include "device.h"
#include "launch.h"

#define OP(name, args) void cuda_##name args;
ET_OPS(OP)
#undef OP

/* Whether kernels may read 16 bytes at once of rows of `bytes` each. */
static inline int rows_aligned(const void *p, int64_t bytes) { return ((uintptr_t)p | (uintptr_t)bytes) % 16 == 0; }

/* The same of weights, as unpack.cuh wants it: in formats with blocks, if it is so of the first. */
static inline int weights_aligned(const void *w, int format, int64_t columns) {
    return rows_aligned(w, format_block(format) > 1 ? 0 : columns * format_bytes(format));
}

static inline unsigned blocks_of(int64_t n, int64_t each) { return (unsigned)((n + each - 1) / each); }

/* Threads of a block that goes over n values, four a thread at least. */
static inline unsigned et_threads_for(int64_t n) {
    return n >= 4 * ET_BLOCK ? ET_BLOCK : blocks_of(n, 4 * ET_WARP) * ET_WARP;
}

/* For n values, four a thread at a time; threads of the most blocks that a large card runs at once take more. */
#define MOST_BLOCKS 1024
static inline struct et_grid et_grid_of_fours(int64_t n) {
    unsigned blocks = n / (4 * ET_BLOCK) < MOST_BLOCKS ? blocks_of(n, 4 * ET_BLOCK) : MOST_BLOCKS;
    return (struct et_grid){blocks, 1, 1};
}

/* Row n of a weight [N, K]. */
static inline const void *et_weight_row(const void *w, int format, int64_t n, int64_t K) {
    return (const char *)w + n * (K / format_block(format) * format_bytes(format));
}

/* Whether four values of the array can be read at once. */
static inline int et_aligned(et_array a) { return (uintptr_t)a.data % (a.type == ET_F32 ? 16 : 8) == 0; }

#endif
