/* Element by element: a grid of at most MOST_BLOCKS, whose threads take four values after four. */
#include "elementwise.h"

#include "set.h"

static et_array floats(const float *x) { return (et_array){(void *)x, ET_F32}; }

static void launch_elementwise(et_context *ctx, enum et_kernel kernel, struct elementwise_args args) {
    args.whole = et_aligned(args.out) && et_aligned(args.inp);
    et_launch(ctx, kernel, 0, et_grid_of_fours(args.n), ET_BLOCK, 0, &args);
}

void cuda_copy(et_context *ctx, et_array out, et_array inp, int64_t n) {
    struct elementwise_args args = {.out = out, .inp = inp, .scale = 1.0f, .n = n};
    launch_elementwise(ctx, ET_KERNEL_scaled_copy, args);
}

void cuda_add(et_context *ctx, float *x, const float *y, int64_t n) {
    struct elementwise_args args = {.out = floats(x), .inp = floats(y), .scale = 1.0f, .accumulate = 1, .n = n};
    launch_elementwise(ctx, ET_KERNEL_scaled_copy, args);
}

void cuda_scale(et_context *ctx, float *x, float s, int64_t n) {
    struct elementwise_args args = {.out = floats(x), .inp = floats(x), .scale = s, .n = n};
    launch_elementwise(ctx, ET_KERNEL_scaled_copy, args);
}

void cuda_dropout(et_context *ctx, et_array out, et_array inp, float p, uint64_t seed, int accumulate, int64_t n) {
    struct elementwise_args args = {.out = out,
                                    .inp = inp,
                                    .scale = 1.0f / (1.0f - p),
                                    .accumulate = accumulate,
                                    .threshold = (uint32_t)(p * 4294967296.0),
                                    .seed = seed,
                                    .n = n};
    launch_elementwise(ctx, ET_KERNEL_dropout, args);
}

void cuda_add_bias(et_context *ctx, et_array x, const float *bias, int T, int N) {
    struct add_bias_args args = {.x = x, .bias = bias, .T = T, .N = N};
    unsigned threads = et_threads_for(N);
    args.whole = N % 4 == 0 && et_aligned(x) && et_aligned(floats(bias));
    struct et_grid grid = {T < MOST_BLOCKS ? (unsigned)T : MOST_BLOCKS, blocks_of(N, 4 * (int64_t)threads), 1};
    et_launch(ctx, ET_KERNEL_add_bias, 0, grid, threads, 0, &args);
}

void cuda_sum_squares(et_context *ctx, double *out, const float *x, int64_t n) {
    struct sum_squares_args args = {.x = x, .parts = (double *)et_shared(ctx), .n = n, .whole = et_aligned(floats(x))};
    struct et_grid grid = et_grid_of_fours(n);
    et_launch(ctx, ET_KERNEL_sum_squares, 0, grid, ET_BLOCK, sizeof(struct sum_squares_shared), &args);
    *out = 0;
    if (et_context_synchronize(ctx) != ET_OK)
        return;
    for (unsigned i = 0; i < grid.x; i++)
        *out += args.parts[i];
}
