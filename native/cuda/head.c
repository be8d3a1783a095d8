/* Head and loss, a block of the vocabulary after the other: its logits, what becomes of them row by row, and backward
 * the product of e and w. */
#include "head.h"

#include "set.h"

_Static_assert(sizeof(struct head_state) == ET_HEAD_STATE * sizeof(float), "as et.h says");

/* Rows of dh from what they have summed up, as many at a time as their targets' weights fit in the scratch. */
static void finish_gradient(et_context *ctx, struct head_args args, const void *w, int format, int T, int V) {
    int rows = ET_SHARED_FLOATS / args.D;
    float *targets = et_shared(ctx);
    for (int t = 0; t < T; t += rows) {
        int n = T - t < rows ? T - t : rows;
        struct head_args part = {
            .dh = args.dh + (int64_t)t * args.D, .state = args.state + t, .a = args.a + t, .w = targets, .D = args.D};
        struct et_grid grid = {(unsigned)n, 1, 1};
        cuda_embed(ctx, targets, args.targets + t, w, format, 1.0f, n, V, args.D);
        et_launch(ctx, ET_KERNEL_head_gradient, 0, grid, et_threads_for(args.D), 0, &part);
    }
}

/* Entries begin .. end - 1, the first of all with begin = 0, the last with end = V. */
static void head(et_context *ctx, struct head_args args, float *logp, et_array h, const void *w, int format, int block,
                 int begin, int end, int T, int V) {
    struct et_grid grid = {(unsigned)T, 1, 1};
    for (args.first = begin; args.first < end; args.first += args.n) {
        const void *part = et_weight_row(w, format, args.first, args.D);
        args.n = end - args.first < block ? end - args.first : block;
        args.logp = args.first + args.n == V ? logp : NULL;
        cuda_matmul_forward(ctx, (et_array){(void *)args.logits, ET_F32}, h, part, format, NULL, NULL, 1.0f, 0, T,
                            args.n, args.D, 0);
        et_launch(ctx, ET_KERNEL_head_rows, 0, grid, et_threads_for(args.n), sizeof(struct head_shared), &args);
        if (args.dh)
            cuda_matmul_backward(ctx, (et_array){args.dh, ET_F32}, args.e, part, format, NULL, NULL, 1.0f,
                                 args.first > 0, T, args.n, args.D, 0);
    }
    if (args.dh && args.a && end == V)
        finish_gradient(ctx, args, w, format, T, V);
}

void cuda_head_forward(et_context *ctx, float *logp, int32_t *best, float *logits, float *state, et_array h,
                       const void *w, int format, const int32_t *targets, float cap, int block, int begin, int end,
                       int T, int V, int D) {
    (void)cap; /* 0: dispatch_ops.c */
    struct head_args args = {
        .logits = logits, .state = (struct head_state *)state, .best = best, .targets = targets, .D = D};
    head(ctx, args, logp, h, w, format, block, begin, end, T, V);
}

void cuda_head_backward(et_context *ctx, float *dh, float *logp, float *logits, et_array e, float *state, et_array h,
                        const void *w, int format, const int32_t *targets, const float *a, float cap, int block,
                        int begin, int end, int T, int V, int D) {
    (void)cap;
    struct head_args args = {
        .dh = dh, .logits = logits, .e = e, .state = (struct head_state *)state, .targets = targets, .a = a, .D = D};
    head(ctx, args, logp, h, w, format, block, begin, end, T, V);
}
