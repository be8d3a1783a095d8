/* Gated activations, as all that is element by element. */
#include "glu.h"

#include "set.h"

void cuda_glu_forward(et_context *ctx, et_array out, et_array gate, et_array up, int kind, int64_t n) {
    if (kind > 2) { /* edgetune/models refuses the networks that need it before */
        et_fail(ctx, ET_BAD_ARGUMENT);
        return;
    }
    struct glu_args args = {.out = out, .gate = gate, .up = up, .kind = kind, .n = n};
    args.whole = et_aligned(out) && et_aligned(gate) && et_aligned(up);
    et_launch(ctx, ET_KERNEL_glu_forward, 0, et_grid_of_fours(n), ET_BLOCK, 0, &args);
}

void cuda_glu_backward(et_context *ctx, et_array dgate, et_array dup, et_array act, et_array dout, et_array gate,
                       et_array up, int kind, int64_t n) {
    if (kind > 2) { /* edgetune/models refuses the networks that need it before */
        et_fail(ctx, ET_BAD_ARGUMENT);
        return;
    }
    struct glu_args args = {
        .out = act, .gate = gate, .up = up, .dout = dout, .dgate = dgate, .dup = dup, .kind = kind, .n = n};
    args.whole = et_aligned(dgate) && et_aligned(dup) && et_aligned(act) && et_aligned(dout) && et_aligned(gate) &&
                 et_aligned(up);
    et_launch(ctx, ET_KERNEL_glu_backward, 0, et_grid_of_fours(n), ET_BLOCK, 0, &args);
}
