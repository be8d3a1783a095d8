/* Products in float: packing, under the driver of matmul.h. The tile is gemm.h's. */

#define UNPACK_ROWS 16 /* of the weight, before they are transposed together */
#define PACK_A_TASK 8  /* rows of the weight, when packing it as it lies */

_Static_assert(UNPACK_ROWS * KC * K_FACTOR_BF16 <= ET_THREAD_FLOATS && 2 * NC <= ET_THREAD_FLOATS,
               "unpacked rows must fit");

/* Panel `task` of B from NR rows of w, UNPACK_ROWS at a time. */
static void pack_b_transposed(const struct product *p, const struct segment *s, float *tmp, int task) {
    int n = task * NR;
    int columns = min_int(p->nc - n, NR);
    int width = panel_vectors(columns) * VL;
    float *panel = b_panel(s, n);
    for (int j = 0; j < columns; j += UNPACK_ROWS) {
        int rows = min_int(columns - j, UNPACK_ROWS);
        const float *src = tmp;
        ptrdiff_t ld = s->kc;
        for (int r = 0; r < rows; r++)
            src = weights(s, tmp + r * ld, p->n + n + j + r, s->k, s->kc);
        if (src != tmp + (rows - 1) * ld) { /* floats, read in place */
            ld = s->ldw;
            src -= (rows - 1) * ld;
        } else
            src = tmp;
        pack_transposed(panel + j, width, src, ld, rows, s->kc);
    }
    pack_zeros(panel, width, columns, s->kc);
}

/* PACK_A_TASK rows k of all panels of B, which are not cut where quantized blocks are, from as many rows of w. */
static void pack_b_straight(const struct product *p, const struct segment *s, float *tmp, int task) {
    int begin = piece_inner(p, s, task);
    int k_end = min_int(begin + PACK_A_TASK, s->kc);
    for (int k = begin; k < k_end; k++) {
        const float *row = weights(s, tmp, s->k + k, p->n, p->nc);
        for (int n = 0; n < p->nc; n += NR) {
            int columns = min_int(p->nc - n, NR);
            int width = panel_vectors(columns) * VL;
            pack_panel(b_panel(s, n) + (ptrdiff_t)k * width, width, row + n, 1, 0, columns, 1);
        }
    }
}

/* The floats of rows m .. m + rows - 1 of A: where they lie, or in `tmp` [rows, kc] or [kc, rows]. */
static struct side a_floats(const struct product *p, const struct segment *s, float *tmp, int m, int rows) {
    et_array a = a_rows(p, s, m);
    if (a.type == ET_F32)
        return (struct side){a.data, s->a_rs, s->a_cs, 0};
    int along = s->a_cs == 1;
    int runs = along ? rows : s->kc;
    int length = along ? s->kc : rows;
    for (int i = 0; i < runs; i++)
        array_floats(array_at(a, i * (along ? s->a_rs : s->a_cs)), tmp + (ptrdiff_t)i * length, length);
    return along ? (struct side){tmp, length, 1, 0} : (struct side){tmp, 1, length, 0};
}

static void pack_a_floats(const struct product *p, const struct segment *s, float *panel, float *tmp, int m, int rows) {
    struct side a = a_floats(p, s, tmp, m, rows);
    pack_panel(panel, MR, a.p, a.rs, a.ks, rows, s->kc);
}

static const struct kernel float_kernel = {
    .tile = {.rows = MR, .columns = NR, .direct = ET_F32, .compute = tile_any},
    .packing =
        {.unit = 1, .bits = 32, .a = pack_a_floats, .b_transposed = pack_b_transposed, .b_straight = pack_b_straight},
    .scheduling = {.inner = KC, .tiles_per_task = 32 / MR, .pack_inner = PACK_A_TASK, .pack_columns = NC},
};
