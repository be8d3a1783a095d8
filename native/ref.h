/* The truth: naive loops in double precision behind the very signatures of the table, never optimised. `ctx` is
 * ignored. ref.c has the products, ref_answers.c what answers need, ref_mixers.c what blocks have in place of attention,
 * ref_ops.c the rest. */
#ifndef ET_REF_H
#define ET_REF_H

#include "quant.h"
#include "table.h"

/* Element i of an array, whatever its type. */
static inline double array_get(et_array a, int64_t i) {
    return a.type == ET_F32 ? ((const float *)a.data)[i] : bits_to_float((uint32_t)((const uint16_t *)a.data)[i] << 16);
}

static inline void array_put(et_array a, int64_t i, double x) {
    if (a.type == ET_F32)
        ((float *)a.data)[i] = (float)x;
    else
        ((uint16_t *)a.data)[i] = float_to_bf16((float)x);
}

#define OP(name, args) void ref_##name args;
ET_OPS(OP)
#undef OP

/* The noise of head_sample. */
double ref_noise(const int32_t key[2], int token);

/* The products in the numbers that a kernel set may round to, named as et_context_product does; sums are in double.
 * "bf16": inp, dout and w rounded to nearest. "int8": they are rounded as et.h says, in runs
 * of 32, "int8 of 128" in such. */
void ref_product(const char *numbers, int backward, et_array out, et_array inp, const void *w, int format,
                 const float *x, const float *y, float scale, int accumulate, int T, int N, int K, int R);

#endif
