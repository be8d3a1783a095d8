/* Attention of one new query each of many answers over keys and values that are kept, of what they share and of their
 * own: forward only, an online softmax over a few blocks of the cache at a time. A task is an answer and a head of keys,
 * with all query heads that share it, so that a key is loaded once for these; its sums do not depend on other answers.
 *
 * A block of the cache has ET_CACHE tokens. Its keys are transposed, so that the scores of a vector of keys are made
 * without sums across lanes; its values are as they are summed. */

enum { CACHED_HEADS = 4, CACHED_KEYS = 32 * ET_CACHE }; /* at a time */
_Static_assert(ET_CACHE % VL == 0, "a block's keys must be whole vectors");
_Static_assert((CACHED_KEYS + 2 * ET_MAX_HEAD) * CACHED_HEADS <= ET_THREAD_FLOATS, "must fit a thread's scratch");

struct cached {
    et_context *ctx;
    et_array out, q, keys, values;
    const int32_t *path;
    float scale;
    int window, T, P, H, G, C;
};

/* Of a task: the answer, the head of keys, `heads` query heads from h on; their queries, scores and sums in scratch. */
struct cached_task {
    int t, g, h, heads;
    float *q, *s, *sums;
};

/* Where an entry of a path leads: its block, and how many tokens of it the query sees. */
static inline int path_block(int32_t entry) { return entry / ET_CACHE; }
static inline int path_tokens(int32_t entry) { return entry % ET_CACHE + 1; }

/* s [heads, ET_CACHE], rows CACHED_KEYS apart, = q [heads, C] . the block's keys [C, ET_CACHE]. Two sums for each, as
 * one would wait for itself. */
INLINE void block_scores(float *s, const float *q, et_array keys, int C, const int heads) {
    for (int j = 0; j < ET_CACHE; j += VL) {
        vec sums[2][CACHED_HEADS] = {0};
        int c = 0;
        for (; c + 2 <= C; c += 2) {
            UNROLL for (int i = 0; i < 2; i++) {
                vec k = load_part(keys, (c + i) * ET_CACHE + j, VL);
                UNROLL for (int h = 0; h < heads; h++)
                    sums[i][h] += q[h * ET_MAX_HEAD + c + i] * k;
            }
        }
        if (c < C) {
            vec k = load_part(keys, c * ET_CACHE + j, VL);
            UNROLL for (int h = 0; h < heads; h++)
                sums[0][h] += q[h * ET_MAX_HEAD + c] * k;
        }
        UNROLL for (int h = 0; h < heads; h++)
            vstore(s + h * CACHED_KEYS + j, sums[0][h] + sums[1][h]);
    }
}

/* sums [heads, C] += p [heads, n] . the block's values [n, C], rows of p CACHED_KEYS apart. */
INLINE void block_sums(float *sums, const float *p, et_array values, int n, int C, const int heads) {
    for (int c = 0; c < C; c += VL) {
        vec part[2][CACHED_HEADS] = {0};
        int j = 0;
        for (; j + 2 <= n; j += 2) {
            UNROLL for (int i = 0; i < 2; i++) {
                vec v = load_part(values, (j + i) * C + c, C - c);
                UNROLL for (int h = 0; h < heads; h++)
                    part[i][h] += p[h * CACHED_KEYS + j + i] * v;
            }
        }
        if (j < n) {
            vec v = load_part(values, j * C + c, C - c);
            UNROLL for (int h = 0; h < heads; h++)
                part[0][h] += p[h * CACHED_KEYS + j] * v;
        }
        UNROLL for (int h = 0; h < heads; h++) {
            float *to = sums + h * ET_MAX_HEAD + c;
            vstore(to, vload(to) + (part[0][h] + part[1][h]));
        }
    }
}

