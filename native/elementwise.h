/* Element by element: add, bias, scale, dropout and the sum of squares. A vector is loaded before its place is
 * stored, so the in-place uses that et.h allows are safe. */

/* ---- copy, add, bias, scale -------------------------------------------------------------------------------------- */
struct copy_args {
    et_array out, inp;
    int64_t n;
};

INLINE void copy_values(struct copy_args a, struct range r) {
    EACH_VECTOR(i, n, r.begin, r.end, store_part(a.out, i, load_part(a.inp, i, n), n));
}

static void copy_task(void *arg, int task, int thread) {
    (void)thread;
    struct copy_args a = *(const struct copy_args *)arg;
    struct range r = task_values(task, a.n);
    EITHER(a.out, EITHER(a.inp, copy_values(a, r)));
}

/* out [n] = inp [n] */
static void copy(et_context *ctx, et_array out, et_array inp, int64_t n) {
    struct copy_args a = {out, inp, n};
    et_parallel(ctx, copy_task, &a, value_tasks(n));
}

struct add_args {
    float *x;
    const float *y;
    int64_t n;
};

static void add_task(void *arg, int task, int thread) {
    (void)thread;
    const struct add_args *a = arg;
    struct range r = task_values(task, a->n);
    for (int64_t i = r.begin; i < r.end; i += VL)
        vstore_part(a->x + i, vload_part(a->x + i, r.end - i) + vload_part(a->y + i, r.end - i), r.end - i);
}

/* x [n] += y [n] */
static void add(et_context *ctx, float *x, const float *y, int64_t n) {
    struct add_args a = {x, y, n};
    et_parallel(ctx, add_task, &a, value_tasks(n));
}

struct add_bias_args {
    et_array x;
    const float *bias;
    int64_t T, N;
};

INLINE void add_bias_rows(struct add_bias_args a, struct range r) {
    for (int64_t t = r.begin; t < r.end; t++) {
        et_array x = array_at(a.x, t * a.N);
        EACH_VECTOR(i, n, 0, a.N, store_part(x, i, load_part(x, i, n) + vload_part(a.bias + i, n), n));
    }
}

static void add_bias_task(void *arg, int task, int thread) {
    (void)thread;
    struct add_bias_args a = *(const struct add_bias_args *)arg;
    struct range r = task_rows(task, a.T, a.N);
    EITHER(a.x, add_bias_rows(a, r));
}

/* x [T, N] += bias [N] */
static void add_bias(et_context *ctx, et_array x, const float *bias, int T, int N) {
    struct add_bias_args a = {x, bias, T, N};
    et_parallel(ctx, add_bias_task, &a, row_tasks(T, N));
}

struct scale_args {
    float *x;
    float s;
    int64_t n;
};

static void scale_task(void *arg, int task, int thread) {
    (void)thread;
    const struct scale_args *a = arg;
    struct range r = task_values(task, a->n);
    for (int64_t i = r.begin; i < r.end; i += VL)
        vstore_part(a->x + i, vload_part(a->x + i, r.end - i) * a->s, r.end - i);
}

/* x [n] *= s */
static void scale(et_context *ctx, float *x, float s, int64_t n) {
    struct scale_args a = {x, s, n};
    et_parallel(ctx, scale_task, &a, value_tasks(n));
}

/* ---- dropout ------------------------------------------------------------------------------------------------- */
struct dropout_args {
    et_array out, inp;
    float kept;         /* 1 / (1 - p) */
    uint32_t threshold; /* keep when the hash is at least p * 2^32 */
    uint64_t seed;
    int accumulate;
    int64_t n;
};

/* splitmix64's finaliser (Steele, Lea & Flood 2014) */
static inline uint64_t mix64(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* A bijection of 32-bit words with low bias, after Wellons's hash-prospector */
static inline uvec mix32(uvec x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

/* 32 random bits each for values i, i + 1, ... of a task: integer arithmetic on (key, index), the same on every row. */
static inline uvec random_bits(uint64_t key, uint32_t i) {
    uvec lane;
    for (uint32_t l = 0; l < VL; l++)
        lane[l] = i + l;
    return mix32(mix32(lane ^ (uint32_t)key) ^ (uint32_t)(key >> 32));
}

static inline uint64_t task_key(uint64_t seed, int task) { return mix64(seed ^ mix64((uint64_t)task)); }

INLINE void dropout_values(struct dropout_args a, struct range r, uint64_t key) {
    EACH_VECTOR(i, n, r.begin, r.end, {
        uvec hash = random_bits(key, (uint32_t)(i - r.begin));
        vec out = load_part(a.inp, i, n) * blend((ivec)(hash >= a.threshold), splat(a.kept), splat(0.0f));
        if (a.accumulate)
            out += load_part(a.out, i, n);
        store_part(a.out, i, out, n);
    });
}

_Static_assert(TASK_VALUES == 1 << 14, "a task's values share a key of the mask, and masks must not change");
static void dropout_task(void *arg, int task, int thread) {
    (void)thread;
    struct dropout_args a = *(const struct dropout_args *)arg;
    struct range r = task_values(task, a.n);
    uint64_t key = task_key(a.seed, task);
    EITHER(a.out, EITHER(a.inp, dropout_values(a, r, key)));
}

/* out [n] (accumulate: +)= inp [n] * keep(seed, i) / (1 - p), 0 <= p < 1 */
static void dropout(et_context *ctx, et_array out, et_array inp, float p, uint64_t seed, int accumulate, int64_t n) {
    struct dropout_args a = {out, inp, 1.0f / (1.0f - p), (uint32_t)(p * 4294967296.0), seed, accumulate, n};
    et_parallel(ctx, dropout_task, &a, value_tasks(n));
}

/* ---- sum of squares ------------------------------------------------------------------------------------------ */
enum { PARTS = 64, LANES = 16 };

struct sum_squares_args {
    double parts[PARTS];
    const float *x;
    int64_t n, part;
};

/* A float's square is exact in double and the lanes are the same everywhere, so every row gives the same bits. */
static void sum_squares_task(void *arg, int task, int thread) {
    (void)thread;
    struct sum_squares_args *a = arg;
    int64_t begin = task * a->part;
    int64_t end = begin + a->part < a->n ? begin + a->part : a->n;
    int64_t i = begin;
    double lanes[LANES] = {0};
    double sum = 0.0;
    for (; i + LANES <= end; i += LANES)
        for (int l = 0; l < LANES; l++)
            lanes[l] += (double)a->x[i + l] * a->x[i + l];
    for (; i < end; i++)
        sum += (double)a->x[i] * a->x[i];
    for (int l = 0; l < LANES; l++)
        sum += lanes[l];
    a->parts[task] = sum;
}

/* *out = the sum of x^2 over x [n] */
static void sum_squares(et_context *ctx, double *out, const float *x, int64_t n) {
    struct sum_squares_args a = {.x = x, .n = n, .part = (n + PARTS - 1) / PARTS};
    a.part = a.part < TASK_VALUES ? TASK_VALUES : a.part;
    et_parallel(ctx, sum_squares_task, &a, (int)((n + a.part - 1) / a.part));
    *out = 0.0;
    for (int i = 0; i < PARTS; i++)
        *out += a.parts[i];
}
