/* Attention whose products are in bf16: q, k, v, dout, the probabilities and their gradients are rounded to nearest.
 *
 * Rows, heads and blocks are padded to whole strips (attention_strips.h) with zeros. Tokens are lanes of a row or rows
 * themselves, whichever lets A be read as it is computed: for out and dq the scores are [queries, keys], for dk and dv
 * [keys, queries]. Above the diagonal no strip is computed. Heads that share keys share a task, so that the keys are
 * packed once for all. */

/* ---- a task's blocks --------------------------------------------------------------------------------------- */

/* A thread's scratch: what every block needs, and `rest` for its own. */
struct work {
    int ld;           /* C in whole strips */
    float *strips;    /* two strips' s and dp, one strip's p and ds */
    int block;        /* tokens of a block */
    bf16 *rows;       /* [block, ld], on their way to being packed */
    float *packed[4]; /* B */
    float *rest;
};

enum { STRIP_FLOATS = STRIP * BK, STRIPS = HEADS * BQ / STRIP };
#define PACKED_FLOATS(n, ld) ((n) * (ld) / 2)
#define WORK_FLOATS(n, ld) (5 * STRIP_FLOATS + 5 * PACKED_FLOATS(n, ld))
#define HEAD_FLOATS(n, ld) (2 * PACKED_FLOATS(n, ld) + (n) * ((ld) + VL + 2))
#define KEY_FLOATS(n, ld) (2 * PACKED_FLOATS(n, ld) + 2 * (n) * (ld) + 2 * (n))
#define FLOATS_OF(part, n, ld) (WORK_FLOATS(n, ld) + part##_FLOATS(n, ld))
_Static_assert(FLOATS_OF(HEAD, BQ, ET_NARROW_HEAD) <= ET_THREAD_FLOATS, "a block of queries fits");
_Static_assert(FLOATS_OF(KEY, BQ, ET_NARROW_HEAD) <= ET_THREAD_FLOATS, "a block of keys fits");
_Static_assert(FLOATS_OF(HEAD, BQ / 2, ET_MAX_HEAD) <= ET_THREAD_FLOATS, "a block of wide heads fits");
_Static_assert(FLOATS_OF(KEY, BQ / 2, ET_MAX_HEAD) <= ET_THREAD_FLOATS, "their keys fit");

static struct work new_work(const struct attention *a, int thread) {
    float *p = et_scratch(a->ctx, thread);
    float *packed = p + 5 * STRIP_FLOATS;
    struct work w = {.ld = whole_strips(a->C), .block = a->block, .strips = p, .rows = (bf16 *)packed};
    for (int i = 0; i < 4; i++)
        w.packed[i] = packed + (i + 1) * PACKED_FLOATS(w.block, w.ld);
    w.rest = p + WORK_FLOATS(w.block, w.ld);
    return w;
}

/* Strip i of those that pass by between two packings. */
static struct strip new_strip(const struct attention *a, const struct work *w, int i) {
    float *s = w->strips + i % 2 * 2 * STRIP_FLOATS;
    bf16 *p = (bf16 *)(w->strips + 4 * STRIP_FLOATS);
    return (struct strip){.s = s, .dp = s + STRIP_FLOATS, .p = p, .ds = p + STRIP_FLOATS, .ld = w->ld,
                          .exponent = a->scale * LOG2_E,
                          .span = a->window > 0 ? (uint32_t)(a->window + a->ahead) : INT32_MAX};
}

/* The two products of the two sides, and those of their result, which are added where `accumulate` is set. */
static void product_of_sides(const struct work *w, const struct strip *t, int side) {
    strip_product(side ? t->dp : t->s, BK, t->a[side], t->ld, w->packed[2 * side] + t->first, w->block, t->rows,
                  t->nv * VL, t->ld, 0);
}

static void product_of_scores(const struct work *w, const struct strip *t, int side, int accumulate) {
    strip_product(t->out[side], t->ld, side ? t->p : t->ds, BK, w->packed[1 + 2 * side] + t->first / 2 * t->ld, t->ld,
                  t->rows, t->ld, t->nv * VL, accumulate);
}

