/* AdamW: fours of parameters a thread, or a group of moments in 8 bits a warp. */
#include "adamw.h"

#include <math.h>

#include "set.h"

static int is_aligned(const float *x) { return et_aligned((et_array){(void *)x, ET_F32}); }

static struct adamw_args step_args(float lr, float beta1, float beta2, float eps, float weight_decay, int64_t step) {
    return (struct adamw_args){
        .beta1 = beta1, .beta2 = beta2, .eps = eps,
        .shrink = (float)(1.0 - (double)lr * weight_decay),
        .rate = (float)(lr / (1.0 - pow(beta1, (double)step))),
        .unbias = (float)(1.0 / sqrt(1.0 - pow(beta2, (double)step))),
    };
}

void cuda_adamw(et_context *ctx, float *param, const float *grad, float *m, float *v, float lr, float beta1,
                float beta2, float eps, float weight_decay, int64_t step, int64_t n) {
    struct adamw_args args = step_args(lr, beta1, beta2, eps, weight_decay, step);
    args.param = param;
    args.grad = grad;
    args.m = m;
    args.v = v;
    args.n = n;
    args.whole = is_aligned(param) && is_aligned(grad) && is_aligned(m) && is_aligned(v);
    et_launch(ctx, ET_KERNEL_adamw, 0, et_grid_of_fours(n), ET_BLOCK, 0, &args);
}

void cuda_adamw8(et_context *ctx, float *param, const float *grad, struct et_moments *moments, float lr, float beta1,
                 float beta2, float eps, float weight_decay, int64_t step, uint64_t seed, int64_t n) {
    struct adamw_args args = step_args(lr, beta1, beta2, eps, weight_decay, step);
    args.param = param;
    args.grad = grad;
    args.moments = moments;
    args.seed = seed;
    args.n = n;
    struct et_grid grid = {blocks_of(n, ET_MOMENTS * ET_WARPS), 1, 1};
    et_launch(ctx, ET_KERNEL_adamw8, 0, grid, ET_BLOCK, 0, &args);
}
