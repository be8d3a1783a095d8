/* A product on its way: what the driver (matmul.h) and the packings share. */

#define TILE_STATE 64
#define LEAST_STRIPS 5           /* tasks' strips of rows that are worth a pass */
#define LOW_RANK 32              /* inner elements of the second product in a block */
#define K_FACTOR_BF16 (NC / 256) /* times the usual inner size of a block may have, where C is bf16 */

struct product;
struct segment;
struct tile;

/* What the tile computes at a time, and how it wants A. */
struct tile_shape {
    int rows, columns;
    int k_run;  /* inner elements of a row of A that lie side by side, 0: one */
    int direct; /* the type of activations that it reads where they are stored, or -1 */
    void (*compute)(struct tile *t);
    void (*begin)(void *before); /* around a thread's use, or NULL: `before` keeps TILE_STATE bytes of the thread's */
    void (*end)(const void *before);
};

/* How numbers are packed: in units of inner elements, zeros behind the last. */
struct packing {
    int unit;    /* a power of two */
    int bits;    /* that an inner element takes in a panel; those of a unit are whole floats */
    int is_int8; /* LoRA's part is packed as floats; and to pack A costs something, so it is done once if it can be */
    /* These write rows m .. m + rows - 1 of A into `panel`; panel `task` of B; and a piece of B, of pack_inner inner
     * elements of pack_columns columns. */
    void (*a)(const struct product *p, const struct segment *s, float *panel, float *tmp, int m, int rows);
    void (*b_transposed)(const struct product *p, const struct segment *s, float *tmp, int task);
    void (*b_straight)(const struct product *p, const struct segment *s, float *tmp, int task);
};

/* How the work is cut: blocks along the inner dimension, tasks that compute, and pieces of a weight that is packed as
 * it is stored. Pieces are all inner elements of some columns, then those of the next: a thread's share of the tiles is
 * columns too, so it mostly reads what it packed. */
struct scheduling {
    int inner;          /* inner elements of a block, as a rule */
    int k_part;         /* that a tile computes at once, a multiple of unit, so that a part of a panel of B stays in the
                         * nearest cache for a block of rows; 0: all */
    int tiles_per_task; /* along the rows */
    int pack_inner;     /* inner elements of a piece, a multiple of unit, */
    int pack_columns;   /* and its columns */
};

/* What is multiplied with weights: activations, a gradient, or the probabilities that the head makes. */
enum direction { FORWARD, BACKWARD, OF_HEAD };

/* Numbers to multiply in. */
struct kernel {
    struct tile_shape tile;
    struct packing packing;
    struct scheduling scheduling;
};

/* A [M, K] and B [K, N] of one of the products that are summed, and the block of them at hand. */
struct segment {
    et_array a;
    ptrdiff_t a_rs, a_cs;
    const void *w;
    int64_t ldw; /* weights a row of w */
    int format, K;
    int k, kc;  /* where the block begins, and its inner size: 0 when it has no part in this block; */
    int packed; /* kc in whole units, */
    int bits;   /* and what one takes */
    float *a_panels, *b_panels;
    int a_direct, b_direct; /* this side is read where it lies */
};

struct product {
    const struct kernel *kernel;
    et_context *ctx;
    et_array c;
    ptrdiff_t c_rs, c_cs;
    struct segment s[SEGMENTS]; /* the second, of low rank, may have K = 0 */
    int transposed;             /* 0: w is [K, N]; 1: w is [N, K] */
    int M, N;
    float alpha;
    int accumulate, first; /* first: of the blocks along the inner dimension */
    int m, n;              /* where the current block begins, */
    int mc, nc;            /* and its size */
    int alone;             /* whether each thread packs the panels of B that it multiplies, */
    int pack_b, slices;    /* whether this pass packs the weights, and in how many tasks */
};

static inline int floats_in_place(const struct segment *s) {
    return s->format == ET_F32 && (uintptr_t)s->w % sizeof(float) == 0;
}

/* `count` weights of row r of w from column i: in `tmp`, or where they lie if they are floats already. */
static const float *weights(const struct segment *s, float *tmp, int r, int i, int count) {
    int64_t first = r * s->ldw + i;
    if (floats_in_place(s))
        return (const float *)s->w + first;
    unpack(tmp, s->w, s->format, first, count);
    return tmp;
}

/* Bytes of n weights, which are whole blocks. */
static inline ptrdiff_t weight_bytes(const struct segment *s, int64_t n) {
    return n / format_block(s->format) * format_bytes(s->format);
}

/* Asks for memory that is wanted soon: weights come from far away. */
static inline void fetch(const uint8_t *w, ptrdiff_t size) {
    for (ptrdiff_t line = 0; line < size; line += 64)
        __builtin_prefetch(w + line, 0, 2);
}

/* Of n inner elements of a row or column, in a panel. */
static inline ptrdiff_t panel_floats(const struct segment *s, int n) { return (ptrdiff_t)n * s->bits / 32; }

/* Where piece `task` of B begins that is read as it lies, and how many there are. */
static inline int inner_pieces(const struct product *p, const struct segment *s) {
    return ceil_div(s->packed, p->kernel->scheduling.pack_inner);
}
static inline int piece_inner(const struct product *p, const struct segment *s, int task) {
    return task % inner_pieces(p, s) * p->kernel->scheduling.pack_inner;
}
static inline int piece_column(const struct product *p, const struct segment *s, int task) {
    return task / inner_pieces(p, s) * p->kernel->scheduling.pack_columns;
}
static inline int pieces(const struct product *p, const struct segment *s) {
    return inner_pieces(p, s) * ceil_div(p->nc, p->kernel->scheduling.pack_columns);
}

/* Panels lie one behind the other. */
static float *a_panel(const struct segment *s, int m) { return s->a_panels + m * panel_floats(s, s->packed); }
static float *b_panel(const struct segment *s, int n) { return s->b_panels + n * panel_floats(s, s->packed); }

/* Where row m of A begins, in the current block. */
static et_array a_rows(const struct product *p, const struct segment *s, int m) {
    return array_at(s->a, (p->m + m) * s->a_rs + s->k * s->a_cs);
}

/* Elements 0 .. n - 1 of an array: in `tmp`, or where they lie if they are floats already. */
static const float *array_floats(et_array a, float *tmp, int n) {
    if (a.type == ET_F32)
        return a.data;
    for (int i = 0; i < n; i += VL)
        vstore_part(tmp + i, load_part(a, i, n - i), n - i);
    return tmp;
}
