/* GELU without a gate, as all that is element by element. */
#include "gelu.h"

#include "set.h"

void cuda_gelu_forward(et_context *ctx, et_array out, et_array inp, int64_t n) {
    struct gelu_args args = {.out = out, .inp = inp, .n = n, .whole = et_aligned(out) && et_aligned(inp)};
    et_launch(ctx, ET_KERNEL_gelu_forward, 0, et_grid_of_fours(n), ET_BLOCK, 0, &args);
}

void cuda_gelu_backward(et_context *ctx, et_array dinp, et_array act, et_array dout, et_array inp, int64_t n) {
    struct gelu_args args = {.out = act, .inp = inp, .dout = dout, .dinp = dinp, .n = n};
    args.whole = et_aligned(act) && et_aligned(inp) && et_aligned(dout) && et_aligned(dinp);
    et_launch(ctx, ET_KERNEL_gelu_backward, 0, et_grid_of_fours(n), ET_BLOCK, 0, &args);
}
