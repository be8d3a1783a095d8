/* The one driver: C [M, N] (+)= alpha * (A . B + A' . B'), where B is a weight in any format, read as it lies
 * (backward) or transposed (forward), A is activations with two strides, and A' . B' the same with a few inner
 * elements: LoRA's part, or nothing.
 *
 * For each block of columns and inner elements, the threads first pack B together (each weight is unpacked once,
 * however many rows A has), and with it A; then they compute tiles. Blocks are at most NC columns, KC inner elements of
 * floats (or as many bytes of what is narrower) and MC rows, and lie packed in the context's shared scratch. Where C is
 * bf16, sums are rounded when a block of inner elements ends, so it holds more of them, and fewer rows and columns.
 *
 * Few rows are little work for each weight. Then a thread packs a panel of B for itself and multiplies it by all rows
 * while it lies in that core's cache; only A is shared.
 *
 * What a tile can read where it lies is not packed: activations in the type that is multiplied, and, in products so
 * narrow that a side is used but once, floats. Edges that a tile would read past are packed all the same.
 */

#define PANELS_A_TASK 2  /* of B, when computing */
#define SLICES 16        /* tasks of a pass that packs, */
#define PACK_ALONE 16384 /* unless it has no more elements than this */
/* Where each panel of B is a task: floats of A at most, so that they stay in a core's cache meanwhile; panels at least,
 * or threads would wait for the last one; and where in a thread's scratch it lies, behind work space for packing and
 * sums. */
#define ROWS_ALONE (256 * 1024)
#define PANELS_A_THREAD 3
#define PANEL_AT (32 * 1024)

_Static_assert(NC % NR == 0 && NC % 256 == 0, "a block of columns must hold whole panels and whole quantized blocks");
_Static_assert(KC % 32 == 0 && KC >= 256 && MC % MR == 0, "KC must hold a quantized block, MC whole strips");
_Static_assert((KC + LOW_RANK) * (NC + MC) <= ET_SHARED_FLOATS, "packed blocks must fit the shared scratch");
_Static_assert((KC + 4 * 32) * NR <= ET_THREAD_FLOATS, "edges and sums must fit a thread's scratch");
_Static_assert(ROWS_ALONE <= ET_SHARED_FLOATS, "all of A is packed in the shared scratch");
_Static_assert(UNPACK_ROWS * KC * K_FACTOR_BF16 <= PANEL_AT, "unpacked rows must end before the panel");
#ifdef ET_DOT
_Static_assert(INT8_COLUMNS * INT8_INNER * K_FACTOR_BF16 <= 4 * PANEL_AT && 2 * INT8_COLUMNS * INT8_CHUNK <= PANEL_AT,
               "and so must their codes");
#endif
#ifdef ET_BF16_PRODUCTS
_Static_assert(BF16_RUN / 2 * BF16_CHUNK <= PANEL_AT, "and rows in bf16");
#endif
_Static_assert(PANEL_AT + (KC * K_FACTOR_BF16 + LOW_RANK) * NR <= ET_THREAD_FLOATS, "and beside them a panel of B");

static int rows_a_task(const struct product *p) { return p->kernel->scheduling.tiles_per_task * p->kernel->tile.rows; }

/* What is fast, and whether bytes are faster yet where a gradient may be rounded to them. */
#ifdef ET_BF16_PRODUCTS
#define FAST_KERNEL bf16_kernel
#define FAST_BACKWARD_INT8 0 /* bytes are twice as fast at most, but bf16 and they together miss et.h's 0.9995 */
#else
#define FAST_KERNEL float_kernel
#define FAST_BACKWARD_INT8 1
#endif

/* 8-bit integers are for weights that are quantized: what LoRA adds is little work. */
static const struct kernel *product_kernel(enum et_precision precision, enum direction direction, int format,
                                           int inner) {
#ifdef ET_DOT
    int is_int8 = precision == ET_INT8 || (precision == ET_FAST && direction == BACKWARD && FAST_BACKWARD_INT8);
    if (is_int8 && format != ET_F32 && inner % 32 == 0)
        return int8_kernel_of(format, direction, precision);
#endif
    (void)direction, (void)format, (void)inner;
    return precision == ET_EXACT ? &float_kernel : &FAST_KERNEL;
}