/* n tokens of x packed the ways that are wanted, by way of w->rows unless they are bf16 and whole strips already. */
static void pack_tokens(const struct work *w, const struct attention *a, et_array x, ptrdiff_t at, ptrdiff_t stride,
                        int n, float *across, float *down) {
    struct tokens rows = {(const bf16 *)x.data + at, stride};
    if (x.type != ET_BF16 || a->C != w->ld || n % STRIP) {
        round_rows(w->rows, w->ld, x, at, stride, n, a->C);
        rows = (struct tokens){w->rows, w->ld};
    }
    if (across)
        pack_across(across, rows, whole_strips(n), w->ld, w->block);
    if (down)
        pack_down(down, rows, whole_strips(n), w->ld);
}

/* base and delta [block] of queries q .. q + nq - 1 of head h; those behind them have probabilities of 0. */
static void load_base(const struct attention *a, float *base, float *delta, int h, int q, int nq) {
    ptrdiff_t at = row_at(a, h, q);
    for (int i = 0; i < a->block; i += VL) {
        vstore(base + i, splat(INFINITY));
        vstore(delta + i, splat(0.0f));
    }
    for (int i = 0; i < nq; i += VL) {
        vstore_part(base + i, vload_part(a->lse + at + i, nq - i) * LOG2_E, nq - i);
        vstore_part(delta + i, vload_part(a->delta + at + i, nq - i), nq - i);
    }
}

/* ---- blocks of queries: out and dq ------------------------------------------------------------------------- */

/* Heads h .. h + heads - 1, which share keys g, and queries q .. q + nq - 1. */
struct queries {
    int g, h, heads, q, nq;
};

/* What is kept of one of them while blocks of keys pass by. */
struct head {
    bf16 *q, *dout;                    /* [block, ld] */
    float *out, *sums, *base, *delta;  /* [block, ld], [block, VL], [block], [block] */
};

static struct head head_at(const struct work *w, int i) {
    float *p = w->rest + (ptrdiff_t)i * HEAD_FLOATS(w->block, w->ld);
    int n = PACKED_FLOATS(w->block, w->ld);
    float *out = p + 2 * n;
    float *sums = out + w->block * w->ld;
    float *base = sums + w->block * VL;
    return (struct head){(bf16 *)p, (bf16 *)(p + n), out, sums, base, base + w->block};
}

/* Into how many tasks a group's heads are cut. */
static int parts_of_group(const struct attention *a) {
    int ld = whole_strips(a->C);
    int fit = (ET_THREAD_FLOATS - WORK_FLOATS(a->block, ld)) / HEAD_FLOATS(a->block, ld);
    return ceil_div(a->H / a->G, min_int(HEADS, fit));
}

static int query_tasks(const struct attention *a) { return query_blocks(a) * a->G * parts_of_group(a); }

static void each_query_block(const struct attention *a, int task, int thread,
                             void (*block)(const struct attention *a, const struct work *w, struct queries b)) {
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
        block(a, &w, b);
    }
    bf16_end(before);
}

