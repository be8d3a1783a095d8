/* A product on its way: what the driver (matmul.h) and the packings share. */

#define TILE_STATE 64

struct product;
struct tile;

/* Numbers to multiply in: how they are packed, and the tile that reads that. */
struct kernel {
    int rows, columns; /* of a tile */
    int inner;         /* inner elements of a block, at most; */
    int unit;          /* they are packed in such units, zeros behind the last; a power of two */
    int bytes;         /* an inner element takes in a panel */
    int pack_inner;    /* inner elements that a task packs of a weight read as it lies; a multiple of unit */
    /* These write where a_panel and b_panel say: rows m .. m + rows - 1 of A, panel `task` of B, and pack_inner inner
     * elements of all panels of B from task * pack_inner. */
    void (*pack_a)(const struct product *p, int m, int rows);
    void (*pack_b_transposed)(const struct product *p, float *tmp, int task);
    void (*pack_b_straight)(const struct product *p, float *tmp, int task);
    void (*tile)(const struct tile *t);
    /* Around a thread's use of tile, or NULL: `before` keeps TILE_STATE bytes of the thread's. */
    void (*begin)(void *before);
    void (*end)(const void *before);
};

struct product {
    const struct kernel *kernel;
    et_context *ctx;
    float *c;
    ptrdiff_t c_rs, c_cs;
    const float *a;
    ptrdiff_t a_rs, a_cs;
    const void *w;
    int64_t ldw;      /* weights a row of w */
    int format;
    int transposed;   /* 0: w is [K, N]; 1: w is [N, K] */
    int M, N, K;
    float alpha;
    int accumulate;
    int m, n, k;      /* where the current block begins, */
    int mc, nc, kc;   /* and its size; */
    int packed;       /* kc in whole units */
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

/* Panels of B lie one behind the other, those of A at fixed places. */
static float *a_panel(const struct product *p, int m) {
    return p->a_panels + (ptrdiff_t)m * p->kernel->inner * p->kernel->bytes / 4;
}

static float *b_panel(const struct product *p, int n) {
    return p->b_panels + (ptrdiff_t)n * p->packed * p->kernel->bytes / 4;
}

/* Where row m of A begins, in the current block. */
static const float *a_rows(const struct product *p, int m) { return p->a + (p->m + m) * p->a_rs + p->k * p->a_cs; }