static const char *product_numbers(enum et_precision precision, int backward) {
    const struct kernel *kernel = product_kernel(precision, backward ? BACKWARD : FORWARD, ET_Q8_0, 32);
    return kernel->packing.is_int8 ? "int8" : kernel == &float_kernel ? "float" : "bf16";
}

/* ---- the driver -------------------------------------------------------------------------------------------- */

/* Strip `task` of A, unless it is whole and read where it lies. */
static void pack_a(const struct product *p, const struct segment *s, float *tmp, int task) {
    int m = task * p->kernel->tile.rows;
    int rows = min_int(p->mc - m, p->kernel->tile.rows);
    if (!s->a_direct || rows < p->kernel->tile.rows)
        p->kernel->packing.a(p, s, a_panel(s, m), tmp, m, rows);
}

static int slice(const struct product *p, int n, int task) { return n * task / p->slices; }

/* Slice `task` of all that this pass packs. */
static void pack_task(void *arg, int task, int thread) {
    const struct product *p = arg;
    float *tmp = et_scratch(p->ctx, thread);
    for (const struct segment *s = p->s; s < p->s + SEGMENTS; s++) {
        int b = !s->kc || !p->pack_b || s->b_direct ? 0
                : p->transposed                     ? ceil_div(p->nc, p->kernel->tile.columns)
                                                    : pieces(p, s);
        for (int i = slice(p, b, task); i < slice(p, b, task + 1); i++)
            (p->transposed ? p->kernel->packing.b_transposed : p->kernel->packing.b_straight)(p, s, tmp, i);
        int a = s->kc ? ceil_div(p->mc, p->kernel->tile.rows) : 0;
        for (int i = slice(p, a, task); i < slice(p, a, task + 1); i++)
            pack_a(p, s, tmp, i);
    }
}

/* Rows m .. m + rows - 1 of A, from inner element k of the block on. */
INLINE struct side a_side(const struct product *p, const struct segment *s, int m, int rows, int k) {
    const struct kernel *kernel = p->kernel;
    if (s->a_direct && rows == kernel->tile.rows)
        return (struct side){array_at(a_rows(p, s, m), k * s->a_cs).data, s->a_rs,
                             kernel->tile.k_run ? kernel->tile.k_run : s->a_cs, 0};
    const float *panel = a_panel(s, m) + kernel->tile.rows * panel_floats(s, k);
    return kernel->tile.k_run ? (struct side){panel, kernel->tile.k_run, kernel->tile.rows * kernel->tile.k_run, 0}
                              : (struct side){panel, 1, MR, 0};
}

INLINE struct side b_side(const struct product *p, const struct segment *s, float *tmp, int n, int columns) {
    int width = panel_vectors(columns) * VL;
    if (!s->b_direct)
        return (struct side){b_panel(s, n), 1, width, 0};
    et_array b = array_at((et_array){(void *)s->w, s->format}, s->k * s->ldw + p->n + n);
    if (columns == width)
        return (struct side){b.data, 1, s->ldw, b.type == ET_BF16};
    for (int k = 0; k < s->kc; k++)
        for (int j = 0; j < columns; j += VL)
            vstore(tmp + (ptrdiff_t)k * width + j, load_part(b, k * s->ldw + j, columns - j));
    return (struct side){tmp, 1, width, 0};
}

/* Asks for the lines of C that a tile will write: they come while it computes. */
static inline void fetch_c(const struct tile *t) {
    const ptrdiff_t size = t->c.type == ET_F32 ? 4 : 2;
    for (int i = 0; i < t->rows && t->c_cs == 1; i++)
        for (int j = 0; j < t->columns * size; j += 64)
            __builtin_prefetch((const char *)t->c.data + i * t->c_rs * size + j, 1);
}

/* A tile for each strip of rows m0 .. m1 - 1, against the panel of B that t has, from inner element k on. */
static void compute_strips(const struct product *p, struct tile *t, float *sums, int m0, int m1, int n, int k) {
    for (int m = m0; m < m1; m += p->kernel->tile.rows) {
        t->rows = min_int(m1 - m, p->kernel->tile.rows);
        t->s[0].a = a_side(p, &p->s[0], m, t->rows, k);
        t->s[1].a = a_side(p, &p->s[1], m, t->rows, 0);
        t->c = array_at(p->c, (p->m + m) * p->c_rs + (p->n + n) * p->c_cs);
        t->sums = sums + (m - m0) * p->kernel->tile.columns;
        if (!p->kernel->scheduling.k_part) /* one in parts does so itself, before the last */
            fetch_c(t);
        p->kernel->tile.compute(t);
    }
}

