/* Rotary embedding (Su et al. 2021): in place, by tables of cos and sin that hold whatever scaling the model has.
 * The inverse rotation is the backward pass. */

struct rope_args {
    float *x;
    const float *cos, *sin;
    const int32_t *positions;
    int neox;
    float sign;
    int T, H, C, pairs;
};

/* Pairs (i, i + pairs): two runs of vectors. */
static inline void rotate_halves(float *x, const float *cos, const float *sin, float sign, int pairs) {
    for (int i = 0; i < pairs; i += VL) {
        int n = pairs - i;
        vec c = vload_part(cos + i, n), s = vload_part(sin + i, n) * sign;
        vec a = vload_part(x + i, n), b = vload_part(x + pairs + i, n);
        vstore_part(x + i, a * c - b * s, n);
        vstore_part(x + pairs + i, a * s + b * c, n);
    }
}

/* Pairs (2i, 2i + 1) */
static inline void rotate_neighbours(float *restrict x, const float *restrict cos, const float *restrict sin,
                                     float sign, int pairs) {
    for (int i = 0; i < pairs; i++) {
        float a = x[2 * i], b = x[2 * i + 1], c = cos[i], s = sin[i] * sign;
        x[2 * i] = a * c - b * s;
        x[2 * i + 1] = a * s + b * c;
    }
}

static void rope_task(void *arg, int task, int thread) {
    (void)thread;
    const struct rope_args *a = arg;
    struct range r = task_rows(task, a->T, (int64_t)a->H * a->C);
    for (int64_t t = r.begin; t < r.end; t++) {
        const float *cos = a->cos + (int64_t)a->positions[t] * a->pairs;
        const float *sin = a->sin + (int64_t)a->positions[t] * a->pairs;
        for (int h = 0; h < a->H; h++) {
            float *x = a->x + (t * a->H + h) * a->C;
            if (a->neox)
                rotate_halves(x, cos, sin, a->sign, a->pairs);
            else
                rotate_neighbours(x, cos, sin, a->sign, a->pairs);
        }
    }
}

/* x [T, H, C]: the first n_rot values of a head are rotated by row positions[t] of cos/sin [P, n_rot/2]. */
static void rope(et_context *ctx, float *x, const float *cos, const float *sin, const int32_t *positions, int neox,
                 float sign, int T, int H, int C, int n_rot, int P) {
    struct rope_args a = {x, cos, sin, positions, neox, sign, T, H, C, n_rot / 2};
    (void)P; /* dispatch has checked positions against it */
    et_parallel(ctx, rope_task, &a, row_tasks(T, (int64_t)H * C));
}
