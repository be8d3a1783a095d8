/* The truth of all ops but the products: definitions written out in double precision, one value after another. */
#include "ref.h"

#include <math.h>
#include <stdlib.h>

/* ---- norm, rope, glu ----------------------------------------------------------------------------------------- */
void ref_rmsnorm_forward(et_context *ctx, et_array out, float *rstd, et_array inp, const float *weight, float eps,
                         int64_t rows, int D) {
    (void)ctx;
    for (int64_t r = 0; r < rows; r++) {
        double square = 0.0;
        for (int i = 0; i < D; i++)
            square += array_get(inp, r * D + i) * array_get(inp, r * D + i);
        double scale = 1.0 / sqrt(square / D + eps);
        for (int i = 0; i < D; i++)
            array_put(out, r * D + i, array_get(inp, r * D + i) * scale * weight[i]);
        rstd[r] = (float)scale;
    }
}

void ref_rmsnorm_backward(et_context *ctx, et_array dinp, et_array dout, et_array inp, const float *weight,
                          const float *rstd, int accumulate, int64_t rows, int D) {
    (void)ctx;
    for (int64_t r = 0; r < rows; r++) {
        double pull = 0.0;
        double s = rstd[r];
        for (int i = 0; i < D; i++)
            pull += array_get(dout, r * D + i) * weight[i] * array_get(inp, r * D + i);
        for (int64_t i = r * D; i < (r + 1) * D; i++) {
            double d = s * array_get(dout, i) * weight[i - r * D] - s * s * s / D * array_get(inp, i) * pull;
            array_put(dinp, i, accumulate ? array_get(dinp, i) + d : d);
        }
    }
}

void ref_layernorm_forward(et_context *ctx, et_array out, float *mean, float *rstd, et_array inp, const float *weight,
                           const float *bias, float eps, int64_t rows, int D) {
    (void)ctx;
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0.0;
        double square = 0.0;
        for (int64_t i = r * D; i < (r + 1) * D; i++)
            sum += array_get(inp, i);
        for (int64_t i = r * D; i < (r + 1) * D; i++)
            square += (array_get(inp, i) - sum / D) * (array_get(inp, i) - sum / D);
        double scale = 1.0 / sqrt(square / D + eps);
        for (int i = 0; i < D; i++) {
            double x = (array_get(inp, r * D + i) - sum / D) * scale * weight[i];
            array_put(out, r * D + i, bias ? x + bias[i] : x);
        }
        mean[r] = (float)(sum / D);
        rstd[r] = (float)scale;
    }
}

/* of d = dout * weight through xhat = (inp - mean) * rstd: rstd * (d - mean(d) - xhat * mean(d * xhat)) */
void ref_layernorm_backward(et_context *ctx, et_array dinp, et_array dout, et_array inp, const float *weight,
                            const float *mean, const float *rstd, int accumulate, int64_t rows, int D) {
    (void)ctx;
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0.0;
        double pull = 0.0;
        double s = rstd[r];
        for (int64_t i = r * D; i < (r + 1) * D; i++) {
            sum += array_get(dout, i) * weight[i - r * D];
            pull += array_get(dout, i) * weight[i - r * D] * (array_get(inp, i) - mean[r]) * s;
        }
        for (int64_t i = r * D; i < (r + 1) * D; i++) {
            double xhat = (array_get(inp, i) - mean[r]) * s;
            double d = s * (array_get(dout, i) * weight[i - r * D] - sum / D - xhat * pull / D);
            array_put(dinp, i, accumulate ? array_get(dinp, i) + d : d);
        }
    }
}

void ref_rope(et_context *ctx, et_array x, const float *cos, const float *sin, const int32_t *positions, int neox,
              float sign, int T, int H, int C, int n_rot, int P) {
    (void)ctx;
    (void)P;
    for (int t = 0; t < T; t++)
        for (int h = 0; h < H; h++)
            for (int i = 0; i < n_rot / 2; i++) {
                int64_t head = ((int64_t)t * H + h) * C;
                int64_t first = head + (neox ? i : 2 * i);
                int64_t second = head + (neox ? i + n_rot / 2 : 2 * i + 1);
                size_t at = (size_t)positions[t] * (n_rot / 2) + i;
                double c = cos[at];
                double s = (double)sign * sin[at];
                double a = array_get(x, first);
                double b = array_get(x, second);
                array_put(x, first, a * c - b * s);
                array_put(x, second, a * s + b * c);
            }
}

