/* Tokens drawn and the highest logits: logits of a block of the vocabulary after the other, and a kernel on them. */
#include "sample.h"

#include "set.h"

_Static_assert(sizeof(struct sample_state) == ET_SAMPLE_STATE * sizeof(float), "as et.h says");

/* Launches the kernel for the logits of each block of entries begin .. end - 1; results are there after the last. */
static void each_logits(et_context *ctx, enum et_kernel kernel, unsigned shared, struct sample_args args, et_array h,
                        const void *w, int format, int block, int begin, int end, int T, int V, int D) {
    struct et_grid grid = {(unsigned)T, 1, 1};
    struct sample_args last = args;
    args.logp = args.drawn = args.lse = NULL;
    for (int first = begin; first < end; first += block) {
        struct sample_args *now = end == V && end - first <= block ? &last : &args;
        now->first = first;
        now->n = end - first < block ? end - first : block;
        cuda_matmul_forward(ctx, (et_array){(void *)args.logits, ET_F32}, h, et_weight_row(w, format, first, D), format,
                            NULL, NULL, 1.0f, 0, T, now->n, D, 0);
        et_launch(ctx, kernel, 0, grid, et_threads_for(now->n), shared, now);
    }
}

void cuda_head_sample(et_context *ctx, int32_t *token, float *logp, float *drawn, float *logits, float *state,
                      et_array h, const void *w, int format, const int32_t *key, const float *limit, float temperature,
                      float cap, int block, int begin, int end, int T, int V, int D) {
    (void)cap; /* 0: dispatch_ops.c */
    struct sample_args args = {.token = token,
                               .logp = logp,
                               .drawn = drawn,
                               .logits = logits,
                               .state = (struct sample_state *)state,
                               .key = key,
                               .limit = limit,
                               .heat = temperature > 0 ? 1.0f / temperature : 0.0f};
    each_logits(ctx, ET_KERNEL_sample_rows, sizeof(struct sample_shared), args, h, w, format, block, begin, end, T, V,
                D);
}

void cuda_head_top(et_context *ctx, float *top, float *lse, float *logits, float *state, et_array h, const void *w,
                   int format, const float *limit, float cap, int block, int begin, int end, int T, int M, int V,
                   int D) {
    (void)cap;
    struct sample_args args = {
        .top = top, .lse = lse, .logits = logits, .state = (struct sample_state *)state, .limit = limit, .M = M};
    each_logits(ctx, ET_KERNEL_top_rows, sizeof(struct top_shared), args, h, w, format, block, begin, end, T, V, D);
}