// clang-format off
#define EACH_HEADS(heads, call)                                                                                        \
    switch (heads) {                                                                                                   \
    case 1: { enum { N = 1 }; call; } break;                                                                           \
    case 2: { enum { N = 2 }; call; } break;                                                                           \
    case 3: { enum { N = 3 }; call; } break;                                                                           \
    default: { enum { N = CACHED_HEADS }; call; }                                                                      \
    }
// clang-format on

/* Asks for the keys or values [C, ET_CACHE] of a head in a block: from far away they take longer than their sums. */
static inline void fetch_block(et_array x, int64_t first, int C) {
    const ptrdiff_t size = (ptrdiff_t)C * ET_CACHE * (x.type == ET_F32 ? 4 : 2);
    for (ptrdiff_t i = 0; i < size; i += 64)
        __builtin_prefetch((const char *)array_at(x, first).data + i, 0, 2);
}

static inline int64_t block_first(const struct cached *a, int g, int block) {
    return ((int64_t)block * a->G + g) * a->C * ET_CACHE;
}

/* Scores of a block for the task's heads: -inf for its first `skipped` keys, and from the n-th on. */
static void masked_scores(const struct cached *a, const struct cached_task *task, float *s, int block, int skipped,
                          int n) {
    et_array keys = array_at(a->keys, block_first(a, task->g, block));
    EITHER(keys, EACH_HEADS(task->heads, block_scores(s, task->q, keys, a->C, N)));
    for (int h = 0; h < task->heads && (skipped || n < ET_CACHE); h++)
        for (int j = 0; j < ET_CACHE; j++)
            if (j < skipped || j >= n)
                s[h * CACHED_KEYS + j] = -INFINITY;
}

static void add_values(const struct cached *a, const struct cached_task *task, const float *p, int block, int n) {
    et_array values = array_at(a->values, block_first(a, task->g, block));
    EITHER(values, EACH_HEADS(task->heads, block_sums(task->sums, p, values, n, a->C, N)));
}

/* The tokens of a path that begins at `path`, and how many entries it has. */
static int path_length(const int32_t *path, int P, int *entries) {
    int n = 0;
    for (*entries = 0; *entries < P && path[*entries] >= 0; ++*entries)
        n += path_tokens(path[*entries]);
    return n;
}

/* The path's entries, as many as there is room for scores at a time, but those that the window leaves out. */
static void attend(const struct cached *a, const struct cached_task *task) {
    const int32_t *path = a->path + (ptrdiff_t)task->t * a->P;
    float max[CACHED_HEADS], sum[CACHED_HEADS] = {0};
    int entries;
    int beyond = path_length(path, a->P, &entries) - a->window;
    beyond = a->window && beyond > 0 ? beyond : 0;
    for (int h = 0; h < CACHED_HEADS; h++)
        max[h] = -INFINITY;
    memset(task->sums, 0, CACHED_HEADS * ET_MAX_HEAD * sizeof(float));
    int begin = 0;
    for (; begin < entries && beyond >= path_tokens(path[begin]); begin++)
        beyond -= path_tokens(path[begin]);
    for (int end; begin < entries; begin = end, beyond = 0) {
        end = min_int(begin + CACHED_KEYS / ET_CACHE, entries);
        for (int i = begin; i < end; i++) {
            fetch_block(a->values, block_first(a, task->g, path_block(path[i])), a->C);
            if (i + 1 < entries)
                fetch_block(a->keys, block_first(a, task->g, path_block(path[i + 1])), a->C);
            masked_scores(a, task, task->s + (i - begin) * ET_CACHE, path_block(path[i]), i == begin ? beyond : 0,
                          path_tokens(path[i]));
        }
        for (int h = 0; h < task->heads; h++) {
            float factor = softmax_step(task->s + h * CACHED_KEYS, (end - begin) * ET_CACHE, &max[h], &sum[h]);
            scale_row(task->sums + h * ET_MAX_HEAD, factor, a->C);
        }
        for (int i = begin; i < end; i++)
            add_values(a, task, task->s + (i - begin) * ET_CACHE, path_block(path[i]), path_tokens(path[i]));
    }
    for (int h = 0; h < task->heads; h++)
        store_scaled(a->out, ((ptrdiff_t)task->t * a->H + task->h + h) * a->C, task->sums + h * ET_MAX_HEAD,
                     1.0f / sum[h], a->C);
}