/* Rows m0 .. m1 - 1, at most those of a task, of columns n0 .. n1 - 1. */
static void compute(const struct product *p, float *sums, int m0, int m1, int n0, int n1) {
    float *tmp = sums + rows_a_task(p) * p->kernel->tile.columns;
    struct tile t = {.c_rs = p->c_rs, .c_cs = p->c_cs, .alpha = p->alpha};
    t.accumulate = p->accumulate || !p->first;
    for (int n = n0; n < n1; n += p->kernel->tile.columns) {
        t.columns = min_int(n1 - n, p->kernel->tile.columns);
        struct side b = b_side(p, &p->s[0], tmp, n, t.columns);
        t.s[1].b = b_side(p, &p->s[1], tmp, n, t.columns);
        int all = p->s[0].packed;
        int part = p->kernel->scheduling.k_part ? p->kernel->scheduling.k_part : all;
        int k = 0;
        do {
            t.resumed = k > 0;
            t.to_come = k + part < all;
            t.s[0].K = min_int(part, all - k);
            t.s[0].b = b;
            t.s[0].b.p += b.ks * panel_floats(&p->s[0], k);
            t.s[1].K = t.to_come ? 0 : p->s[1].kc;
            compute_strips(p, &t, sums, m0, m1, n, k);
            k += part;
        } while (t.to_come);
    }
}

/* A thread's share of the tasks is a band of C along its longer side, so that it reads one of the packed sides where it
 * packed it itself. */
static void compute_task(void *arg, int task, int thread) {
    const struct product *p = arg;
    uint8_t before[TILE_STATE];
    int rows = rows_a_task(p);
    int columns = PANELS_A_TASK * p->kernel->tile.columns;
    int down = ceil_div(p->mc, rows);
    int across = ceil_div(p->nc, columns);
    int by_rows = p->mc > p->nc;
    int m = (by_rows ? task / across : task % down) * rows;
    int n = (by_rows ? task % across : task / down) * columns;
    if (p->kernel->tile.begin)
        p->kernel->tile.begin(before);
    compute(p, et_scratch(p->ctx, thread), m, min_int(m + rows, p->mc), n, min_int(n + columns, p->nc));
    if (p->kernel->tile.end)
        p->kernel->tile.end(before);
}

/* A panel of B, packed and multiplied by all rows. */
static void panel_task(void *arg, int task, int thread) {
    struct product p = *(const struct product *)arg;
    uint8_t before[TILE_STATE];
    float *scratch = et_scratch(p.ctx, thread);
    float *panel = scratch + PANEL_AT;
    int rows = rows_a_task(&p);
    int first = task * p.kernel->tile.columns;
    p.n += first;
    p.nc = min_int(p.nc - first, p.kernel->tile.columns);
    for (struct segment *s = p.s; s < p.s + SEGMENTS; s++) {
        s->b_panels = panel;
        panel = b_panel(s, p.kernel->tile.columns);
        if (s->kc)
            p.kernel->packing.b_transposed(&p, s, scratch, 0);
    }
    if (p.kernel->tile.begin)
        p.kernel->tile.begin(before);
    for (int m = 0; m < p.mc; m += rows)
        compute(&p, scratch, m, min_int(m + rows, p.mc), 0, p.nc);
    if (p.kernel->tile.end)
        p.kernel->tile.end(before);
}

/* The inner size of a block: K cut evenly, in whole quantized blocks where w is read along K, or whole runs of codes. */
static int inner_block(const struct product *p) {
    int block = p->transposed                ? format_block(p->s[0].format)
                : p->kernel->packing.is_int8 ? p->kernel->scheduling.pack_inner
                                             : 1;
    int K = p->s[0].K;
    int unit = block > p->kernel->packing.unit ? block : p->kernel->packing.unit;
    int most = p->kernel->scheduling.inner * (p->c.type == ET_F32 ? 1 : K_FACTOR_BF16) / unit * unit;
    return ceil_div(ceil_div(K, ceil_div(K, most)), unit) * unit;
}

