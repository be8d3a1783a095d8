/* TEMPORARY: ops that do not exist yet. */
#include "set.h"
#define OP(name, args) __attribute__((weak)) void cuda_##name args {}
#pragma GCC diagnostic ignored "-Wunused-parameter"
ET_OPS(OP)
