/* The truth: naive loops in double precision behind the very signatures of the table, never optimised. `ctx` is
 * ignored. ref.c has the products, ref_ops.c the rest. */
#ifndef ET_REF_H
#define ET_REF_H

#include "table.h"

#define OP(name, args) void ref_##name args;
ET_OPS(OP)
#undef OP

#endif
