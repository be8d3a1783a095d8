/* AdamW: decoupled (Loshchilov & Hutter 2019), as torch.optim.AdamW; with moments in 8 bits after Dettmers et al. 2022
 * (2110.02861), whose codes et.h tells. */
#include "adamw.h"
#include "four.cuh"
#include "random.cuh"

/* A step of one parameter; m and v are its moments, then the new ones. */
DEVICE float adamw_step(const adamw_rates &r, float param, float grad, float *m, float *v) {
    *m = r.beta1 * *m + (1.0f - r.beta1) * grad;
    *v = r.beta2 * *v + (1.0f - r.beta2) * grad * grad;
    return r.shrink * param - r.rate * *m / (sqrtf(*v) * r.unbias + r.eps);
}

KERNEL(adamw, adamw_args) {
    EACH_FOUR(i, a.n) {
        four param = get_four(floats(a.param), i, a.n, a.whole);
        four grad = get_four(floats(a.grad), i, a.n, a.whole);
        four m = get_four(floats(a.m), i, a.n, a.whole);
        four v = get_four(floats(a.v), i, a.n, a.whole);
        for (int k = 0; k < 4; k++)
            param.x[k] = adamw_step(a.rates, param.x[k], grad.x[k], &m.x[k], &v.x[k]);
        put_four(floats(a.param), i, param, a.n, a.whole);
        put_four(floats(a.m), i, m, a.n, a.whole);
        put_four(floats(a.v), i, v, a.n, a.whole);
    }
}

/* ---- moments in 8 bits ---- */

DEVICE float eighth_power(float x) {
    x *= x;
    x *= x;
    return x * x;
}

DEVICE float m_of(int8_t code, float scale) {
    float x = code * (1.0f / 127);
    return scale * (x * fabsf(x) * (x * x));
}

/* The nearest to 127 (|m| / scale)^(1/4), with m's sign. What is no number becomes 127. */
DEVICE int8_t m_code(float m, float scale) {
    float c = sqrtf(sqrtf(fabsf(m) / scale)) * 127.0f + 0.5f;
    int code = (int)(c < 127.5f ? c : 127.5f);
    return (int8_t)(m < 0.0f ? -code : code);
}

/* One of the two beside 255 (v / scale)^(1/8), the upper one as often as makes the mean v. */
DEVICE uint8_t v_code(float v, float scale, uint32_t bits) {
    float x = v / scale;
    float c = sqrtf(sqrtf(sqrtf(x))) * 255.0f;
    int low = (int)(c < 254.0f ? c : 254.0f);
    float below = eighth_power((float)low * (1.0f / 255));
    float above = eighth_power((float)(low + 1) * (1.0f / 255));
    float chance = (float)(int)(bits >> 8) * (1.0f / (1 << 24));
    int up = chance * (above - below) < x - below || (low == 0 && x > 0.0f);
    return (uint8_t)(low + up);
}

/* The largest of a warp as a scale: never 0, so that it can be divided by. */
DEVICE float scale_of(float most) {
    most = warp_max(most);
    return most > 0.0f ? most : 1.0f;
}

/* A warp a group of moments, of which lane l has every 32nd from l on: loads lie side by side, all are under way before
 * the first is used, and nothing waits for other warps. */
KERNEL(adamw8, adamw_args) {
    enum { EACH = ET_MOMENTS / ET_WARP };
    int lane = (int)threadIdx.x % ET_WARP;
    int64_t group = (int64_t)blockIdx.x * (blockDim.x / ET_WARP) + threadIdx.x / ET_WARP;
    int64_t begin = group * ET_MOMENTS;
    if (begin >= a.n)
        return;
    et_moments *moments = a.moments + group;
    float param[EACH], grad[EACH], m[EACH], v[EACH];
    float most_m = 0;
    float most_v = 0;
    float m_scale = moments->m_scale;
    float v_scale = moments->v_scale;
    for (int k = 0; k < EACH; k++) {
        int j = k * ET_WARP + lane;
        param[k] = begin + j < a.n ? a.param[begin + j] : 0.0f;
        grad[k] = begin + j < a.n ? a.grad[begin + j] : 0.0f;
        m[k] = m_of(moments->m[j], m_scale);
        v[k] = v_scale * eighth_power(moments->v[j] * (1.0f / 255));
    }
    for (int k = 0; k < EACH; k++) {
        int64_t i = begin + k * ET_WARP + lane;
        if (i < a.n)
            a.param[i] = adamw_step(a.rates, param[k], grad[k], &m[k], &v[k]);
        most_m = fmaxf(most_m, fabsf(m[k]));
        most_v = fmaxf(most_v, v[k]);
    }
    m_scale = scale_of(most_m); /* after all lanes have read what it was */
    v_scale = scale_of(most_v);
    uint64_t key = random_key(a.seed, begin); /* of the whole group */
    for (int k = 0; k < EACH; k++) {
        int j = k * ET_WARP + lane;
        moments->m[j] = m_code(m[k], m_scale);
        moments->v[j] = v_code(v[k], v_scale, random_bits(key, (uint32_t)(begin % ET_KEY_VALUES) + (uint32_t)j));
    }
    if (lane == 0) {
        moments->m_scale = m_scale;
        moments->v_scale = v_scale;
    }
}
