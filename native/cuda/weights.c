/* Weights as floats. */
#include "weights.h"

#include "set.h"

static void launch_weights(et_context *ctx, int format, struct weights_args args) {
    int64_t runs = args.rows * ((args.columns + 15) / 16);
    args.aligned = weights_aligned(args.w, format, args.columns);
    et_launch(ctx, ET_KERNEL_weights, format, (struct et_grid){blocks_of(runs, ET_BLOCK), 1, 1}, ET_BLOCK, 0, &args);
}

void cuda_dequantize(et_context *ctx, float *out, const void *w, int format, int64_t n) {
    launch_weights(ctx, format, (struct weights_args){.out = out, .w = w, .scale = 1, .rows = 1, .columns = n});
}

void cuda_embed(et_context *ctx, float *out, const int32_t *tokens, const void *w, int format, float scale, int T,
                int V, int D) {
    (void)V;
    launch_weights(
        ctx, format,
        (struct weights_args){.out = out, .tokens = tokens, .w = w, .scale = scale, .rows = T, .columns = D});
}
