/* Rotary embedding (Su et al. 2021): in place, by tables of cos and sin that hold whatever scaling the model has.
 * The inverse rotation is the backward pass. */

typedef uint32_t half_uvec __attribute__((vector_size(2 * VL)));
typedef uint64_t pair_vec __attribute__((vector_size(4 * VL)));

struct rope_args {
    et_array x;
    const float *cos, *sin;
    const int32_t *positions;
    int neox;
    float sign;
    int64_t T, H, C, pairs;
};

/* Pairs (i, i + pairs) of the heads of a token: two runs of vectors. */
INLINE void rotate_halves(const struct rope_args *a, et_array x, const float *cos, const float *sin) {
    EACH_VECTOR(i, n, 0, a->pairs, {
        vec c = vload_part(cos + i, n);
        vec s = vload_part(sin + i, n) * a->sign;
        for (int64_t first = i, second = i + a->pairs; first < a->H * a->C; first += a->C, second += a->C) {
            vec u = load_part(x, first, n);
            vec v = load_part(x, second, n);
            store_part(x, first, u * c - v * s, n);
            store_part(x, second, u * s + v * c, n);
        }
    });
}

/* The n <= VL / 2 floats at p, each twice. */
static inline pair_vec load_twice(const float *p, int64_t n) {
    half_uvec x = {0};
    memcpy(&x, p, (size_t)n * sizeof *p);
    pair_vec wide = __builtin_convertvector(x, pair_vec);
    return wide | wide << 32;
}

/* Pairs (2i, 2i + 1): the other of a pair is 32 bits of its 64 away. */
INLINE void rotate_neighbours(const struct rope_args *a, et_array x, const float *cos, const float *sin) {
    EACH_VECTOR(i, n, 0, 2 * a->pairs, {
        vec c = (vec)load_twice(cos + i / 2, n / 2);
        vec s = (vec)(load_twice(sin + i / 2, n / 2) ^ 0x80000000u) * a->sign; /* -, +, -, + ... */
        for (int64_t first = i; first < a->H * a->C; first += a->C) {
            vec u = load_part(x, first, n);
            vec v = (vec)((pair_vec)u << 32 | (pair_vec)u >> 32);
            store_part(x, first, u * c + v * s, n);
        }
    });
}

INLINE void rope_tokens(struct rope_args a, struct range tokens) {
    for (int64_t t = tokens.begin; t < tokens.end; t++) {
        const float *cos = a.cos + (int64_t)a.positions[t] * a.pairs;
        const float *sin = a.sin + (int64_t)a.positions[t] * a.pairs;
        et_array x = array_at(a.x, t * a.H * a.C);
        if (a.neox)
            rotate_halves(&a, x, cos, sin);
        else
            rotate_neighbours(&a, x, cos, sin);
    }
}

static void rope_task(void *arg, int task, int thread) {
    (void)thread;
    struct rope_args a = *(const struct rope_args *)arg;
    struct range tokens = task_rows(task, a.T, a.H * a.C);
    EITHER(a.x, rope_tokens(a, tokens));
}

/* x [T, H, C]: the first n_rot values of a head are rotated by row positions[t] of cos/sin [P, n_rot/2]. */
static void rope(et_context *ctx, et_array x, const float *cos, const float *sin, const int32_t *positions, int neox,
                 float sign, int T, int H, int C, int n_rot, int P) {
    struct rope_args a = {x, cos, sin, positions, neox, sign, T, H, C, n_rot / 2};
    (void)P; /* dispatch has checked positions against it */
    et_parallel(ctx, rope_task, &a, row_tasks(T, (int64_t)H * C));
}
