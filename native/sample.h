/* The head where tokens are drawn: over the vocabulary in blocks, as in head.h, so that no logits are held.
 *
 * The highest of z / temperature + noise, with Gumbel's noise for every entry of the vocabulary, is a draw from the
 * softmax (Gumbel 1954; Maddison et al. 2014), whatever the order in which entries are seen. The noise is a pure
 * function of a key and the entry. */

struct sample_state { /* of a row, of all logits so far: maximum, sum of exp(z - max), of exp((z - max) / temperature)
                       * where drawn from; the highest noisy value, and its logit */
    float max, sum, hot, best, logit;
};
_Static_assert(sizeof(struct sample_state) == ET_SAMPLE_STATE * sizeof(float), "as et.h says");

struct sample_args {
    int32_t *token;
    float *logits, *top;
    struct sample_state *state;
    const int32_t *key; /* [T, 2] */
    const float *limit; /* of each row, or NULL: drawn from are logits from it on; of top, logits below it */
    float heat;         /* 1 / temperature; 0: the highest logit is taken */
    float cap;          /* of logits, as in head.h; 0: none */
    int first, n, M;    /* the block's first entry and its entries; values in a row of top */
};

/* -log(-log(u)), u uniform between 0 and 1 by random bits: of 1 - u, so that u near 1, where the result is large, has
 * all its digits; log1p after Kahan. */
static inline vec gumbel(uvec bits) {
    vec rest = (__builtin_convertvector((ivec)(bits >> 1), vec) + 0.5f) * 0x1p-31f;
    rest = vec_min(rest, splat(1.0f - 0x1p-24f));
    vec u = 1.0f - rest;
    vec lost = 1.0f - u; /* what of `rest` is left in u */
    vec e = blend(lost == 0.0f, rest, -vec_log(u) * rest / blend(lost == 0.0f, splat(1.0f), lost));
    return -vec_log(e);
}

/* Whether an entry of a row might be drawn yet, by the bits of its noise and exp((z - base) / temperature): gumbel(bits)
 * is at most -log(rest), and this above best - z / temperature just where rest < exp(z / temperature - best). Nearly
 * none is, so that nearly no noise is made. above: exp(base / temperature - best), and a little more for rounding. */
static inline ivec may_win(uvec bits, vec e, float above) {
    return (ivec)(__builtin_convertvector((ivec)(bits >> 1), vec) * 0x1p-31f < e * above);
}

static float above_best(float base, float best) { return expf(base - best) * 1.001f; }

/* The sums of a row's block, under the maximum `base`, and its highest noisy value. is_one: the temperature. */
INLINE void sample_row(const struct sample_args *a, struct sample_state *s, const float *z, int row, float base,
                       const int is_one) {
    const uint64_t key = (uint64_t)(uint32_t)a->key[2 * row] | (uint64_t)(uint32_t)a->key[2 * row + 1] << 32;
    const vec limit = splat(a->limit ? a->limit[row] : -INFINITY);
    float above = above_best(base * a->heat, s->best);
    double total = 0.0;
    ivec lane = {0};
    for (int l = 0; l < VL; l++)
        lane[l] = l;
    for (int begin = 0; begin < a->n; begin += RUN) {
        vec sum = {0};
        vec hot = {0};
        for (int i = begin; i < min_int(begin + RUN, a->n); i += VL) {
            ivec there = lane < a->n - i;
            vec x = vload_part(z + i, a->n - i);
            ivec drawn = there & (x >= limit);
            vec e = vec_exp(x - base);
            vec e_hot = blend(drawn, is_one ? e : vec_exp((x - base) * a->heat), splat(0.0f));
            sum += blend(there, e, splat(0.0f));
            hot += e_hot;
            uvec bits = random_bits(key, (uint32_t)(a->first + i));
            if (!lanes_any(may_win(bits, e_hot, above)))
                continue;
            vec noisy = blend(drawn, x * a->heat + gumbel(bits), splat(-INFINITY));
            for (int l = 0; l < VL; l++)
                if (noisy[l] > s->best) {
                    s->best = noisy[l];
                    s->logit = z[i + l];
                    a->token[row] = a->first + i + l;
                }
            above = above_best(base * a->heat, s->best);
        }
        total += lanes_sum(sum);
        s->hot += lanes_sum(hot);
    }
    s->sum = (float)(s->sum + total);
}

/* Brings the maximum on, and the sums so far under it; returns it as what to subtract. */
static float bring_on(struct sample_state *s, const float *z, int n, float heat) {
    float most = row_max(z, n);
    float max = most > s->max ? most : s->max;
    float base = max == -INFINITY ? 0.0f : max;
    float before = s->max == -INFINITY ? -INFINITY : s->max - base;
    s->sum *= expf(before);
    s->hot *= heat ? expf(before * heat) : 0.0f;
    s->max = max;
    return base;
}

static void add_exp(struct sample_state *s, float *z, float base, int n) {
    s->sum = (float)(s->sum + row_exp((et_array){NULL, ET_F32}, z, base, 0, n, NO_EXP));
}