/* Answers of one head of keys follow each other, as they may share keys. */
static void cached_task(void *arg, int number, int thread) {
    const struct cached *a = arg;
    int group = a->H / a->G;
    float *scratch = et_scratch(a->ctx, thread);
    struct cached_task task = {.t = number % a->T,
                               .g = number / a->T,
                               .q = scratch,
                               .sums = scratch + CACHED_HEADS * ET_MAX_HEAD,
                               .s = scratch + 2 * CACHED_HEADS * ET_MAX_HEAD};
    for (int first = 0; first < group; first += CACHED_HEADS) {
        task.h = task.g * group + first;
        task.heads = min_int(group - first, CACHED_HEADS);
        for (int h = 0; h < task.heads; h++)
            for (int c = 0; c < a->C; c += VL)
                vstore(task.q + h * ET_MAX_HEAD + c,
                       a->scale * load_part(a->q, ((int64_t)task.t * a->H + task.h + h) * a->C + c, a->C - c));
        attend(a, &task);
    }
}

/* out [T, H, C] of queries q [T, H, C] over the tokens of their paths [T, P]. */
static void attention_cached(et_context *ctx, et_array out, et_array q, et_array keys, et_array values,
                             const int32_t *path, float scale, int window, int T, int P, int L, int H, int G, int C) {
    (void)L;
    struct cached a = {.ctx = ctx,
                       .out = out,
                       .q = q,
                       .keys = keys,
                       .values = values,
                       .path = path,
                       .scale = scale,
                       .window = window,
                       .T = T,
                       .P = P,
                       .H = H,
                       .G = G,
                       .C = C};
    et_parallel(ctx, cached_task, &a, T * G);
}

struct store_args {
    et_array keys, values, k, v;
    const int32_t *slot;
    int T, G, C;
};

/* Values x [n] of a key, one below the other in its block. */
static inline void store_key(et_array keys, int64_t to, vec x, int n) {
    if (keys.type == ET_F32) {
        for (int i = 0; i < n; i++)
            ((float *)keys.data)[to + (int64_t)i * ET_CACHE] = x[i];
        return;
    }
    half_vec y = vec_to_bf16(x);
    for (int i = 0; i < n; i++)
        ((uint16_t *)keys.data)[to + (int64_t)i * ET_CACHE] = y[i];
}

static void store_task(void *arg, int number, int thread) {
    (void)thread;
    const struct store_args *a = arg;
    struct range r = task_rows(number, a->T, a->G * a->C);
    for (int64_t t = r.begin; t < r.end; t++)
        for (int g = 0; g < a->G; g++) {
            int64_t from = (t * a->G + g) * a->C;
            int64_t to = ((int64_t)path_block(a->slot[t]) * a->G + g) * a->C * ET_CACHE;
            int place = a->slot[t] % ET_CACHE;
            for (int c = 0; c < a->C; c += VL) {
                int n = min_int(a->C - c, VL);
                store_key(a->keys, to + (int64_t)c * ET_CACHE + place, load_part(a->k, from + c, n), n);
                store_part(a->values, to + place * a->C + c, load_part(a->v, from + c, n), n);
            }
        }
}

/* Keys and values k, v [T, G, C] of tokens at their slots [T]. */
static void cache_store(et_context *ctx, et_array keys, et_array values, et_array k, et_array v, const int32_t *slot,
                        int T, int L, int G, int C) {
    (void)L;
    struct store_args a = {keys, values, k, v, slot, T, G, C};
    et_parallel(ctx, store_task, &a, row_tasks(T, G * C));
}
