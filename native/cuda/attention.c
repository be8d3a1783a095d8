/* Attention: which kernels, by precision and width of the heads, and how many blocks. */
#include "attention.h"

#include "set.h"

/* Rows of a block, and threads. */
struct attention_kernel {
    enum et_kernel kernel;
    int rows;
    unsigned threads, shared;
};

static const struct attention_width {
    int C;
    struct attention_kernel forward, dq, dkv;
} widths[] = {
#define FORWARD(C) sizeof(struct attention_forward_shared_##C)
#define BACKWARD(C) sizeof(struct attention_backward_shared_##C)
#define WIDTH(C, QUERIES, KEYS, OWN, PASSING, BUFFERS, PARTS)                                                          \
    {C,                                                                                                                \
     {ET_KERNEL_attention_forward_##C, QUERIES, QUERIES * 2, FORWARD(C)},                                              \
     {ET_KERNEL_attention_dq_##C, OWN, OWN * 2, BACKWARD(C)},                                                          \
     {ET_KERNEL_attention_dkv_##C, OWN, OWN * 2 * PARTS, BACKWARD(C)}},
    ATTENTION_WIDTHS(WIDTH)
#undef WIDTH
};

static const struct attention_width in_float = {
    ET_NARROW_HEAD,
    {ET_KERNEL_attention_forward_float, FLOAT_OWN, FLOAT_THREADS, sizeof(struct attention_float_shared)},
    {ET_KERNEL_attention_dq_float, FLOAT_OWN, FLOAT_THREADS, sizeof(struct attention_float_shared)},
    {ET_KERNEL_attention_dkv_float, FLOAT_OWN, FLOAT_THREADS, sizeof(struct attention_float_shared)},
};

static const struct attention_width *width_of(const struct attention_args *a) {
    const struct attention_width *width = widths;
    while (width->C < a->C)
        width++;
    return a->rounds ? width : &in_float;
}

static struct attention_rows rows_of(et_array x, int C) {
    return (struct attention_rows){x, x.type == ET_BF16 && C % 8 == 0 && (uintptr_t)x.data % 16 == 0};
}

/* A block for each tile of n tokens of each head. */
static void launch_tiles(et_context *ctx, struct attention_kernel kernel, int n, int heads,
                         const struct attention_args *args) {
    struct et_grid grid = {blocks_of(n, kernel.rows) * (unsigned)heads, 1, 1};
    et_launch(ctx, kernel.kernel, 0, grid, kernel.threads, kernel.shared, args);
}

void cuda_attention_forward(et_context *ctx, et_array out, float *lse, et_array q, et_array k, et_array v,
                            const int32_t *begin, const int32_t *end, const int32_t *position, float scale, int window,
                            int Q, int T, int H, int G, int C) {
    struct attention_args args = {.out = out,
                                  .lse = lse,
                                  .q = rows_of(q, C),
                                  .k = rows_of(k, C),
                                  .v = rows_of(v, C),
                                  .begin = begin,
                                  .end = end,
                                  .position = position,
                                  .scale = scale,
                                  .window = window,
                                  .first = T - Q,
                                  .T = T,
                                  .H = H,
                                  .G = G,
                                  .C = C,
                                  .rounds = et_precision(ctx) != ET_EXACT};
    launch_tiles(ctx, width_of(&args)->forward, Q, H, &args);
}

void cuda_attention_backward(et_context *ctx, et_array dq, et_array dk, et_array dv, float *delta, et_array dout,
                             et_array out, const float *lse, et_array q, et_array k, et_array v, const int32_t *begin,
                             const int32_t *end, const int32_t *position, float scale, int window, int Q, int T, int H,
                             int G, int C) {
    struct attention_args args = {.dq = dq,
                                  .dk = dk,
                                  .dv = dv,
                                  .delta = delta,
                                  .dout = rows_of(dout, C),
                                  .out = out,
                                  .lse = (float *)lse,
                                  .q = rows_of(q, C),
                                  .k = rows_of(k, C),
                                  .v = rows_of(v, C),
                                  .begin = begin,
                                  .end = end,
                                  .position = position,
                                  .scale = scale,
                                  .window = window,
                                  .first = T - Q,
                                  .T = T,
                                  .H = H,
                                  .G = G,
                                  .C = C,
                                  .rounds = et_precision(ctx) != ET_EXACT};
    struct et_grid rows = {blocks_of((int64_t)Q * H, ET_BLOCK / ET_WARP), 1, 1};
    et_launch(ctx, ET_KERNEL_attention_delta, 0, rows, ET_BLOCK, 0, &args);
    launch_tiles(ctx, width_of(&args)->dq, Q, H, &args);
    launch_tiles(ctx, width_of(&args)->dkv, T, G, &args);
}
