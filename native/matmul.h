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
#define ROWS_A_TASK (4 * MR)  /* of C, when computing */
#define PANELS_A_TASK 4       /* of B, when computing */
#define PACK_A_TASK 8         /* rows of the weight, when packing it as it lies */
#define SLICES 16             /* tasks of a pass that packs */

_Static_assert(NC % NR == 0 && NC % 256 == 0, "a block of columns must hold whole panels and whole quantized blocks");
_Static_assert(KC % 32 == 0 && KC >= 256 && MC % MR == 0, "KC must hold a quantized block, MC whole strips");
_Static_assert(KC * (NC + MC) <= ET_SHARED_FLOATS, "packed blocks must fit the shared scratch");
_Static_assert(UNPACK_ROWS * KC <= ET_THREAD_FLOATS && NC <= ET_THREAD_FLOATS, "unpacked rows must fit, and edges");
_Static_assert((MR + NR) * KC <= ET_THREAD_FLOATS, "in a thread's scratch");

struct product {
    et_context *ctx;
    float *c;
    ptrdiff_t c_rs, c_cs;
    const float *a;
    ptrdiff_t a_rs, a_cs;
    const void *w;
    int64_t ldw;      /* weights a row of w */
    int format;
    int transposed;   /* 0: w is [K, N]; 1: w is [N, K] */
    int int8;         /* as int8.h does; transposed only */
    int M, N, K;
    float alpha;
    int accumulate;
    int m, n, k;      /* where the current block begins, */
    int mc, nc, kc;   /* and its size */
    int pack_a, pack_b; /* pieces of the sides that this pass packs */
    float *b_panels, *a_panels;
    int a_direct, b_direct; /* this side is read where it lies */
};

static inline int floats_in_place(const struct product *p) {
    return p->format == ET_F32 && (uintptr_t)p->w % sizeof(float) == 0;
}

/* `count` weights of row r of w from column i: in `tmp`, or where they lie if they are floats already. */
static const float *weights(const struct product *p, float *tmp, int r, int i, int count) {
    int64_t first = r * p->ldw + i;
    if (floats_in_place(p))
        return (const float *)p->w + first;
    unpack(tmp, p->w, p->format, first, count);
    return tmp;
}

/* Panel `task` of B from NR rows of w, UNPACK_ROWS at a time. */
static void pack_b_transposed(const struct product *p, float *tmp, int task) {
    int n = task * NR, columns = min_int(p->nc - n, NR), width = panel_vectors(columns) * VL;
    float *panel = p->b_panels + (ptrdiff_t)n * p->kc;
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
            pack_panel(p->b_panels + (ptrdiff_t)n * p->kc + (ptrdiff_t)k * width, width, row + n, 1, 0, columns, 1);
        }
    }
}

/* Panel `task` of B in 8-bit integers. */
static void pack_b_int8(const struct product *p, float *tmp, int task) {
    int n = task * NR, columns = min_int(p->nc - n, NR), width = panel_vectors(columns) * VL;
    float *panel = p->b_panels + (ptrdiff_t)n * p->kc;
    for (int r = 0; r < columns; r++) {
        const float *row = weights(p, tmp, p->n + n + r, p->k, p->kc);
        pack_int8_b(panel, width, r, row, p->w, p->format, (p->n + n + r) * p->ldw + p->k, p->kc);
    }
    int8_zeros(int8_panel(panel, width, p->kc), width, columns, p->kc);
}

/* ROWS_A_TASK rows of A. */
static void pack_a(const struct product *p, int task) {
    int end = min_int((task + 1) * ROWS_A_TASK, p->mc);
    for (int m = task * ROWS_A_TASK; m < end; m += MR) {
        float *panel = p->a_panels + (ptrdiff_t)m * p->kc;
        const float *src = p->a + (p->m + m) * p->a_rs + p->k * p->a_cs;
        if (p->int8)
            pack_int8_a(panel, src, p->a_rs, min_int(end - m, MR), p->kc);
        else
            pack_panel(panel, MR, src, p->a_rs, p->a_cs, min_int(end - m, MR), p->kc);
    }
}

/* Slice `task` of SLICES of all that this pass packs. */
static void pack_task(void *arg, int task, int thread) {
    const struct product *p = arg;
    float *tmp = et_scratch(p->ctx, thread);
    for (int i = p->pack_b * task / SLICES; i < p->pack_b * (task + 1) / SLICES; i++) {
        if (p->int8)
            pack_b_int8(p, tmp, i);
        else if (p->transposed)
            pack_b_transposed(p, tmp, i);
        else
            pack_b_straight(p, tmp, i);
    }
    for (int i = p->pack_a * task / SLICES; i < p->pack_a * (task + 1) / SLICES; i++)
        pack_a(p, i);
}

static struct side a_side(const struct product *p, float *tmp, int m, int rows) {
    struct side direct = {p->a + (p->m + m) * p->a_rs + p->k * p->a_cs, p->a_rs, p->a_cs};
    if (!p->a_direct)
        return (struct side){p->a_panels + (ptrdiff_t)m * p->kc, 1, MR};
    return rows == MR ? direct : packed_side(tmp, MR, direct, rows, p->kc);
}

static struct side b_side(const struct product *p, float *tmp, int n, int columns) {
    int width = panel_vectors(columns) * VL;
    if (!p->b_direct)
        return (struct side){p->b_panels + (ptrdiff_t)n * p->kc, 1, width};
    struct side direct = {(const float *)p->w + p->k * p->ldw + p->n + n, 1, p->ldw};
    return columns == width ? direct : packed_side(tmp, width, direct, columns, p->kc);
}