static double normal_function(double x) { return 0.5 * erfc(-x / sqrt(2.0)); }

/* SiLU and the approximated GELU (0, 1) are x sigmoid(z): 0.5 (1 + tanh u) is sigmoid(2u), and keeps its digits where
 * tanh u is near -1. 2 is GELU. */
static double argument(double x, int kind) {
    return kind == 0 ? x : 2.0 * sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x);
}

static double activation(double x, int kind) {
    if (kind == 2)
        return x * normal_function(x);
    if (kind == 3)
        return 1.0 / (1.0 + exp(-x));
    return x / (1.0 + exp(-argument(x, kind)));
}

static double activation_slope(double x, int kind) {
    if (kind == 2)
        return normal_function(x) + x * exp(-0.5 * x * x) / sqrt(2.0 * M_PI);
    if (kind == 3)
        return 1.0 / (2.0 + exp(x) + exp(-x));
    double z = argument(x, kind);
    double dz = kind == 0 ? 1.0 : 2.0 * sqrt(2.0 / M_PI) * (1.0 + 3.0 * 0.044715 * x * x);
    return 1.0 / (1.0 + exp(-z)) + x * dz / (2.0 + exp(z) + exp(-z));
}

void ref_glu_forward(et_context *ctx, et_array out, et_array gate, et_array up, int kind, int64_t n) {
    (void)ctx;
    for (int64_t i = 0; i < n; i++)
        array_put(out, i, activation(array_get(gate, i), kind) * array_get(up, i));
}

void ref_glu_backward(et_context *ctx, et_array dgate, et_array dup, et_array act, et_array dout, et_array gate,
                      et_array up, int kind, int64_t n) {
    (void)ctx;
    for (int64_t i = 0; i < n; i++) {
        double d = array_get(dout, i);
        double x = array_get(gate, i);
        double u = array_get(up, i);
        array_put(dgate, i, d * u * activation_slope(x, kind));
        array_put(dup, i, d * activation(x, kind));
        array_put(act, i, activation(x, kind) * u);
    }
}

void ref_gelu_forward(et_context *ctx, et_array out, et_array inp, int64_t n) {
    (void)ctx;
    for (int64_t i = 0; i < n; i++) {
        array_put(out, i, activation(array_get(inp, i), 2));
    }
}

void ref_gelu_backward(et_context *ctx, et_array dinp, et_array act, et_array dout, et_array inp, int64_t n) {
    (void)ctx;
    for (int64_t i = 0; i < n; i++) {
        double x = array_get(inp, i);
        double d = array_get(dout, i);
        array_put(act, i, activation(x, 2));
        array_put(dinp, i, d * activation_slope(x, 2));
    }
}

/* ---- attention ----------------------------------------------------------------------------------------------- */
struct heads {
    et_array q, k;
    const int32_t *begin, *end, *position;
    double scale;
    int window, first, H, G, C; /* queries are tokens from `first` on */
};

static int sees(const struct heads *a, int t, int j) {
    return (a->begin ? a->begin[j] : j) <= t && t < a->end[j] &&
           (a->window == 0 || abs(a->position[t] - a->position[j]) < a->window);
}

/* One past the last key that query t may see. */
static int seen_end(const struct heads *a, int t) { return a->begin ? a->end[t] : t + 1; }

/* p [seen_end] = softmax of query t's scores in head h; returns log-sum-exp */
static double probabilities(double *p, const struct heads *a, int t, int h) {
    int g = h / (a->H / a->G);
    double max = -INFINITY;
    double sum = 0.0;
    int last = seen_end(a, t);
    for (int j = 0; j < last; j++) {
        p[j] = 0.0;
        for (int i = 0; i < a->C; i++)
            p[j] += a->scale * array_get(a->q, ((int64_t)(t - a->first) * a->H + h) * a->C + i) *
                    array_get(a->k, ((int64_t)j * a->G + g) * a->C + i);
        p[j] = sees(a, t, j) ? p[j] : -INFINITY;
        max = p[j] > max ? p[j] : max;
    }
    for (int j = 0; j < last; j++)
        sum += p[j] = exp(p[j] - max);
    for (int j = 0; j < last; j++)
        p[j] /= sum;
    return max + log(sum);
}

