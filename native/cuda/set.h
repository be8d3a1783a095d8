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

#endif
