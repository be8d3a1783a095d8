/* Ops that a GPU does not have: edgetune/models refuses the networks that need them before. */
#include "set.h"

void cuda_conv_forward(et_context *ctx, et_array out, et_array inp, const float *w, const int32_t *before, int T, int D,
                       int L) {
    (void)out, (void)inp, (void)w, (void)before, (void)T, (void)D, (void)L;
    et_fail(ctx, ET_BAD_ARGUMENT);
}

void cuda_conv_backward(et_context *ctx, et_array dinp, float *sums, et_array dout, et_array inp, const float *w,
                        const int32_t *before, int T, int D, int L) {
    (void)dinp, (void)sums, (void)dout, (void)inp, (void)w, (void)before, (void)T, (void)D, (void)L;
    et_fail(ctx, ET_BAD_ARGUMENT);
}

void cuda_causal_conv_forward(et_context *ctx, et_array out, et_array inp, const float *w, const float *bias,
                              const int32_t *before, int first, int T, int W, int D, int L) {
    (void)out, (void)inp, (void)w, (void)bias, (void)before, (void)first, (void)T, (void)W, (void)D, (void)L;
    et_fail(ctx, ET_BAD_ARGUMENT);
}

void cuda_causal_conv_backward(et_context *ctx, et_array dinp, float *sums, et_array dout, et_array inp, const float *w,
                               const float *bias, const int32_t *before, int first, int T, int W, int D, int L) {
    (void)dinp, (void)sums, (void)dout, (void)inp, (void)w, (void)bias, (void)before, (void)first;
    (void)T, (void)W, (void)D, (void)L;
    et_fail(ctx, ET_BAD_ARGUMENT);
}

void cuda_delta_forward(et_context *ctx, et_array out, float *states, et_array qkv, const float *beta,
                        const float *alpha, const float *a, const float *dt, const int32_t *before,
                        const int32_t *pieces, float eps, int64_t floats, int T, int H, int E, int C, int P) {
    (void)out, (void)states, (void)qkv, (void)beta, (void)alpha, (void)a, (void)dt, (void)before, (void)pieces;
    (void)eps, (void)floats, (void)T, (void)H, (void)E, (void)C, (void)P;
    et_fail(ctx, ET_BAD_ARGUMENT);
}

void cuda_delta_backward(et_context *ctx, et_array dqkv, float *dbeta, float *dalpha, float *dstates, et_array dout,
                         et_array qkv, const float *beta, const float *alpha, const float *a, const float *dt,
                         const float *states, const int32_t *before, const int32_t *pieces, float eps, int64_t floats,
                         int T, int H, int E, int C, int P) {
    (void)dqkv, (void)dbeta, (void)dalpha, (void)dstates, (void)dout, (void)qkv, (void)beta, (void)alpha, (void)a;
    (void)dt, (void)states, (void)before, (void)pieces, (void)eps, (void)floats, (void)T, (void)H, (void)E, (void)C;
    (void)P;
    et_fail(ctx, ET_BAD_ARGUMENT);
}

void cuda_ssm_forward(et_context *ctx, et_array out, float *states, float *steps, et_array inp, et_array rows,
                      const float *bias, const float *a, const float *skip, const int32_t *before,
                      const int32_t *pieces, int64_t floats, int T, int W, int E, int H, int C, int N, int P) {
    (void)out, (void)states, (void)steps, (void)inp, (void)rows, (void)bias, (void)a, (void)skip, (void)before;
    (void)pieces, (void)floats, (void)T, (void)W, (void)E, (void)H, (void)C, (void)N, (void)P;
    et_fail(ctx, ET_BAD_ARGUMENT);
}

void cuda_ssm_backward(et_context *ctx, float *dinp, et_array drows, float *states, float *dstates, float *steps,
                       et_array dout, et_array inp, et_array rows, const float *bias, const float *a, const float *skip,
                       const int32_t *before, const int32_t *pieces, int64_t floats, int T, int W, int E, int H, int C,
                       int N, int P) {
    (void)dinp, (void)drows, (void)states, (void)dstates, (void)steps, (void)dout, (void)inp, (void)rows, (void)bias;
    (void)a, (void)skip, (void)before, (void)pieces, (void)floats, (void)T, (void)W, (void)E, (void)H, (void)C;
    (void)N, (void)P;
    et_fail(ctx, ET_BAD_ARGUMENT);
}
