/* AdamW, with moments in float or in 8 bits, whose codes et.h tells. The latter are unpacked a block at a time, stepped
 * as floats, and packed again with a new scale. */

#include "adamw_rates.h"

struct adamw_args {
    struct adamw_rates rates;
    float *param;
    const float *grad;
    float *m, *v;
    struct et_moments *moments; /* instead of m and v */
    uint64_t seed;
    int64_t n;
};

INLINE void adamw_values(const struct adamw_args *a, float *restrict param, const float *restrict grad,
                         float *restrict m, float *restrict v, int64_t n) {
    float beta1 = a->rates.beta1;
    float beta2 = a->rates.beta2;
    float eps = a->rates.eps;
    float shrink = a->rates.shrink;
    float rate = a->rates.rate;
    float unbias = a->rates.unbias;
    for (int64_t i = 0; i < n; i++) {
        m[i] = beta1 * m[i] + (1.0f - beta1) * grad[i];
        v[i] = beta2 * v[i] + (1.0f - beta2) * grad[i] * grad[i];
        param[i] = shrink * param[i] - rate * m[i] / (sqrtf(v[i]) * unbias + eps);
    }
}

static void adamw_task(void *arg, int task, int thread) {
    (void)thread;
    const struct adamw_args *a = arg;
    struct range r = task_values(task, a->n);
    adamw_values(a, a->param + r.begin, a->grad + r.begin, a->m + r.begin, a->v + r.begin, r.end - r.begin);
}

/* Decoupled AdamW (Loshchilov & Hutter 2019), as torch.optim.AdamW; step counts from 1. */
static void adamw(et_context *ctx, float *param, const float *grad, float *m, float *v, float lr, float beta1,
                  float beta2, float eps, float weight_decay, int64_t step, int64_t n) {
    struct adamw_args a = {.rates = adamw_rates_of(lr, beta1, beta2, eps, weight_decay, step),
                           .param = param,
                           .grad = grad,
                           .m = m,
                           .v = v,
                           .n = n};
    et_parallel(ctx, adamw_task, &a, value_tasks(n));
}

/* ---- AdamW, moments in 8 bits -------------------------------------------------------------------------------- */
_Static_assert(TASK_VALUES % ET_MOMENTS == 0, "a task has whole blocks");
_Static_assert(ET_MOMENTS % VL == 0, "a block has whole vectors");

static inline vec vec_sqrt(vec x) {
    for (int l = 0; l < VL; l++)
        x[l] = sqrtf(x[l]);
    return x;
}

/* The largest |x|, and never 0, so that it can be divided by. */
static inline float largest(const float *x) {
    vec most = {0};
    for (int i = 0; i < ET_MOMENTS; i += VL) {
        vec size = (vec)((ivec)vload(x + i) & 0x7fffffff);
        most = blend(size > most, size, most);
    }
    float found = lanes_max(most);
    return found > 0.0f ? found : 1.0f;
}

static void load_moments(float *m, float *v, const struct et_moments *from) {
    for (int i = 0; i < ET_MOMENTS; i++) {
        float x = from->m[i] * (1.0f / 127);
        float y = from->v[i] * (1.0f / 255);
        m[i] = from->m_scale * (x * fabsf(x) * (x * x));
        y *= y;
        y *= y;
        v[i] = from->v_scale * (y * y);
    }
}

/* code [ET_MOMENTS]: the nearest to 127 (|m| / scale)^(1/4), with m's sign. What is no number becomes 127. */
static void store_m(int8_t *code, const float *m, float scale) {
    for (int i = 0; i < ET_MOMENTS; i += VL) {
        vec x = vload(m + i);
        vec c = vec_sqrt(vec_sqrt((vec)((ivec)x & 0x7fffffff) / scale)) * 127.0f + 0.5f;
        c = blend(c < splat(127.5f), c, splat(127.5f));
        ivec whole = __builtin_convertvector(c, ivec);
        ivec minus = (ivec)(x < splat(0.0f));
        whole = (whole ^ minus) - minus;
        for (int l = 0; l < VL; l++)
            code[i + l] = (int8_t)whole[l];
    }
}

static inline vec eighth_power(vec x) {
    x *= x;
    x *= x;
    return x * x;
}

/* code [ET_MOMENTS]: one of the two beside 255 (v / scale)^(1/8), the upper one as often as makes the mean v. */
static void store_v(uint8_t *code, const float *v, float scale, uint64_t key, uint32_t at) {
    for (int i = 0; i < ET_MOMENTS; i += VL) {
        vec x = vload(v + i) / scale;
        vec c = vec_sqrt(vec_sqrt(vec_sqrt(x))) * 255.0f;
        ivec low = __builtin_convertvector(blend(c < splat(254.0f), c, splat(254.0f)), ivec);
        vec lower = __builtin_convertvector(low, vec);
        vec below = eighth_power(lower * (1.0f / 255));
        vec above = eighth_power((lower + 1.0f) * (1.0f / 255));
        vec chance = __builtin_convertvector((ivec)(random_bits(key, at + (uint32_t)i) >> 8), vec) * 0x1p-24f;
        ivec up = (ivec)(chance * (above - below) < x - below) | (ivec)((low == 0) & (ivec)(x > splat(0.0f)));
        low -= up;
        for (int l = 0; l < VL; l++)
            code[i + l] = (uint8_t)low[l];
    }
}

static void adamw8_task(void *arg, int task, int thread) {
    (void)thread;
    const struct adamw_args *a = arg;
    struct range r = task_values(task, a->n);
    uint64_t key = task_key(a->seed, task);
    for (int64_t i = r.begin; i < r.end; i += ET_MOMENTS) {
        struct et_moments *moments = a->moments + i / ET_MOMENTS;
        float m[ET_MOMENTS], v[ET_MOMENTS];
        load_moments(m, v, moments);
        adamw_values(a, a->param + i, a->grad + i, m, v, r.end - i < ET_MOMENTS ? r.end - i : ET_MOMENTS);
        moments->m_scale = largest(m), moments->v_scale = largest(v);
        store_m(moments->m, m, moments->m_scale);
        store_v(moments->v, v, moments->v_scale, key, (uint32_t)(i - r.begin));
    }
}

/* adamw with moments in 8 bits, after Dettmers et al. 2022 (2110.02861): blocks with a scale each, codes dense near 0.
 * Theirs are looked up; ours are roots, which every row has an instruction for. */
static void adamw8(et_context *ctx, float *param, const float *grad, struct et_moments *moments, float lr, float beta1,
                   float beta2, float eps, float weight_decay, int64_t step, uint64_t seed, int64_t n) {
    struct adamw_args a = {.rates = adamw_rates_of(lr, beta1, beta2, eps, weight_decay, step),
                           .param = param,
                           .grad = grad,
                           .moments = moments,
                           .seed = seed,
                           .n = n};
    et_parallel(ctx, adamw8_task, &a, value_tasks(n));
}
