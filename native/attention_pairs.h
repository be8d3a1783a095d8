/* Backward of attention_bf16.h, which makes each score once: a pair of a block of queries and one of keys adds to dq of
 * the ones, and to dk and dv of the others. The blocks that begin in the same `block` tokens are a range. In a wave range
 * i of the keys meets range i + wave of the queries, so that the outputs of its tasks are disjoint; after as many waves
 * as there are ranges all have met.
 *
 * Sums are floats in the scratch that threads share, of a chunk of tokens at a time: they should stay in a core's cache.
 * Each pair of chunks is a pass. dq is rounded once, dk and dv once a chunk of queries, and part of a group's heads, that
 * sees them. */

enum { RANGES = 4 }; /* of a chunk */

/* Tokens begin .. end - 1, in whole blocks; the first block of each range is at starts[range], and behind the last the
 * chunk ends. */
struct chunk {
    int begin, end, ranges, starts[RANGES + 1];
};

/* One pass: heads h .. h + heads - 1 of each of the groups g .. g + groups - 1. */
struct pass {
    const struct attention *a;
    struct chunk q, k;
    int g, groups, h, heads, room; /* room: tokens that the sums have room for */
    int wave, waves;
    int begins, ends, writes; /* of q it is the first, the last; of k the first */
};

/* The blocks of a pair, and a thread's room for them. */
struct pair {
    struct work work;
    int g, h, q, nq, k, nk;
    bf16 *q_rows, *dout_rows; /* [block, ld] */
    float *packed[2];         /* q and dout, down */
    float *pairs[2];          /* [block / 2, BK] gradients of scores, probabilities */
    float *base, *delta;      /* [block] */
};

#define PAIR_FLOATS(n, ld) (4 * PACKED_FLOATS(n, ld) + (n) * BK + 2 * (n))
_Static_assert(FLOATS_OF(PAIR, BQ, ET_NARROW_HEAD) <= ET_THREAD_FLOATS, "a pair of blocks fits");
_Static_assert(FLOATS_OF(PAIR, BQ / 2, ET_MAX_HEAD) <= ET_THREAD_FLOATS, "a pair of blocks of wide heads fits");
_Static_assert(3 * BQ * ET_MAX_HEAD <= ET_SHARED_FLOATS, "sums of a block fit");

static struct pair new_pair(const struct attention *a, int thread) {
    struct pair b = {.work = new_work(a, thread)};
    int n = PACKED_FLOATS(a->block, b.work.ld);
    float *p = b.work.rest;
    b.q_rows = (bf16 *)p;
    b.dout_rows = (bf16 *)(p + n);
    b.packed[0] = p + 2 * n;
    b.packed[1] = p + 3 * n;
    b.pairs[0] = p + 4 * n;
    b.pairs[1] = b.pairs[0] + a->block / 2 * BK;
    b.base = b.pairs[1] + a->block / 2 * BK;
    b.delta = b.base + a->block;
    return b;
}

/* Sums [tokens, ld]: dq of head h, dk and dv of keys g, from token t on. */
static float *sums_at(const struct pass *p, int i, int t, int ld) {
    return et_shared(p->a->ctx) + ((ptrdiff_t)i * p->room + t) * ld;
}

static float *dq_at(const struct pass *p, const struct pair *b) {
    int i = (b->g - p->g) * p->heads + b->h % (p->a->H / p->a->G) - p->h;
    return sums_at(p, i, b->q - p->q.begin, b->work.ld);
}

static float *dk_at(const struct pass *p, const struct pair *b, int is_dv) {
    int i = p->groups * p->heads + 2 * (b->g - p->g) + is_dv;
    return sums_at(p, i, b->k - p->k.begin, b->work.ld);
}