static void forward_begin(const struct attention *a, const struct work *w, struct queries b) {
    for (int i = 0; i < b.heads; i++) {
        struct head head = head_at(w, i);
        round_rows(head.q, w->ld, a->q, q_at(a, b.h + i, b.q), q_stride(a), b.nq, a->C);
        memset(head.sums, 0, sizeof(float) * (size_t)a->block * VL);
        for (int j = 0; j < a->block; j++)
            head.base[j] = -INFINITY;
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

/* How many keys from k on the STRIP queries from q on may see, in whole strips. */
static inline int keys_seen(const struct attention *a, int k, int nk, int q) {
    return min_int(whole_strips(nk), whole_strips(q + STRIP - k + a->ahead));
}

/* The strips of b's queries that see some of the keys k .. k + nk - 1. */
static int query_strips(const struct attention *a, const struct work *w, struct queries b, int k, int nk,
                        struct strip *strips) {
    int n = 0;
    for (int i = 0; i < b.heads; i++)
        for (int j = 0; j < b.nq; j += STRIP) {
            int keys = keys_seen(a, k, nk, b.q + j);
            int at = j * w->ld;
            if (keys <= 0)
                continue;
            struct head head = head_at(w, i);
            struct strip t = new_strip(a, w, n);
            t.a[0] = head.q + at;
            t.a[1] = head.dout + at;
            t.base = head.base + j;
            t.delta = head.delta + j;
            t.sums = head.sums + j * VL;
            t.out[0] = t.out[1] = head.out + at;
            t.rows = min_int(STRIP, b.nq - j);
            t.nv = keys / VL;
            t.keys = nk;
            t.distance = a->position[b.q + j] - a->position[k] + a->ahead;
            strips[n++] = t;
        }
    return n;
}

/* A strip's scores are multiplied while those of the one before become probabilities, which other units do. */
static void forward_strips(const struct work *w, const struct strip *t, int n, int accumulate) {
    for (int i = 0; i <= n; i++) {
        if (i < n)
            product_of_sides(w, t + i, 0);
        if (i == 0)
            continue;
        softmax_strip(t + i - 1);
        product_of_scores(w, t + i - 1, 1, accumulate);
    }
}

static void forward_block(const struct attention *a, const struct work *w, struct queries b) {
    struct strip strips[STRIPS];
    forward_begin(a, w, b);
    int last = end_of_keys(a, b.q, b.nq);
    for (int accumulate = 0, k = 0, nk; (nk = next_keys(a, &k, b.q, last)) > 0; k += nk, accumulate = 1) {
        pack_tokens(w, a, a->k, k_at(a, b.g, k), k_stride(a), nk, w->packed[0], NULL);
        pack_tokens(w, a, a->v, k_at(a, b.g, k), k_stride(a), nk, NULL, w->packed[3]);
        forward_strips(w, strips, query_strips(a, w, b, k, nk, strips), accumulate);
    }
    forward_end(a, w, b);
}

static void forward_task(void *a, int task, int thread) { each_query_block(a, task, thread, forward_block); }

static void dq_begin(const struct attention *a, const struct work *w, struct queries b) {
    for (int i = 0; i < b.heads; i++) {
        struct head head = head_at(w, i);
        round_rows(head.q, w->ld, a->q, q_at(a, b.h + i, b.q), q_stride(a), b.nq, a->C);
        round_rows(head.dout, w->ld, a->dout, q_at(a, b.h + i, b.q), q_stride(a), b.nq, a->C);
        attention_delta(a, (et_array){head.dout, ET_BF16}, 0, w->ld, b.h + i, b.q, b.nq); /* of what is multiplied */
        load_base(a, head.base, head.delta, b.h + i, b.q, b.nq);
    }
}

static void dq_strips(const struct work *w, const struct strip *t, int n, int accumulate) {
    for (int i = 0; i <= n; i++) {
        if (i < n) {
            product_of_sides(w, t + i, 0);
            product_of_sides(w, t + i, 1);
        }
        if (i == 0)
            continue;
        gradient_of_queries(t + i - 1);
        product_of_scores(w, t + i - 1, 0, accumulate);
    }
}

static void dq_block(const struct attention *a, const struct work *w, struct queries b) {
    struct strip strips[STRIPS];
    dq_begin(a, w, b);
    int last = end_of_keys(a, b.q, b.nq);
    for (int accumulate = 0, k = 0, nk; (nk = next_keys(a, &k, b.q, last)) > 0; k += nk, accumulate = 1) {
        pack_tokens(w, a, a->k, k_at(a, b.g, k), k_stride(a), nk, w->packed[0], w->packed[1]);
        pack_tokens(w, a, a->v, k_at(a, b.g, k), k_stride(a), nk, w->packed[2], NULL);
        dq_strips(w, strips, query_strips(a, w, b, k, nk, strips), accumulate);
    }
    for (int i = 0; i < b.heads; i++)
        for (int j = 0; j < b.nq; j++)
            store_scaled(a->dq, q_at(a, b.h + i, b.q + j), head_at(w, i).out + j * w->ld, a->scale, a->C);
}

static void dq_task(void *a, int task, int thread) { each_query_block(a, task, thread, dq_block); }

/* ---- blocks of keys: dk and dv ----------------------------------------------------------------------------- */

/* Keys k .. k + nk - 1 of head g, and what is summed for them while blocks of queries pass by. */
struct keys {
    int g, k, nk;
    bf16 *k_rows, *v_rows;          /* [block, ld] */
    float *dk, *dv, *base, *delta;  /* [block, ld], [block, ld]; of the queries: [block], [block] */
};

/* The strips of b's keys that some of the queries q .. q + nq - 1 see. */
static int key_strips(const struct attention *a, const struct work *w, const struct keys *b, int q, int nq,
                      struct strip *strips) {
    int n = 0;
    for (int j = 0; j < b->nk; j += STRIP) {
        int first = max_int(b->k + j - q - a->ahead, 0) / STRIP * STRIP;
        int queries = whole_strips(nq) - first;
        int at = j * w->ld;
        if (queries <= 0)
            continue;
        struct strip t = new_strip(a, w, n);
        t.a[0] = b->k_rows + at;
        t.a[1] = b->v_rows + at;
        t.base = b->base + first;
        t.delta = b->delta + first;
        t.out[0] = b->dk + at;
        t.out[1] = b->dv + at;
        t.rows = min_int(STRIP, b->nk - j);
        t.nv = queries / VL;
        t.first = first;
        t.keys = t.rows;
        t.distance = a->position[q] + first - (a->position[b->k] + j) + a->ahead;
        strips[n++] = t;
    }
    return n;
}

static void dkv_strips(const struct work *w, const struct strip *t, int n, int accumulate) {
    for (int i = 0; i <= n; i++) {
        if (i < n) {
            product_of_sides(w, t + i, 0);
            product_of_sides(w, t + i, 1);
        }
        if (i == 0)
            continue;
        gradient_of_keys(t + i - 1);
        product_of_scores(w, t + i - 1, 0, accumulate);
        product_of_scores(w, t + i - 1, 1, accumulate);
    }
}

/* Blocks of queries are cut as blocks of keys are, so the first is the keys' own, where these are queries too. Where
 * keys are seen from before, all of them need not be by the first: sums begin at 0. */
static void dkv_block(const struct attention *a, const struct work *w, const struct keys *b) {
    int accumulate = a->ahead > 0;
    int group = a->H / a->G;
    struct strip strips[STRIPS];
    if (accumulate)
        memset(b->dk, 0, 2 * sizeof(float) * (size_t)a->block * (size_t)w->ld);
    round_rows(b->k_rows, w->ld, a->k, k_at(a, b->g, b->k), k_stride(a), b->nk, a->C);
    round_rows(b->v_rows, w->ld, a->v, k_at(a, b->g, b->k), k_stride(a), b->nk, a->C);
    for (int h = b->g * group; h < (b->g + 1) * group; h++)
        for (int q = first_query(a, b->k), nq; q < a->end[b->k]; q += nq) {
            nq = block_tokens(a, q);
            if (out_of_sight(a, q, nq, b->k, b->nk))
                continue;
            pack_tokens(w, a, a->q, q_at(a, h, q), q_stride(a), nq, w->packed[0], w->packed[1]);
            pack_tokens(w, a, a->dout, q_at(a, h, q), q_stride(a), nq, w->packed[2], w->packed[3]);
            load_base(a, b->base, b->delta, h, q, nq);
            dkv_strips(w, strips, key_strips(a, w, b, q, nq, strips), accumulate);
            accumulate = 1;
        }
    if (!accumulate) /* keys before the queries, that none of them sees */
        memset(b->dk, 0, 2 * sizeof(float) * (size_t)a->block * (size_t)w->ld);
    for (int i = 0; i < b->nk; i++) {
        store_scaled(a->dk, k_at(a, b->g, b->k + i), b->dk + i * w->ld, a->scale, a->C);
        store_scaled(a->dv, k_at(a, b->g, b->k + i), b->dv + i * w->ld, 1.0f, a->C);
    }
}

static void dkv_task(void *arg, int task, int thread) {
    const struct attention *a = arg;
    struct work w = new_work(a, thread);
    int begin = task / a->G * a->block;
    int n = PACKED_FLOATS(w.block, w.ld);
    float *sums = w.rest + 2 * n;
    float *base = sums + 2 * w.block * w.ld;
    struct keys b = {.g = task % a->G, .k_rows = (bf16 *)w.rest, .v_rows = (bf16 *)(w.rest + n), .dk = sums,
                     .dv = sums + w.block * w.ld, .base = base, .delta = base + w.block};
    uint8_t before[TILE_STATE];
    bf16_begin(before);
    for (b.k = next_block(a, begin); b.k < min_int(begin + a->block, a->T); b.k += b.nk) {
        b.nk = block_tokens(a, b.k);
        dkv_block(a, &w, &b);
    }
    bf16_end(before);
}

static void attention_forward_bf16(struct attention *a) { et_parallel(a->ctx, forward_task, a, query_tasks(a)); }

static void attention_backward_bf16(struct attention *a) {
    et_parallel(a->ctx, dq_task, a, query_tasks(a));
    et_parallel(a->ctx, dkv_task, a, ceil_div(a->T, a->block) * a->G);
}
