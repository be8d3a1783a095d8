/* RMS norms and layer norms: a block a row, of a thread for each four values. */
#include "norm.h"

#include "set.h"

static void launch_norm(et_context *ctx, enum et_kernel kernel, struct norm_args args, int64_t rows) {
    struct et_grid grid = {(unsigned)rows, 1, 1};
    args.whole = args.D % 4 == 0 && et_aligned(args.out) && et_aligned(args.inp) && et_aligned(args.dout) &&
                 et_aligned((et_array){(void *)args.weight, ET_F32}) &&
                 et_aligned((et_array){(void *)args.bias, ET_F32});
    et_launch(ctx, kernel, 0, grid, et_threads_for(args.D), sizeof(struct norm_shared), &args);
}

void cuda_rmsnorm_forward(et_context *ctx, et_array out, float *rstd, et_array inp, const float *weight, float eps,
                          int64_t rows, int D) {
    struct norm_args args = {.out = out, .inp = inp, .rstd = rstd, .weight = weight, .eps = eps, .D = D};
    launch_norm(ctx, ET_KERNEL_rmsnorm_forward, args, rows);
}

void cuda_rmsnorm_backward(et_context *ctx, et_array dinp, et_array dout, et_array inp, const float *weight,
                           const float *rstd, int accumulate, int64_t rows, int D) {
    struct norm_args args = {.out = dinp,
                             .inp = inp,
                             .dout = dout,
                             .rstd = (float *)rstd,
                             .weight = weight,
                             .accumulate = accumulate,
                             .D = D};
    launch_norm(ctx, ET_KERNEL_rmsnorm_backward, args, rows);
}

void cuda_layernorm_forward(et_context *ctx, et_array out, float *mean, float *rstd, et_array inp, const float *weight,
                            const float *bias, float eps, int64_t rows, int D) {
    struct norm_args args = {
        .out = out, .inp = inp, .mean = mean, .rstd = rstd, .weight = weight, .bias = bias, .eps = eps, .D = D};
    launch_norm(ctx, ET_KERNEL_layernorm_forward, args, rows);
}

void cuda_layernorm_backward(et_context *ctx, et_array dinp, et_array dout, et_array inp, const float *weight,
                             const float *mean, const float *rstd, int accumulate, int64_t rows, int D) {
    struct norm_args args = {.out = dinp,
                             .inp = inp,
                             .dout = dout,
                             .mean = (float *)mean,
                             .rstd = (float *)rstd,
                             .weight = weight,
                             .accumulate = accumulate,
                             .D = D};
    launch_norm(ctx, ET_KERNEL_layernorm_backward, args, rows);
}
