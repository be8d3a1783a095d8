/* The one driver: C [M, N] (+)= alpha * A [M, K] . B, where B is a weight in any format, read as it lies (backward) or
 * transposed (forward), and A is floats with two strides.
 *
 * For each block of NC columns and kc <= KC inner elements, the threads first pack B together (each weight is unpacked
 * once, however many rows A has), and with it A; then they compute tiles. Blocks of A are at most MC rows. The packed
 * blocks lie in the context's shared scratch: B [kc, NC], then A [kc, MC].
 *
 * Where the product is so narrow that a side is used but once (LoRA's small matrices), that side is read where it lies,
 * and only the edges that a tile would read past are packed, in the thread's scratch.
 */

#define UNPACK_ROWS 16        /* of the weight, before they are transposed together */
#define ROWS_A_TASK 32        /* of C, at least, when computing */
#define PANELS_A_TASK 4       /* of B, when computing */
#define PACK_A_TASK 8         /* rows of the weight, when packing it as it lies */
#define SLICES 16             /* tasks of a pass that packs */

_Static_assert(NC % NR == 0 && NC % 256 == 0, "a block of columns must hold whole panels and whole quantized blocks");
_Static_assert(KC % 32 == 0 && KC >= 256 && MC % MR == 0, "KC must hold a quantized block, MC whole strips");
_Static_assert(KC * (NC + MC) <= ET_SHARED_FLOATS, "packed blocks must fit the shared scratch");
_Static_assert(UNPACK_ROWS * KC <= ET_THREAD_FLOATS && NC <= ET_THREAD_FLOATS, "unpacked rows must fit, and edges");
_Static_assert((MR + NR) * KC <= ET_THREAD_FLOATS, "in a thread's scratch");

/* Whole tiles' rows. */
static int rows_a_task(const struct product *p) {
    return ceil_div(ROWS_A_TASK, p->kernel->rows) * p->kernel->rows;
}

/* ---- packing floats ---------------------------------------------------------------------------------------- */

/* Panel `task` of B from NR rows of w, UNPACK_ROWS at a time. */
static void pack_b_transposed(const struct product *p, float *tmp, int task) {
    int n = task * NR, columns = min_int(p->nc - n, NR), width = panel_vectors(columns) * VL;
    float *panel = b_panel(p, n);
    for (int j = 0; j < columns; j += UNPACK_ROWS) {
        int rows = min_int(columns - j, UNPACK_ROWS);
        const float *src = tmp;
        ptrdiff_t ld = p->kc;
        for (int r = 0; r < rows; r++)
            src = weights(p, tmp + r * ld, p->n + n + j + r, p->k, p->kc);
        if (src != tmp + (rows - 1) * ld) { /* floats, read in place */
            ld = p->ldw;
            src -= (rows - 1) * ld;
        } else
            src = tmp;
        pack_transposed(panel + j, width, src, ld, rows, p->kc);
    }
    pack_zeros(panel, width, columns, p->kc);
}

/* PACK_A_TASK rows k of all panels of B from as many rows of w. */
static void pack_b_straight(const struct product *p, float *tmp, int task) {
    int k_end = min_int((task + 1) * PACK_A_TASK, p->kc);
    for (int k = task * PACK_A_TASK; k < k_end; k++) {
        const float *row = weights(p, tmp, p->k + k, p->n, p->nc);
        for (int n = 0; n < p->nc; n += NR) {
            int columns = min_int(p->nc - n, NR), width = panel_vectors(columns) * VL;
            pack_panel(b_panel(p, n) + (ptrdiff_t)k * width, width, row + n, 1, 0, columns, 1);
        }
    }
}

static void pack_a_floats(const struct product *p, int m, int rows) {
    pack_panel(a_panel(p, m), MR, a_rows(p, m), p->a_rs, p->a_cs, rows, p->kc);
}

static const struct kernel float_kernel = {
    .rows = MR, .columns = NR, .inner = KC, .unit = 1, .bytes = 4, .pack_inner = PACK_A_TASK, .pack_a = pack_a_floats,
    .pack_b_transposed = pack_b_transposed, .pack_b_straight = pack_b_straight, .tile = tile_any,
};