/* base and delta [block] of queries q .. q + nq - 1 of head h; those behind them have probabilities of 0. */
static void load_base(const struct attention *a, const struct pair *b) {
    ptrdiff_t at = row_at(a, b->h, b->q);
    for (int i = 0; i < a->block; i += VL) {
        vstore(b->base + i, splat(INFINITY));
        vstore(b->delta + i, splat(0.0f));
    }
    for (int i = 0; i < b->nq; i += VL) {
        vstore_part(b->base + i, vload_part(a->lse + at + i, b->nq - i) * LOG2_E, b->nq - i);
        vstore_part(b->delta + i, vload_part(a->delta + at + i, b->nq - i), b->nq - i);
    }
}

/* Strip i of b's queries. */
static int pair_strip(const struct pass *p, const struct pair *b, int i, struct strip *t) {
    int at = i * STRIP;
    int ld = b->work.ld;
    *t = new_strip(p->a, &b->work, i);
    t->a[0] = b->q_rows + at * ld;
    t->a[1] = b->dout_rows + at * ld;
    t->pairs[0] = b->pairs[0] + at / 2 * BK;
    t->pairs[1] = b->pairs[1] + at / 2 * BK;
    t->base = b->base + at;
    t->delta = b->delta + at;
    t->out = dq_at(p, b) + at * ld;
    return place_strip(t, p->a, b->q + at, b->nq - at, b->k, b->nk);
}

/* dq += ds . k, a strip's scores being multiplied while those of the one before are worked on. */
static void pair_of_scores(const struct pass *p, const struct pair *b) {
    const struct work *w = &b->work;
    struct strip strips[2] = {0};
    int waits = 0;
    for (int i = 0; i <= ceil_div(b->nq, STRIP); i++) {
        struct strip *t = strips + i % 2, *before = strips + (i + 1) % 2;
        int sees = i * STRIP < b->nq && pair_strip(p, b, i, t);
        if (sees) {
            product_of_rows(w, t, t->s, t->a[0], w->packed[0]);
            product_of_rows(w, t, t->dp, t->a[1], w->packed[1]);
        }
        if (waits) {
            gradient_strip(before);
            product_of_scores(before, w->packed[2], before->rows, 1);
        }
        waits = sees;
    }
}

/* dk += ds^T . q and dv += p^T . dout; a strip of keys is seen from some strip of queries on. */
static void pair_of_keys(const struct pass *p, const struct pair *b) {
    int ld = b->work.ld;
    for (int i = 0; i < b->nk; i += STRIP) {
        int first = max_int(b->k + i - b->q - p->a->ahead, 0) / STRIP * STRIP;
        int inner = whole_strips(b->nq) - first;
        int rows = min_int(STRIP, b->nk - i);
        for (int is_dv = 0; is_dv < 2; is_dv++)
            strip_product_down(dk_at(p, b, is_dv) + i * ld, ld, b->pairs[is_dv] + first / 2 * BK + i, BK,
                               b->packed[is_dv] + first / 2 * ld, ld, rows, ld, inner);
    }
}

static void pair_of_blocks(const struct pass *p, struct pair *b) {
    const struct attention *a = p->a;
    int ld = b->work.ld;
    for (int i = 0; i < p->heads; i++) {
        b->h = b->g * (a->H / a->G) + p->h + i;
        ptrdiff_t at = q_at(a, b->h, b->q);
        round_rows(b->q_rows, b->packed[0], ld, a->q, at, q_stride(a), b->nq, a->C);
        round_rows(b->dout_rows, b->packed[1], ld, a->dout, at, q_stride(a), b->nq, a->C);
        load_base(a, b);
        pair_of_scores(p, b);
        pair_of_keys(p, b);
    }
}