/* The highest logit of a row's block, if it is that of all so far. */
static void take_highest(const struct sample_args *a, struct sample_state *s, float *z, int row, float base) {
    add_exp(s, z, base, a->n);
    if (s->max > s->best) {
        s->best = s->logit = s->max;
        a->token[row] = a->first + row_best(z, s->max, a->n);
    }
}

/* A row of a block's logits, capped. */
static float *capped_row(const struct sample_args *a, int row) {
    float *z = a->logits + (ptrdiff_t)row * a->n;
    if (a->cap > 0)
        cap_row(z, a->cap, a->n);
    return z;
}

static void sample_task(void *arg, int row, int thread) {
    (void)thread;
    const struct sample_args *a = arg;
    struct sample_state *s = &a->state[row];
    float *z = capped_row(a, row);
    float base = bring_on(s, z, a->n, a->heat);
    if (a->heat == 1.0f)
        sample_row(a, s, z, row, base, 1);
    else if (a->heat != 0)
        sample_row(a, s, z, row, base, 0);
    else
        take_highest(a, s, z, row, base);
}

/* Puts x where the lowest of a heap [M] was, and brings the lowest to the front again. */
static void replace_lowest(float *heap, int M, float x) {
    int at = 0;
    for (int child = 1; child < M; child = 2 * at + 1) {
        child += child + 1 < M && heap[child + 1] < heap[child];
        if (heap[child] >= x)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = x;
}

static void top_task(void *arg, int row, int thread) {
    (void)thread;
    const struct sample_args *a = arg;
    float *z = capped_row(a, row);
    float *top = a->top + (ptrdiff_t)row * a->M;
    add_exp(&a->state[row], z, bring_on(&a->state[row], z, a->n, 0.0f), a->n);
    for (int begin = 0; begin < a->n; begin += RUN) {
        int end = min_int(begin + RUN, a->n);
        if (row_max(z + begin, end - begin) > top[0])
            for (int i = begin; i < end; i++)
                if (z[i] > top[0] && z[i] < a->limit[row])
                    replace_lowest(top, a->M, z[i]);
    }
}

/* Runs the task on each row of the logits of each block of entries begin .. end - 1. */
static void each_logits(et_context *ctx, struct sample_args *args, void (*task)(void *, int, int), et_array h,
                        const void *w, int format, int block, int begin, int end, int T, int D) {
    int64_t row_bytes = (int64_t)D / format_block(format) * format_bytes(format);
    for (int t = 0; t < T && begin == 0; t++)
        args->state[t] = (struct sample_state){-INFINITY, 0, 0, -INFINITY, -INFINITY};
    for (args->first = begin; args->first < end; args->first += block) {
        args->n = min_int(block, end - args->first);
        matmul_forward(ctx, (et_array){args->logits, ET_F32}, h, (const char *)w + args->first * row_bytes, format,
                       NULL, NULL, 1.0f, 0, T, args->n, D, 0);
        et_parallel(ctx, task, args, T);
    }
}

/* token [T] drawn by softmax(z / temperature) among logits from limit [T] on; logp, drawn [T]: log p of it in the
 * model, and in what it was drawn from. */
static void head_sample(et_context *ctx, int32_t *token, float *logp, float *drawn, float *logits, float *state,
                        et_array h, const void *w, int format, const int32_t *key, const float *limit,
                        float temperature, float cap, int block, int begin, int end, int T, int V, int D) {
    struct sample_args args = {.token = token,
                               .logits = logits,
                               .state = (struct sample_state *)state,
                               .key = key,
                               .limit = limit,
                               .heat = temperature > 0 ? 1.0f / temperature : 0.0f,
                               .cap = cap};
    for (int t = 0; t < T && begin == 0; t++)
        token[t] = 0; /* should all be NaN */
    each_logits(ctx, &args, sample_task, h, w, format, block, begin, end, T, D);
    for (int t = 0; t < T && end == V; t++) {
        struct sample_state s = args.state[t];
        logp[t] = (float)(s.logit - s.max - log((double)s.sum));
        drawn[t] = args.heat ? (float)((s.logit - s.max) * args.heat - log((double)s.hot)) : 0.0f;
    }
}

/* top [T, M]: the highest logits below limit [T], in no order, -inf where there are fewer; lse [T] log-sum-exp of all. */
static void head_top(et_context *ctx, float *top, float *lse, float *logits, float *state, et_array h, const void *w,
                     int format, const float *limit, float cap, int block, int begin, int end, int T, int M, int V,
                     int D) {
    struct sample_args args = {
        .top = top, .logits = logits, .state = (struct sample_state *)state, .limit = limit, .M = M, .cap = cap};
    for (ptrdiff_t i = 0; i < (ptrdiff_t)T * M && begin == 0; i++)
        top[i] = -INFINITY;
    each_logits(ctx, &args, top_task, h, w, format, block, begin, end, T, D);
    for (int t = 0; t < T && end == V; t++)
        lse[t] = (float)(args.state[t].max + log((double)args.state[t].sum));
}