void ref_attention_forward(et_context *ctx, et_array out, float *lse, et_array q, et_array k, et_array v,
                           const int32_t *begin, const int32_t *end, const int32_t *position, float scale, int window,
                           int Q, int T, int H, int G, int C) {
    (void)ctx;
    struct heads a = {q, k, begin, end, position, scale, window, T - Q, H, G, C};
    double *p = malloc((size_t)T * sizeof *p);
    for (int h = 0; h < H; h++)
        for (int t = T - Q; t < T; t++) {
            int64_t row = t - a.first;
            lse[h * (int64_t)Q + row] = (float)probabilities(p, &a, t, h);
            for (int i = 0; i < C; i++) {
                double sum = 0.0;
                for (int j = 0; j < seen_end(&a, t); j++)
                    sum += p[j] * array_get(v, ((int64_t)j * G + h / (H / G)) * C + i);
                array_put(out, (row * H + h) * C + i, sum);
            }
        }
    free(p);
}

/* What query t of head h adds: ds_j = p_j (dp_j - sum p dp) with dp_j = dout . v_j. grads are dq, dk, dv in double. */
static double query_backward(double *const grads[3], double *p, double *dp, et_array dout, et_array v,
                             const struct heads *a, int t, int h) {
    int64_t at = ((int64_t)(t - a->first) * a->H + h) * a->C;
    int64_t group = a->H / a->G;
    double mean = 0.0;
    probabilities(p, a, t, h);
    for (int j = 0; j < seen_end(a, t); j++) {
        dp[j] = 0.0;
        for (int i = 0; i < a->C; i++)
            dp[j] += array_get(dout, at + i) * array_get(v, (j * a->G + h / group) * a->C + i);
        mean += p[j] * dp[j];
    }
    for (int j = 0; j < seen_end(a, t); j++)
        for (int i = 0; i < a->C; i++) {
            int64_t key = (j * a->G + h / group) * a->C + i;
            double ds = p[j] * (dp[j] - mean) * a->scale;
            grads[0][at + i] += ds * array_get(a->k, key);
            grads[1][key] += ds * array_get(a->q, at + i);
            grads[2][key] += p[j] * array_get(dout, at + i);
        }
    return mean;
}

void ref_attention_backward(et_context *ctx, et_array dq, et_array dk, et_array dv, float *delta, et_array dout,
                            et_array out, const float *lse, et_array q, et_array k, et_array v, const int32_t *begin,
                            const int32_t *end, const int32_t *position, float scale, int window, int Q, int T, int H,
                            int G, int C) {
    (void)ctx;
    (void)out;
    (void)lse;
    struct heads a = {q, k, begin, end, position, scale, window, T - Q, H, G, C};
    size_t sizes[3] = {(size_t)Q * H * C, (size_t)T * G * C, (size_t)T * G * C};
    et_array outputs[3] = {dq, dk, dv};
    double *grads[3];
    double *p = malloc((size_t)T * sizeof *p);
    double *dp = malloc((size_t)T * sizeof *dp);
    for (int i = 0; i < 3; i++)
        grads[i] = calloc(sizes[i], sizeof **grads);
    for (int h = 0; h < H; h++)
        for (int t = T - Q; t < T; t++)
            delta[h * (int64_t)Q + t - a.first] = (float)query_backward(grads, p, dp, dout, v, &a, t, h);
    for (int i = 0; i < 3; i++) {
        for (size_t j = 0; j < sizes[i]; j++)
            array_put(outputs[i], (int64_t)j, grads[i][j]);
        free(grads[i]);
    }
    free(p);
    free(dp);
}