/* A thread's share of the tasks is a band of C along its longer side, so that it reads one of the packed sides where it
 * packed it itself. */
static void compute_task(void *arg, int task, int thread) {
    const struct product *p = arg;
    float *a_tmp = et_scratch(p->ctx, thread), *b_tmp = a_tmp + MR * KC;
    int down = ceil_div(p->mc, ROWS_A_TASK), across = ceil_div(p->nc, PANELS_A_TASK * NR), by_rows = p->mc > p->nc;
    int m0 = (by_rows ? task / across : task % down) * ROWS_A_TASK, m1 = min_int(m0 + ROWS_A_TASK, p->mc);
    int n0 = (by_rows ? task % across : task / down) * PANELS_A_TASK * NR;
    int n1 = min_int(n0 + PANELS_A_TASK * NR, p->nc);
    struct tile t = {.c_rs = p->c_rs, .c_cs = p->c_cs, .K = p->kc, .alpha = p->alpha};
    t.accumulate = p->accumulate || p->k > 0;
    for (int n = n0; n < n1; n += NR) {
        t.columns = min_int(n1 - n, NR);
        t.b = b_side(p, b_tmp, n, t.columns);
        for (int m = m0; m < m1; m += MR) {
            t.rows = min_int(m1 - m, MR);
            t.a = a_side(p, a_tmp, m, t.rows);
            t.c = p->c + (p->m + m) * p->c_rs + (p->n + n) * p->c_cs;
            if (p->int8)
                tile_int8(&t);
            else
                tile_any(&t);
        }
    }
}

/* The inner size of a block: K cut evenly, in whole quantized blocks where w is read along K. */
static int inner_block(const struct product *p) {
    int block = et_format_block(p->format), unit = !p->transposed ? 1 : p->int8 && block < 32 ? 32 : block;
    int most = KC / unit * unit;
    return ceil_div(ceil_div(p->K, ceil_div(p->K, most)), unit) * unit;
}

static void product(struct product *p) {
    int kc = inner_block(p);
    p->b_panels = et_shared(p->ctx);
    p->a_panels = p->b_panels + (ptrdiff_t)KC * NC;
    p->a_direct = p->N <= NR && !p->int8;
    p->b_direct = p->M <= MR && !p->transposed && floats_in_place(p);
    for (p->n = 0; p->n < p->N; p->n += NC) {
        p->nc = min_int(p->N - p->n, NC);
        for (p->k = 0; p->k < p->K; p->k += kc) {
            p->kc = min_int(p->K - p->k, kc);
            p->pack_b = p->b_direct ? 0 : p->transposed ? ceil_div(p->nc, NR) : ceil_div(p->kc, PACK_A_TASK);
            for (p->m = 0; p->m < p->M; p->m += MC) {
                p->mc = min_int(p->M - p->m, MC);
                int rows = ceil_div(p->mc, ROWS_A_TASK);
                p->pack_a = p->a_direct ? 0 : rows;
                et_parallel(p->ctx, pack_task, p, p->pack_a + p->pack_b ? SLICES : 0);
                et_parallel(p->ctx, compute_task, p, rows * ceil_div(p->nc, PANELS_A_TASK * NR));
                p->pack_b = 0;
            }
        }
    }
}

static void matmul_forward(et_context *ctx, float *out, const float *inp, const void *w, int format, float scale,
                           int accumulate, int T, int N, int K) {
    struct product p = {.ctx = ctx, .c = out, .c_rs = N, .c_cs = 1, .a = inp, .a_rs = K, .a_cs = 1, .w = w, .ldw = K,
                        .format = format, .transposed = 1, .M = T, .N = N, .K = K, .alpha = scale,
                        .accumulate = accumulate};
    product(&p);
}

static void matmul_forward_int8(et_context *ctx, float *out, const float *inp, const void *w, int format, float scale,
                                int accumulate, int T, int N, int K) {
    struct product p = {.ctx = ctx, .c = out, .c_rs = N, .c_cs = 1, .a = inp, .a_rs = K, .a_cs = 1, .w = w, .ldw = K,
                        .format = format, .transposed = 1, .int8 = 1, .M = T, .N = N, .K = K, .alpha = scale,
                        .accumulate = accumulate};
    product(&p);
}

static void matmul_backward(et_context *ctx, float *dinp, const float *dout, const void *w, int format, float scale,
                            int accumulate, int T, int N, int K) {
    struct product p = {.ctx = ctx, .c = dinp, .c_rs = K, .c_cs = 1, .a = dout, .a_rs = N, .a_cs = 1, .w = w, .ldw = K,
                        .format = format, .transposed = 0, .M = T, .N = K, .K = N, .alpha = scale,
                        .accumulate = accumulate};
    product(&p);
}

/* The wider of dout and inp plays the weight: dw, or dw transposed. */
static void matmul_dweight(et_context *ctx, float *dw, const float *dout, const float *inp, float scale, int T, int N,
                           int K) {
    struct product p = {.ctx = ctx, .c = dw, .c_rs = K, .c_cs = 1, .a = dout, .a_rs = 1, .a_cs = N, .w = inp, .ldw = K,
                        .format = ET_F32, .M = N, .N = K, .K = T, .alpha = scale, .accumulate = 1};
    struct product swapped = {.ctx = ctx, .c = dw, .c_rs = 1, .c_cs = K, .a = inp, .a_rs = 1, .a_cs = K, .w = dout,
                              .ldw = N, .format = ET_F32, .M = K, .N = N, .K = T, .alpha = scale, .accumulate = 1};
    product(N > K ? &swapped : &p);
}
