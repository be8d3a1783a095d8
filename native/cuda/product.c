/* Products with a frozen weight: which tiles, and what may be read how. */
#include "product.h"

#include "set.h"

struct shape {
    enum et_kernel forward, backward;
    int T, outer;
    unsigned shared;
};

static const struct shape exact = {ET_KERNEL_exact_forward, ET_KERNEL_exact_backward, EXACT_TILE, EXACT_TILE,
                                   sizeof(struct product_exact)};

static const struct shape shapes[] = {
#define PRODUCT_SHAPE(name, T, outer, ...)                                                                             \
    {ET_KERNEL_##name##_forward, ET_KERNEL_##name##_backward, T, outer, sizeof(struct product_##name)},
    PRODUCT_SHAPES
#undef PRODUCT_SHAPE
};

/* Blocks that keep a card busy: 16 multiprocessors with two each have four turns, 132 one. Not asked of the card, as
 * results are not to depend on it. Tests are smaller than that. */
#ifdef ET_EMULATED
enum { ENOUGH = 2 };
#else
enum { ENOUGH = 128 };
#endif

static int64_t blocks(const struct shape *s, int T, int outer) {
    return (int64_t)blocks_of(T, s->T) * blocks_of(outer, s->outer);
}

/* The largest tiles that T fills by more than half, and of which there are enough. */
static const struct shape *shape_for(et_context *ctx, int T, int outer) {
    if (et_precision(ctx) == ET_EXACT)
        return &exact;
    const struct shape *s = shapes;
    while (s + 1 < shapes + sizeof shapes / sizeof *shapes && (2 * T <= s->T || blocks(s, T, outer) < ENOUGH))
        s++;
    return s;
}

static struct product_part part(et_array inp, const void *w, int format, int inner, int rows, int columns) {
    int size = inp.type == ET_F32 ? 4 : 2;
    return (struct product_part){.inp = inp,
                                 .w = w,
                                 .rows = rows,
                                 .columns = columns,
                                 .inp_aligned = inner % 8 == 0 && rows_aligned(inp.data, (int64_t)inner * size),
                                 .w_aligned = weights_aligned(w, format, columns)};
}

static void launch_product(et_context *ctx, int backward, struct product_args args, int format) {
    const struct shape *s = shape_for(ctx, args.T, args.outer);
    int pair = args.out.type == ET_F32 ? 8 : 4;
    args.paired = args.outer % 2 == 0 && (uintptr_t)args.out.data % (unsigned)pair == 0;
    struct et_grid grid = {blocks_of(args.outer, s->outer), blocks_of(args.T, s->T), 1};
    et_launch(ctx, backward ? s->backward : s->forward, format, grid, ET_BLOCK, s->shared, &args);
}

void cuda_matmul_forward(et_context *ctx, et_array out, et_array inp, const void *w, int format, const float *x,
                         const float *y, float scale, int accumulate, int T, int N, int K, int R) {
    struct product_args args = {.out = out, .scale = scale, .accumulate = accumulate, .T = T, .outer = N};
    args.part[0] = part(inp, w, format, K, N, K);
    if (R)
        args.part[1] = part((et_array){(void *)x, ET_F32}, y, ET_F32, R, N, R);
    launch_product(ctx, 0, args, format);
}

void cuda_matmul_backward(et_context *ctx, et_array dinp, et_array dout, const void *w, int format, const float *x,
                          const float *y, float scale, int accumulate, int T, int N, int K, int R) {
    struct product_args args = {.out = dinp, .scale = scale, .accumulate = accumulate, .T = T, .outer = K};
    args.part[0] = part(dout, w, format, N, N, K);
    if (R)
        args.part[1] = part((et_array){(void *)x, ET_F32}, y, ET_F32, R, R, K);
    launch_product(ctx, 1, args, format);
}