/* The pairs of the keys of a block with the queries of a range. */
static void pairs_of_keys(const struct pass *p, struct pair *b, int range) {
    const struct attention *a = p->a;
    const struct work *w = &b->work;
    int packed = 0;
    for (b->q = p->q.starts[range]; b->q < p->q.starts[range + 1]; b->q += b->nq) {
        b->nq = block_tokens(a, b->q);
        if (b->q < first_query(a, b->k) || b->q >= a->end[b->k] || out_of_sight(a, b->q, b->nq, b->k, b->nk))
            continue;
        if (!packed) {
            pack_tokens(w, a, a->k, k_at(a, b->g, b->k), k_stride(a), b->nk, w->packed[0], w->packed[2]);
            pack_tokens(w, a, a->v, k_at(a, b->g, b->k), k_stride(a), b->nk, w->packed[1], NULL);
            packed = 1;
        }
        pair_of_blocks(p, b);
    }
}

/* delta as in attention.h, of what is multiplied. */
static void delta_of_rounded(const struct attention *a, int h, int q, int nq) {
    for (int t = q; t < q + nq; t++) {
        ptrdiff_t at = q_at(a, h, t);
        __m512 sum = _mm512_setzero_ps();
        for (int j = 0; j < a->C; j += STRIP)
            sum = _mm512_dpbf16_ps(sum, (__m512bh)rounded_run(a->dout, at + j, a->C - j),
                                   (__m512bh)rounded_run(a->out, at + j, a->C - j));
        a->delta[row_at(a, h, t)] = _mm512_reduce_add_ps(sum);
    }
}

/* Sums of 0 and delta for the queries of b, or dq of what they sum to. */
static void begin_queries(const struct pass *p, struct pair *b) {
    const struct attention *a = p->a;
    int ld = b->work.ld;
    for (int i = 0; i < p->heads; i++) {
        b->h = b->g * (a->H / a->G) + p->h + i;
        memset(dq_at(p, b), 0, sizeof(float) * (size_t)(b->nq * ld));
        delta_of_rounded(a, b->h, b->q, b->nq);
    }
}

static void end_queries(const struct pass *p, struct pair *b) {
    const struct attention *a = p->a;
    for (int i = 0; i < p->heads; i++) {
        b->h = b->g * (a->H / a->G) + p->h + i;
        for (int j = 0; j < b->nq; j++)
            store_scaled(a->dq, q_at(a, b->h, b->q + j), dq_at(p, b) + j * b->work.ld, a->scale, a->C);
    }
}

static void begin_keys(const struct pass *p, struct pair *b) {
    for (int is_dv = 0; is_dv < 2; is_dv++)
        memset(dk_at(p, b, is_dv), 0, sizeof(float) * (size_t)(b->nk * b->work.ld));
}

/* out [n], from element i on, += s * x */
static void add_scaled(et_array out, ptrdiff_t i, const float *x, float s, int n) {
    for (int j = 0; j < n; j += VL)
        store_part(out, i + j, load_part(out, i + j, n - j) + s * vload_part(x + j, n - j), n - j);
}

static void end_keys(const struct pass *p, struct pair *b) {
    const struct attention *a = p->a;
    for (int is_dv = 0; is_dv < 2; is_dv++)
        for (int j = 0; j < b->nk; j++)
            (p->writes ? store_scaled : add_scaled)(is_dv ? a->dv : a->dk, k_at(a, b->g, b->k + j),
                                                    dk_at(p, b, is_dv) + j * b->work.ld, is_dv ? 1.0f : a->scale, a->C);
}

static void each_query_block(const struct pass *p, struct pair *b, int range,
                             void (*block)(const struct pass *p, struct pair *b)) {
    for (b->q = p->q.starts[range]; b->q < p->q.starts[range + 1]; b->q += b->nq) {
        b->nq = block_tokens(p->a, b->q);
        if (b->q >= p->a->first)
            block(p, b);
    }
}

static void each_key_block(const struct pass *p, struct pair *b, int range, int queries) {
    for (b->k = p->k.starts[range]; b->k < p->k.starts[range + 1]; b->k += b->nk) {
        b->nk = block_tokens(p->a, b->k);
        if (p->wave == 0)
            begin_keys(p, b);
        if (queries < p->q.ranges)
            pairs_of_keys(p, b, queries);
        if (p->wave + 1 == p->waves)
            end_keys(p, b);
    }
}

