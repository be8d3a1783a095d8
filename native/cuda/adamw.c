/* AdamW: fours of parameters a thread, or a group of moments in 8 bits a warp. */
#include "adamw.h"

#include "set.h"

static int is_aligned(const float *x) { return et_aligned((et_array){(void *)x, ET_F32}); }

void cuda_adamw(et_context *ctx, float *param, const float *grad, float *m, float *v, float lr, float beta1,
                float beta2, float eps, float weight_decay, int64_t step, int64_t n) {
    struct adamw_args args = {.rates = adamw_rates_of(lr, beta1, beta2, eps, weight_decay, step),
                              .param = param,
                              .grad = grad,
                              .m = m,
                              .v = v,
                              .n = n};
    args.whole = is_aligned(param) && is_aligned(grad) && is_aligned(m) && is_aligned(v);
    et_launch(ctx, ET_KERNEL_adamw, 0, et_grid_of_fours(n), ET_BLOCK, 0, &args);
}

void cuda_adamw8(et_context *ctx, float *param, const float *grad, struct et_moments *moments, float lr, float beta1,
                 float beta2, float eps, float weight_decay, int64_t step, uint64_t seed, int64_t n) {
    struct adamw_args args = {.rates = adamw_rates_of(lr, beta1, beta2, eps, weight_decay, step),
                              .param = param,
                              .grad = grad,
                              .moments = moments,
                              .seed = seed,
                              .n = n};
    struct et_grid grid = {blocks_of(n, ET_MOMENTS * ET_WARPS), 1, 1};
    et_launch(ctx, ET_KERNEL_adamw8, 0, grid, ET_BLOCK, 0, &args);
}