#ifdef __AVX512BF16__
#define FAST_KERNEL bf16_kernel
#else
#define FAST_KERNEL float_kernel
#endif

static const struct kernel *product_kernel(enum et_precision precision, int backward, int inner) {
    if (precision == ET_INT8 && !backward && inner % 32 == 0)
        return &int8_kernel;
    return precision == ET_EXACT ? &float_kernel : &FAST_KERNEL;
}

static const char *product_numbers(enum et_precision precision, int backward) {
    const struct kernel *kernel = product_kernel(precision, backward, 32);
    return kernel == &int8_kernel ? "int8" : kernel == &float_kernel ? "float" : "bf16";
}

/* ---- the driver -------------------------------------------------------------------------------------------- */

/* Task `task` of packing A: as many rows as one of computing takes. */
static void pack_a(const struct product *p, int task) {
    int end = min_int((task + 1) * rows_a_task(p), p->mc);
    for (int m = task * rows_a_task(p); m < end; m += p->kernel->rows)
        p->kernel->pack_a(p, m, min_int(end - m, p->kernel->rows));
}

/* Slice `task` of SLICES of all that this pass packs. */
static void pack_task(void *arg, int task, int thread) {
    const struct product *p = arg;
    float *tmp = et_scratch(p->ctx, thread);
    for (int i = p->pack_b * task / SLICES; i < p->pack_b * (task + 1) / SLICES; i++) {
        if (p->transposed)
            p->kernel->pack_b_transposed(p, tmp, i);
        else
            p->kernel->pack_b_straight(p, tmp, i);
    }
    for (int i = p->pack_a * task / SLICES; i < p->pack_a * (task + 1) / SLICES; i++)
        pack_a(p, i);
}

static struct side a_side(const struct product *p, float *tmp, int m, int rows) {
    struct side direct = {a_rows(p, m), p->a_rs, p->a_cs};
    if (!p->a_direct)
        return (struct side){a_panel(p, m), 1, MR};
    return rows == MR ? direct : packed_side(tmp, MR, direct, rows, p->kc);
}

static struct side b_side(const struct product *p, float *tmp, int n, int columns) {
    int width = panel_vectors(columns) * VL;
    if (!p->b_direct)
        return (struct side){b_panel(p, n), 1, width};
    struct side direct = {(const float *)p->w + p->k * p->ldw + p->n + n, 1, p->ldw};
    return columns == width ? direct : packed_side(tmp, width, direct, columns, p->kc);
}

/* A thread's share of the tasks is a band of C along its longer side, so that it reads one of the packed sides where it
 * packed it itself. */
static void compute_task(void *arg, int task, int thread) {
    const struct product *p = arg;
    float *a_tmp = et_scratch(p->ctx, thread), *b_tmp = a_tmp + MR * KC;
    uint8_t before[TILE_STATE];
    int rows = rows_a_task(p), columns = PANELS_A_TASK * p->kernel->columns;
    int down = ceil_div(p->mc, rows), across = ceil_div(p->nc, columns), by_rows = p->mc > p->nc;
    int m0 = (by_rows ? task / across : task % down) * rows, m1 = min_int(m0 + rows, p->mc);
    int n0 = (by_rows ? task % across : task / down) * columns, n1 = min_int(n0 + columns, p->nc);
    struct tile t = {.c_rs = p->c_rs, .c_cs = p->c_cs, .K = p->packed, .alpha = p->alpha};
    t.accumulate = p->accumulate || p->k > 0;
    if (p->kernel->begin)
        p->kernel->begin(before);
    for (int n = n0; n < n1; n += p->kernel->columns) {
        t.columns = min_int(n1 - n, p->kernel->columns);
        t.b = b_side(p, b_tmp, n, t.columns);
        for (int m = m0; m < m1; m += p->kernel->rows) {
            t.rows = min_int(m1 - m, p->kernel->rows);
            t.a = a_side(p, a_tmp, m, t.rows);
            t.c = p->c + (p->m + m) * p->c_rs + (p->n + n) * p->c_cs;
            p->kernel->tile(&t);
        }
    }
    if (p->kernel->end)
        p->kernel->end(before);
}

