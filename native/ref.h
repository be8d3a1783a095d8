/* The truth: naive loops in double precision behind the very signatures of the table, never optimised. `ctx` is
 * ignored. ref.c has the products, ref_ops.c the rest. */
#ifndef ET_REF_H
#define ET_REF_H

#include "table.h"

#define OP(name, args) void ref_##name args;
ET_OPS(OP)
#undef OP

/* The products in the numbers that a row may round to, named as et_context_product does; sums are in double.
 * "bf16": inp, dout and w rounded to nearest. "int8": as quant.h rounds, along the summed dimension. */
void ref_product(const char *numbers, int backward, float *out, const float *inp, const void *w, int format,
                 float scale, int accumulate, int T, int N, int K);

#endif