static void pair_task(void *arg, int task, int thread) {
    const struct pass *p = arg;
    struct pair b = new_pair(p->a, thread);
    uint8_t before[TILE_STATE];
    int keys = task % p->waves;
    int queries = (keys + p->wave) % p->waves;
    b.g = p->g + task / p->waves;
    bf16_begin(before);
    if (p->begins && p->wave == 0 && queries < p->q.ranges)
        each_query_block(p, &b, queries, begin_queries);
    if (keys < p->k.ranges)
        each_key_block(p, &b, keys, queries);
    if (p->ends && p->wave + 1 == p->waves && queries < p->q.ranges)
        each_query_block(p, &b, queries, end_queries);
    bf16_end(before);
}

static void run_pass(struct pass *p) {
    p->waves = max_int(p->q.ranges, p->k.ranges);
    for (p->wave = 0; p->wave < p->waves; p->wave++)
        et_parallel(p->a->ctx, pair_task, p, p->waves * p->groups);
}

/* The chunk from token t on, of the whole blocks that `room` has room for. */
static void set_chunk(struct chunk *c, const struct attention *a, int t, int room) {
    c->begin = t;
    c->ranges = 0;
    for (int n; t < a->T && t + (n = block_tokens(a, t)) <= c->begin + room; t += n)
        while (t >= c->begin + c->ranges * a->block)
            c->starts[c->ranges++] = t;
    c->end = c->starts[c->ranges] = t;
}

/* Whether queries of the one may see keys of the other. */
static int chunks_meet(const struct attention *a, const struct chunk *q, const struct chunk *k) {
    int shallowest = FAR_AHEAD;
    for (int t = q->begin; t < q->end; t++)
        shallowest = min_int(shallowest, a->position[t]);
    for (int t = k->begin; t < k->end; t++)
        if (a->end[t] > q->begin && first_query(a, t) < q->end &&
            (a->window == 0 || shallowest - a->position[t] < a->window))
            return 1;
    return 0;
}

/* All passes of some heads. Keys are written when a chunk meets itself, or where queries see both ways the first. */
static void passes_of_heads(struct pass *p) {
    const struct attention *a = p->a;
    for (p->q.end = 0; p->q.end < a->T;) {
        set_chunk(&p->q, a, p->q.end, p->room);
        int last = a->ahead ? a->T : p->q.end;
        p->begins = 1;
        for (p->k.end = 0; p->k.end < last;) {
            set_chunk(&p->k, a, p->k.end, p->room);
            p->writes = p->h == 0 && p->q.begin == (a->ahead ? 0 : p->k.begin);
            p->ends = p->k.end == last;
            if (!p->writes && !p->ends && !chunks_meet(a, &p->q, &p->k))
                continue;
            run_pass(p);
            p->begins = 0;
        }
    }
}

/* Heads are as many at a time as leave room for a chunk, groups as many as there are threads: which of these are together
 * tells in no sum. */
static void attention_backward_bf16(struct attention *a) {
    int ld = whole_strips(a->C);
    struct pass p = {.a = a, .groups = 1, .heads = a->H / a->G};
    int wanted = min_int(a->T, RANGES * a->block);
    while (p.heads > 1 && ET_SHARED_FLOATS / ((p.heads + 2) * ld) < wanted)
        p.heads = ceil_div(p.heads, 2);
    int floats = (p.heads + 2) * ld;
    p.room = min_int(ET_SHARED_FLOATS / floats, RANGES * a->block);
    p.groups = min_int(min_int(a->G, et_threads(a->ctx)), ET_SHARED_FLOATS / (p.room * floats));
    const struct pass most = p;
    for (p.g = 0; p.g < a->G; p.g += most.groups)
        for (p.h = 0; p.h < a->H / a->G; p.h += most.heads) {
            p.groups = min_int(most.groups, a->G - p.g);
            p.heads = min_int(most.heads, a->H / a->G - p.h);
            passes_of_heads(&p);
        }
}
