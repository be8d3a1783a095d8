/* Attention whose products are in bf16: q, k, v, dout, the probabilities and their gradients are rounded to nearest.
 *
 * Rows, heads and blocks are padded to whole strips (attention_strips.h) with zeros. Scores are [queries, keys], of which
 * no strip above the diagonal is computed. Heads that share keys share a task, so that the keys are packed once for all.
 * Forward is here, backward in attention_pairs.h. */

/* ---- a task's blocks --------------------------------------------------------------------------------------- */

/* A thread's scratch: what every block needs, and `rest` for its own. */
struct work {
    int ld;           /* C in whole strips */
    float *strips;    /* two strips' s and dp, one strip's `rounded` */
    int block;        /* tokens of a block */
    bf16 *rows;       /* [block, ld], on their way to being packed */
    float *packed[3]; /* B: k across, v down or across, k down */
    float *rest;
};

enum { STRIP_FLOATS = STRIP * BK, STRIPS = HEADS * BQ / STRIP };
#define PACKED_FLOATS(n, ld) ((n) * (ld) / 2)
#define WORK_FLOATS(n, ld) (5 * STRIP_FLOATS + 4 * PACKED_FLOATS(n, ld))
#define HEAD_FLOATS(n, ld) (PACKED_FLOATS(n, ld) + (n) * ((ld) + VL + 1))
#define FLOATS_OF(part, n, ld) (WORK_FLOATS(n, ld) + part##_FLOATS(n, ld))
_Static_assert(FLOATS_OF(HEAD, BQ, ET_NARROW_HEAD) <= ET_THREAD_FLOATS, "a block of queries fits");
_Static_assert(FLOATS_OF(HEAD, BQ / 2, ET_MAX_HEAD) <= ET_THREAD_FLOATS, "a block of wide heads fits");

static struct work new_work(const struct attention *a, int thread) {
    float *p = et_scratch(a->ctx, thread);
    float *packed = p + 5 * STRIP_FLOATS;
    struct work w = {.ld = whole_strips(a->C), .block = a->block, .strips = p, .rows = (bf16 *)packed};
    for (int i = 0; i < 3; i++)
        w.packed[i] = packed + (i + 1) * PACKED_FLOATS(w.block, w.ld);
    w.rest = p + WORK_FLOATS(w.block, w.ld);
    return w;
}

/* Strip i of those that pass by between two packings. */
static struct strip new_strip(const struct attention *a, const struct work *w, int i) {
    float *s = w->strips + i % 2 * 2 * STRIP_FLOATS;
    return (struct strip){.s = s,
                          .dp = s + STRIP_FLOATS,
                          .rounded = (bf16 *)(w->strips + 4 * STRIP_FLOATS),
                          .ld = w->ld,
                          .exponent = a->scale * LOG2_E,
                          .span = a->window > 0 ? (uint32_t)(a->window + a->ahead) : INT32_MAX};
}

static void product_of_rows(const struct work *w, const struct strip *t, float *out, const bf16 *rows,
                            const float *packed) {
    strip_product(out, BK, rows, t->ld, packed, w->block, STRIP, t->nv * VL, t->ld, 0);
}

static void product_of_scores(const struct strip *t, const float *packed, int rows, int accumulate) {
    strip_product(t->out, t->ld, t->rounded, BK, packed, t->ld, rows, t->ld, t->nv * VL, accumulate);
}

/* n tokens of x packed the ways that are wanted, by way of w->rows unless they are bf16 and whole strips already. */
static void pack_tokens(const struct work *w, const struct attention *a, et_array x, ptrdiff_t at, ptrdiff_t stride,
                        int n, float *across, float *down) {
    struct tokens rows = {(const bf16 *)x.data + at, stride};
    if (x.type != ET_BF16 || a->C != w->ld || n % STRIP) {
        round_rows(w->rows, NULL, w->ld, x, at, stride, n, a->C);
        rows = (struct tokens){w->rows, w->ld};
    }
    if (across)
        pack_across(across, rows, whole_strips(n), w->ld, w->block);
    if (down)
        pack_down(down, rows, whole_strips(n), w->ld);
}

/* ---- blocks of queries: out -------------------------------------------------------------------------------- */

/* Heads h .. h + heads - 1, which share keys g, and queries q .. q + nq - 1. */
struct queries {
    int g, h, heads, q, nq;
};

/* What is kept of one of them while blocks of keys pass by. */
struct head {
    bf16 *q;                  /* [block, ld] */
    float *out, *sums, *base; /* [block, ld], [block, VL], [block] */
};

static struct head head_at(const struct work *w, int i) {
    float *p = w->rest + (ptrdiff_t)i * HEAD_FLOATS(w->block, w->ld);
    float *out = p + PACKED_FLOATS(w->block, w->ld);
    float *sums = out + w->block * w->ld;
    return (struct head){(bf16 *)p, out, sums, sums + w->block * VL};
}