/* ---- element by element -------------------------------------------------------------------------------------- */
void ref_add_bias(et_context *ctx, et_array x, const float *bias, int T, int N) {
    (void)ctx;
    for (int64_t i = 0; i < (int64_t)T * N; i++)
        array_put(x, i, array_get(x, i) + bias[i % N]);
}

void ref_copy(et_context *ctx, et_array out, et_array inp, int64_t n) {
    (void)ctx;
    for (int64_t i = 0; i < n; i++)
        array_put(out, i, array_get(inp, i));
}

void ref_add(et_context *ctx, float *x, const float *y, int64_t n) {
    (void)ctx;
    for (int64_t i = 0; i < n; i++)
        x[i] += y[i];
}

void ref_scale(et_context *ctx, float *x, float s, int64_t n) {
    (void)ctx;
    for (int64_t i = 0; i < n; i++)
        x[i] *= s;
}

static uint64_t mix64(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint32_t mix32(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

/* These bits are part of the contract, as a run must repeat on every machine: 2^14 values share a 64-bit key. */
static uint32_t random_bits(uint64_t seed, int64_t i) {
    uint64_t key = mix64(seed ^ mix64((uint64_t)i >> 14));
    return mix32(mix32((uint32_t)(i & 0x3fff) ^ (uint32_t)key) ^ (uint32_t)(key >> 32));
}

void ref_dropout(et_context *ctx, et_array out, et_array inp, float p, uint64_t seed, int accumulate, int64_t n) {
    (void)ctx;
    for (int64_t i = 0; i < n; i++) {
        double x = array_get(inp, i);
        double kept = random_bits(seed, i) >= p * 4294967296.0 ? x / (1.0 - p) : x * 0.0;
        array_put(out, i, accumulate ? array_get(out, i) + kept : kept);
    }
}

void ref_adamw(et_context *ctx, float *param, const float *grad, float *m, float *v, float lr, float beta1, float beta2,
               float eps, float weight_decay, int64_t step, int64_t n) {
    (void)ctx;
    for (int64_t i = 0; i < n; i++) {
        double g = grad[i];
        double first = beta1 * (double)m[i] + (1.0 - beta1) * g;
        double second = beta2 * (double)v[i] + (1.0 - beta2) * g * g;
        double unbiased = second / (1.0 - pow(beta2, (double)step));
        double update = first / (1.0 - pow(beta1, (double)step)) / (sqrt(unbiased) + eps);
        param[i] = (float)(param[i] - lr * ((double)weight_decay * param[i] + update));
        m[i] = (float)first;
        v[i] = (float)second;
    }
}

/* A block's m [ET_MOMENTS] and v; scales are floats, codes as et.h says. */
static void put_moments(struct et_moments *to, const double *m, const double *v, uint64_t seed, int64_t at) {
    double most_m = 0.0;
    double most_v = 0.0;
    for (int i = 0; i < ET_MOMENTS; i++) {
        most_m = fmax(most_m, fabs(m[i]));
        most_v = fmax(most_v, v[i]);
    }
    to->m_scale = most_m > 0.0 ? (float)most_m : 1.0f;
    to->v_scale = most_v > 0.0 ? (float)most_v : 1.0f;
    for (int i = 0; i < ET_MOMENTS; i++) {
        double code = floor(127.0 * pow(fabs(m[i]) / to->m_scale, 0.25) + 0.5);
        to->m[i] = (int8_t)(m[i] < 0.0 ? -code : code);
        double x = v[i] / to->v_scale;
        double low = fmin(floor(255.0 * pow(x, 0.125)), 254.0);
        double below = pow(low / 255.0, 8.0);
        double above = pow((low + 1.0) / 255.0, 8.0);
        int up = (random_bits(seed, at + i) >> 8) * 0x1p-24 < (x - below) / (above - below);
        to->v[i] = (uint8_t)(low + (up || (low == 0.0 && x > 0.0)));
    }
}

void ref_adamw8(et_context *ctx, float *param, const float *grad, struct et_moments *moments, float lr, float beta1,
                float beta2, float eps, float weight_decay, int64_t step, uint64_t seed, int64_t n) {
    (void)ctx;
    for (int64_t at = 0; at < n; at += ET_MOMENTS, moments++) {
        double m[ET_MOMENTS], v[ET_MOMENTS];
        for (int i = 0; i < ET_MOMENTS; i++) {
            m[i] = copysign(moments->m_scale * pow(abs(moments->m[i]) / 127.0, 4.0), moments->m[i]);
            v[i] = moments->v_scale * pow(moments->v[i] / 255.0, 8.0);
        }
        for (int64_t i = at; i < n && i < at + ET_MOMENTS; i++) {
            double g = grad[i];
            double *first = &m[i - at];
            double *second = &v[i - at];
            *first = beta1 * *first + (1.0 - beta1) * g;
            *second = beta2 * *second + (1.0 - beta2) * g * g;
            double update = *first / (1.0 - pow(beta1, (double)step));
            update /= sqrt(*second / (1.0 - pow(beta2, (double)step))) + eps;
            param[i] = (float)(param[i] - lr * ((double)weight_decay * param[i] + update));
        }
        put_moments(moments, m, v, seed, at);
    }
}

void ref_sum_squares(et_context *ctx, double *out, const float *x, int64_t n) {
    (void)ctx;
    *out = 0.0;
    for (int64_t i = 0; i < n; i++)
        *out += (double)x[i] * x[i];
}

/* ---- head ---------------------------------------------------------------------------------------------------- */
/* z [V] = h . w^T, capped, h from element `at`, w already float; returns log-sum-exp */
static double token_logits(double *z, et_array h, int64_t at, const float *w, double cap, int V, int D) {
    double max = -INFINITY;
    double sum = 0.0;
    for (int v = 0; v < V; v++) {
        z[v] = 0.0;
        for (int i = 0; i < D; i++)
            z[v] += array_get(h, at + i) * w[(size_t)v * D + i];
        z[v] = cap > 0 ? cap * tanh(z[v] / cap) : z[v];
        max = z[v] > max ? z[v] : max;
    }
    for (int v = 0; v < V; v++)
        sum += exp(z[v] - max);
    return max + log(sum);
}

void ref_head_forward(et_context *ctx, float *logp, int32_t *best, float *logits, float *state, et_array h,
                      const void *w, int format, const int32_t *targets, float cap, int block, int begin, int end,
                      int T, int V, int D) {
    (void)logits, (void)state, (void)block, (void)begin, (void)end; /* all at once */
    float *values = malloc((size_t)V * D * sizeof *values);
    double *z = malloc((size_t)V * sizeof *z);
    ref_dequantize(ctx, values, w, format, (int64_t)V * D);
    for (int t = 0; t < T; t++) {
        double lse = token_logits(z, h, (int64_t)t * D, values, cap, V, D);
        logp[t] = (float)(z[targets[t]] - lse);
        if (!best)
            continue;
        best[t] = 0;
        for (int v = 1; v < V; v++)
            best[t] = z[v] > z[best[t]] ? v : best[t];
    }
    free(values);
    free(z);
}

void ref_head_backward(et_context *ctx, float *dh, float *logp, float *logits, et_array e, float *state, et_array h,
                       const void *w, int format, const int32_t *targets, const float *a, float cap, int block,
                       int begin, int end, int T, int V, int D) {
    (void)logits, (void)e, (void)state, (void)block, (void)begin, (void)end;
    float *values = malloc((size_t)V * D * sizeof *values);
    double *z = malloc((size_t)V * sizeof *z);
    ref_dequantize(ctx, values, w, format, (int64_t)V * D);
    for (int t = 0; t < T; t++) {
        double lse = token_logits(z, h, (int64_t)t * D, values, cap, V, D);
        logp[t] = (float)(z[targets[t]] - lse);
        for (int i = 0; i < D; i++) {
            double sum = 0.0;
            for (int v = 0; v < V; v++) {
                double slope = cap > 0 ? 1 - z[v] / cap * (z[v] / cap) : 1;
                sum += slope * (exp(z[v] - lse) - (v == targets[t])) * values[(size_t)v * D + i];
            }
            dh[(size_t)t * D + i] = (float)(a[t] * sum);
        }
    }
    free(values);
    free(z);
}
