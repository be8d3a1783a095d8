/* Gradients of LoRA's weights: how tokens are cut into parts. */
#include "dweight.h"

#include "set.h"

enum { LEAST = 8 * DWEIGHT_TOKENS }; /* tokens of a part: it is to be worth a block */

void cuda_matmul_dweight(et_context *ctx, float *dw, et_array dout, et_array inp, float scale, int T, int N, int K) {
    int wide_first = N > K;
    int64_t n = (int64_t)N * K;
    int64_t most = ET_SHARED_FLOATS / n; /* for which there is room */
    unsigned parts = blocks_of(T, LEAST);
    if (parts > most)
        parts = most ? (unsigned)most : 1;
    struct dweight_args args = {.wide = wide_first ? dout : inp,
                                .narrow = wide_first ? inp : dout,
                                .dw = dw,
                                .partial = et_shared(ctx),
                                .scale = scale,
                                .T = T,
                                .W = wide_first ? N : K,
                                .M = wide_first ? K : N,
                                .wide_step = wide_first ? K : 1,
                                .narrow_step = wide_first ? 1 : K};
    args.part = (int)blocks_of(T, parts * DWEIGHT_TOKENS) * DWEIGHT_TOKENS;
    args.parts = (int)blocks_of(T, args.part);
    struct et_grid grid = {blocks_of(args.W, DWEIGHT_WIDE), blocks_of(args.M, DWEIGHT_NARROW), (unsigned)args.parts};
    et_launch(ctx, ET_KERNEL_dweight, 0, grid, ET_BLOCK, sizeof(struct dweight_shared), &args);
    if (args.parts > 1)
        et_launch(ctx, ET_KERNEL_dweight_parts, 0, (struct et_grid){blocks_of(n, ET_BLOCK), 1, 1}, ET_BLOCK, 0, &args);
}