/* Segment i's block from k on, its panels at `panels`; returns where these end. */
static float *set_block(struct product *p, int i, int k, int most, float *panels) {
    const struct kernel *kernel = p->kernel;
    struct segment *s = &p->s[i];
    s->k = k;
    s->kc = min_int(s->K - k, most);
    int as_floats = i == 1 && kernel->packing.is_int8;
    int unit = as_floats ? 1 : kernel->packing.unit;
    s->packed = ceil_div(s->kc, unit) * unit;
    s->bits = as_floats ? 32 : kernel->packing.bits;
    s->a_direct =
        i == 0 && s->kc && s->a.type == kernel->tile.direct && (uintptr_t)s->a.data % 4 == 0 &&
        (kernel->tile.k_run ? s->a_cs == 1 && s->a_rs % kernel->tile.k_run == 0 && s->kc == s->packed : p->N <= NR);
    s->b_direct = i == 0 && s->kc && kernel == &float_kernel && p->M <= 2 * MR && !p->transposed && s->kc <= KC &&
                  (floats_in_place(s) || (s->format == ET_BF16 && (uintptr_t)s->w % 2 == 0 && !p->s[1].K));
    ptrdiff_t width = panel_floats(s, s->packed);
    s->b_panels = panels;
    s->a_panels = p->alone ? panels : panels + width * ceil_div(p->nc, kernel->tile.columns) * kernel->tile.columns;
    return s->a_panels + width * ceil_div(p->mc, kernel->tile.rows) * kernel->tile.rows;
}

/* How many elements a pass packs. */
static int64_t to_pack(const struct product *p) {
    int64_t n = 0;
    for (const struct segment *s = p->s; s < p->s + SEGMENTS; s++)
        n += (int64_t)s->kc *
             ((p->pack_b && !s->b_direct ? p->nc : 0) + (s->a_direct ? p->mc % p->kernel->tile.rows : p->mc));
    return n;
}

/* Little is packed by the caller alone, for to wake the others takes as long. */
static void pack(struct product *p) {
    p->slices = to_pack(p) > PACK_ALONE ? SLICES : 1;
    et_parallel(p->ctx, pack_task, p, p->slices);
}

/* A block of columns and inner elements: all rows. */
static void product_block(struct product *p, int rows) {
    p->pack_b = !p->alone;
    for (p->m = 0; p->m < p->M; p->m += rows) {
        p->mc = min_int(p->M - p->m, rows);
        pack(p);
        if (p->alone)
            et_parallel(p->ctx, panel_task, p, ceil_div(p->nc, p->kernel->tile.columns));
        else
            et_parallel(p->ctx, compute_task, p,
                        ceil_div(p->mc, rows_a_task(p)) * ceil_div(p->nc, PANELS_A_TASK * p->kernel->tile.columns));
        p->pack_b = 0;
    }
}

/* Whether each panel of B is packed by the thread that multiplies it: where it is packed from rows of weights, A is
 * small, and there are panels enough for the threads. */
static int is_alone(const struct product *p, int inner) {
    int panels = ceil_div(p->N, p->kernel->tile.columns);
    int64_t a = (int64_t)ceil_div(p->M, p->kernel->tile.rows) * p->kernel->tile.rows *
                (inner * p->kernel->packing.bits / 32 + (p->s[1].K ? LOW_RANK : 0));
    return p->transposed && a <= ROWS_ALONE && panels >= PANELS_A_THREAD * et_threads(p->ctx);
}

/* How many rows and columns lie packed at a time. Rows that are quantized are best packed once: for all columns, if
 * these leave room for some rows. */
static void block_sides(const struct product *p, int inner, int *rows, int *columns) {
    const struct kernel *kernel = p->kernel;
    int longest = inner > kernel->scheduling.inner ? inner : kernel->scheduling.inner;
    int strip = rows_a_task(p);
    int unit = p->transposed ? kernel->tile.columns : 256;
    *rows = MC * kernel->scheduling.inner / longest / strip * strip;
    *columns = NC * kernel->scheduling.inner / longest / unit * unit;
    if (!kernel->packing.is_int8)
        return;
    int fit = ET_SHARED_FLOATS / (inner * kernel->packing.bits / 32 + (p->s[1].K ? LOW_RANK : 0));
    int some = min_int(ceil_div(p->M, strip), LEAST_STRIPS) * strip;
    *columns = min_int(ceil_div(p->N, unit) * unit, (fit - some) / unit * unit);
    int left = fit - ceil_div(min_int(*columns, p->N), kernel->tile.columns) * kernel->tile.columns;
    *rows = left / strip * strip;
}