/* The inner size of a block: K cut evenly, in whole quantized blocks where w is read along K. */
static int inner_block(const struct product *p) {
    int block = p->transposed ? et_format_block(p->format) : 1;
    int unit = block > p->kernel->unit ? block : p->kernel->unit, most = p->kernel->inner / unit * unit;
    return ceil_div(ceil_div(p->K, ceil_div(p->K, most)), unit) * unit;
}

static void product(struct product *p, const struct kernel *kernel) {
    p->kernel = kernel;
    int kc = inner_block(p), float_tile = kernel == &float_kernel;
    p->b_panels = et_shared(p->ctx);
    p->a_panels = p->b_panels + (ptrdiff_t)kernel->inner * kernel->bytes / 4 * NC;
    p->a_direct = p->N <= NR && float_tile;
    p->b_direct = p->M <= MR && !p->transposed && float_tile && floats_in_place(p);
    for (p->n = 0; p->n < p->N; p->n += NC) {
        p->nc = min_int(p->N - p->n, NC);
        for (p->k = 0; p->k < p->K; p->k += kc) {
            p->kc = min_int(p->K - p->k, kc);
            p->packed = ceil_div(p->kc, kernel->unit) * kernel->unit;
            p->pack_b = p->b_direct     ? 0
                        : p->transposed ? ceil_div(p->nc, kernel->columns)
                                        : ceil_div(p->packed, kernel->pack_inner);
            for (p->m = 0; p->m < p->M; p->m += MC) {
                p->mc = min_int(p->M - p->m, MC);
                int rows = ceil_div(p->mc, rows_a_task(p));
                p->pack_a = p->a_direct ? 0 : rows;
                et_parallel(p->ctx, pack_task, p, p->pack_a + p->pack_b ? SLICES : 0);
                et_parallel(p->ctx, compute_task, p, rows * ceil_div(p->nc, PANELS_A_TASK * kernel->columns));
                p->pack_b = 0;
            }
        }
    }
}

/* Products with F32 weights, LoRA's among them, are always exact. */
static const struct kernel *frozen_kernel(const et_context *ctx, int format, int backward, int inner) {
    return product_kernel(format == ET_F32 ? ET_EXACT : et_precision(ctx), backward, inner);
}

static void matmul_forward(et_context *ctx, float *out, const float *inp, const void *w, int format, float scale,
                           int accumulate, int T, int N, int K) {
    struct product p = {.ctx = ctx, .c = out, .c_rs = N, .c_cs = 1, .a = inp, .a_rs = K, .a_cs = 1, .w = w, .ldw = K,
                        .format = format, .transposed = 1, .M = T, .N = N, .K = K, .alpha = scale,
                        .accumulate = accumulate};
    product(&p, frozen_kernel(ctx, format, 0, K));
}

static void matmul_backward(et_context *ctx, float *dinp, const float *dout, const void *w, int format, float scale,
                            int accumulate, int T, int N, int K) {
    struct product p = {.ctx = ctx, .c = dinp, .c_rs = K, .c_cs = 1, .a = dout, .a_rs = N, .a_cs = 1, .w = w, .ldw = K,
                        .format = format, .transposed = 0, .M = T, .N = K, .K = N, .alpha = scale,
                        .accumulate = accumulate};
    product(&p, frozen_kernel(ctx, format, 1, N));
}

/* The wider of dout and inp plays the weight: dw, or dw transposed. */
static void matmul_dweight(et_context *ctx, float *dw, const float *dout, const float *inp, float scale, int T, int N,
                           int K) {
    struct product p = {.ctx = ctx, .c = dw, .c_rs = K, .c_cs = 1, .a = dout, .a_rs = 1, .a_cs = N, .w = inp, .ldw = K,
                        .format = ET_F32, .M = N, .N = K, .K = T, .alpha = scale, .accumulate = 1};
    struct product swapped = {.ctx = ctx, .c = dw, .c_rs = 1, .c_cs = K, .a = inp, .a_rs = 1, .a_cs = K, .w = dout,
                              .ldw = N, .format = ET_F32, .M = K, .N = N, .K = T, .alpha = scale, .accumulate = 1};
    product(N > K ? &swapped : &p, &float_kernel);
}