/* Into how many tasks a group's heads are cut. */
static int parts_of_group(const struct attention *a) {
    int ld = whole_strips(a->C);
    int fit = (ET_THREAD_FLOATS - WORK_FLOATS(a->block, ld)) / HEAD_FLOATS(a->block, ld);
    return ceil_div(a->H / a->G, min_int(HEADS, fit));
}

static void forward_begin(const struct attention *a, const struct work *w, struct queries b) {
    for (int i = 0; i < b.heads; i++) {
        struct head head = head_at(w, i);
        round_rows(head.q, NULL, w->ld, a->q, q_at(a, b.h + i, b.q), q_stride(a), b.nq, a->C);
        memset(head.sums, 0, sizeof(float) * (size_t)a->block * VL);
        for (int j = 0; j < a->block; j++)
            head.base[j] = NO_BASE;
    }
}

static void forward_end(const struct attention *a, const struct work *w, struct queries b) {
    for (int i = 0; i < b.heads; i++) {
        struct head head = head_at(w, i);
        float sum[BQ], *lse = a->lse + row_at(a, b.h + i, b.q);
        for (int j = 0; j < b.nq; j++) {
            sum[j] = lanes_sum(vload(head.sums + j * VL));
            store_scaled(a->out, q_at(a, b.h + i, b.q + j), head.out + j * w->ld, 1.0f / sum[j], a->C);
        }
        for (int j = 0; j < b.nq; j++)
            lse[j] = head.base[j] * LN_2 + logf(sum[j]);
    }
}

/* Sets what of a strip of the queries q .. q + nq - 1 follows from where it and the keys k .. k + nk - 1 are; whether it
 * sees any, which are computed in whole strips. */
static int place_strip(struct strip *t, const struct attention *a, int q, int nq, int k, int nk) {
    t->nv = min_int(whole_strips(nk), whole_strips(q + STRIP - k + a->ahead)) / VL;
    t->rows = min_int(STRIP, nq);
    t->keys = nk;
    t->distance = a->position[q] - a->position[k] + a->ahead;
    return t->nv > 0;
}

/* The strips of b's queries that see some of the keys k .. k + nk - 1. */
static int query_strips(const struct attention *a, const struct work *w, struct queries b, int k, int nk,
                        struct strip *strips) {
    int n = 0;
    for (int i = 0; i < b.heads; i++) {
        struct head head = head_at(w, i);
        for (int j = 0; j < b.nq; j += STRIP) {
            struct strip t = new_strip(a, w, n);
            t.a[0] = head.q + j * w->ld;
            t.base = head.base + j;
            t.sums = head.sums + j * VL;
            t.out = head.out + j * w->ld;
            if (place_strip(&t, a, b.q + j, b.nq - j, k, nk))
                strips[n++] = t;
        }
    }
    return n;
}

/* A strip's scores are multiplied while those of the one before become probabilities, which other units do. */
static void forward_strips(const struct work *w, const struct strip *t, int n, int accumulate) {
    for (int i = 0; i <= n; i++) {
        if (i < n)
            product_of_rows(w, t + i, t[i].s, t[i].a[0], w->packed[0]);
        if (i == 0)
            continue;
        softmax_strip(t + i - 1);
        product_of_scores(t + i - 1, w->packed[1], STRIP, accumulate);
    }
}

static void forward_block(const struct attention *a, const struct work *w, struct queries b) {
    struct strip strips[STRIPS];
    forward_begin(a, w, b);
    int last = end_of_keys(a, b.q, b.nq);
    for (int accumulate = 0, k = 0, nk; (nk = next_keys(a, &k, b.q, last)) > 0; k += nk, accumulate = 1) {
        pack_tokens(w, a, a->k, k_at(a, b.g, k), k_stride(a), nk, w->packed[0], NULL);
        pack_tokens(w, a, a->v, k_at(a, b.g, k), k_stride(a), nk, NULL, w->packed[1]);
        forward_strips(w, strips, query_strips(a, w, b, k, nk, strips), accumulate);
    }
    forward_end(a, w, b);
}

static void forward_task(void *arg, int task, int thread) {
    const struct attention *a = arg;
    int group = a->H / a->G;
    int parts = parts_of_group(a);
    int heads = ceil_div(group, parts);
    int part = task % parts;
    int begin = query_begin(a, task / (a->G * parts));
    struct work w = new_work(a, thread);
    struct queries b = {.g = task / parts % a->G, .heads = min_int(heads, group - part * heads)};
    b.h = b.g * group + part * heads;
    uint8_t before[TILE_STATE];
    bf16_begin(before);
    for (b.q = next_block(a, begin); b.q < min_int(begin + a->block, a->T); b.q += b.nq) {
        b.nq = block_tokens(a, b.q);
        forward_block(a, &w, b);
    }
    bf16_end(before);
}

static void attention_forward_bf16(struct attention *a) {
    et_parallel(a->ctx, forward_task, a, query_blocks(a) * a->G * parts_of_group(a));
}
