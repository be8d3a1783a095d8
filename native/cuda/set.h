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

static inline unsigned blocks_of(int64_t n, int64_t each) { return (unsigned)((n + each - 1) / each); }

#endif