static void product(struct product *p, const struct kernel *kernel) {
    p->kernel = kernel;
    int inner = inner_block(p);
    int rows = p->M;
    int columns = p->N;
    p->alone = is_alone(p, inner);
    if (!p->alone)
        block_sides(p, inner, &rows, &columns);
    int blocks = ceil_div(p->s[0].K, inner);
    int low = ceil_div(p->s[1].K, LOW_RANK);
    for (p->n = 0; p->n < p->N; p->n += columns) {
        p->nc = min_int(p->N - p->n, columns);
        for (int i = 0; i < blocks || i < blocks - 1 + low; i++) {
            p->mc = min_int(p->M, rows);
            p->first = i == 0;
            float *panels = set_block(p, 0, min_int(i * inner, p->s[0].K), inner, et_shared(p->ctx));
            set_block(p, 1, i < blocks - 1 ? p->s[1].K : (i - blocks + 1) * LOW_RANK, LOW_RANK, panels);
            product_block(p, rows);
        }
    }
}

static void matmul_forward(et_context *ctx, et_array out, et_array inp, const void *w, int format, const float *x,
                           const float *y, float scale, int accumulate, int T, int N, int K, int R) {
    struct product p = {.ctx = ctx,
                        .c = out,
                        .c_rs = N,
                        .c_cs = 1,
                        .transposed = 1,
                        .M = T,
                        .N = N,
                        .alpha = scale,
                        .accumulate = accumulate};
    p.s[0] = (struct segment){.a = inp, .a_rs = K, .a_cs = 1, .w = w, .ldw = K, .format = format, .K = K};
    p.s[1] = (struct segment){.a = {(void *)x, ET_F32}, .a_rs = R, .a_cs = 1, .w = y, .ldw = R, .K = R};
    product(&p, product_kernel(et_precision(ctx), FORWARD, format, K));
}

static void backward_product(et_context *ctx, const struct kernel *kernel, et_array dinp, et_array dout, const void *w,
                             int format, const float *x, const float *y, float scale, int accumulate, int T, int N,
                             int K, int R) {
    struct product p = {.ctx = ctx,
                        .c = dinp,
                        .c_rs = K,
                        .c_cs = 1,
                        .transposed = 0,
                        .M = T,
                        .N = K,
                        .alpha = scale,
                        .accumulate = accumulate};
    p.s[0] = (struct segment){.a = dout, .a_rs = N, .a_cs = 1, .w = w, .ldw = K, .format = format, .K = N};
    p.s[1] = (struct segment){.a = {(void *)x, ET_F32}, .a_rs = R, .a_cs = 1, .w = y, .ldw = K, .K = R};
    product(&p, kernel);
}

static void matmul_backward(et_context *ctx, et_array dinp, et_array dout, const void *w, int format, const float *x,
                            const float *y, float scale, int accumulate, int T, int N, int K, int R) {
    backward_product(ctx, product_kernel(et_precision(ctx), BACKWARD, format, N), dinp, dout, w, format, x, y, scale,
                     accumulate, T, N, K, R);
}

/* The wider of dout and inp plays the weight: dw, or dw transposed. Where the other is as narrow as LoRA's, that is
 * read but once or twice, and floats where it lies beat bf16 that is packed first. */
static void matmul_dweight(et_context *ctx, float *dw, et_array dout, et_array inp, float scale, int T, int N, int K) {
    int swap = N > K;
    int M = swap ? K : N;
    int columns = swap ? N : K;
    et_array narrow = swap ? inp : dout;
    et_array wide = swap ? dout : inp;
    struct product p = {.ctx = ctx,
                        .c = {dw, ET_F32},
                        .c_rs = swap ? 1 : K,
                        .c_cs = swap ? K : 1,
                        .M = M,
                        .N = columns,
                        .alpha = scale,
                        .accumulate = 1};
    p.s[0] = (struct segment){
        .a = narrow, .a_rs = 1, .a_cs = M, .w = wide.data, .ldw = columns, .format = wide.type, .K = T};
    product(&p, M <= 2 * MR ? &float_kernel : product_kernel(et_precision(ctx), BACKWARD, ET_F32, T));
}
