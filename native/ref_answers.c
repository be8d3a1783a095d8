/* The truth of the ops for answers: cache, attention over paths of it, tokens that are drawn. */
#include "ref.h"

#include <math.h>
#include <stdlib.h>

/* Where element c of the key, or of the value, in a slot is. */
static int64_t key_at(int slot, int g, int c, int G, int C) {
    return (((int64_t)(slot / ET_CACHE) * G + g) * C + c) * ET_CACHE + slot % ET_CACHE;
}

static int64_t value_at(int slot, int g, int c, int G, int C) {
    return (((int64_t)(slot / ET_CACHE) * G + g) * ET_CACHE + slot % ET_CACHE) * C + c;
}

void ref_cache_store(et_context *ctx, et_array keys, et_array values, et_array k, et_array v, const int32_t *slot,
                     int T, int L, int G, int C) {
    (void)ctx, (void)L;
    for (int t = 0; t < T; t++)
        for (int g = 0; g < G; g++)
            for (int c = 0; c < C; c++) {
                array_put(keys, key_at(slot[t], g, c, G, C), array_get(k, ((int64_t)t * G + g) * C + c));
                array_put(values, value_at(slot[t], g, c, G, C), array_get(v, ((int64_t)t * G + g) * C + c));
            }
}

/* The slots of a path, in order; returns how many there are. */
static int slots_of(int *slots, const int32_t *path, int P) {
    int n = 0;
    for (int i = 0; i < P && path[i] >= 0; i++)
        for (int slot = path[i] / ET_CACHE * ET_CACHE; slot <= path[i]; slot++)
            slots[n++] = slot;
    return n;
}

void ref_attention_cached(et_context *ctx, et_array out, et_array q, et_array keys, et_array values,
                          const int32_t *path, float scale, int window, int T, int P, int L, int H, int G, int C) {
    (void)ctx, (void)L;
    int *slots = malloc((size_t)P * ET_CACHE * sizeof *slots);
    double *p = malloc((size_t)P * ET_CACHE * sizeof *p);
    for (int t = 0; t < T; t++) {
        int n = slots_of(slots, path + (int64_t)t * P, P);
        int first = window && n > window ? n - window : 0;
        for (int h = 0; h < H; h++) {
            int g = h / (H / G);
            double max = -INFINITY;
            double sum = 0.0;
            for (int j = first; j < n; j++) {
                p[j] = 0.0;
                for (int c = 0; c < C; c++)
                    p[j] += scale * array_get(q, ((int64_t)t * H + h) * C + c) *
                            array_get(keys, key_at(slots[j], g, c, G, C));
                max = fmax(max, p[j]);
            }
            for (int j = first; j < n; j++)
                sum += p[j] = exp(p[j] - max);
            for (int c = 0; c < C; c++) {
                double x = 0.0;
                for (int j = first; j < n; j++)
                    x += p[j] / sum * array_get(values, value_at(slots[j], g, c, G, C));
                array_put(out, ((int64_t)t * H + h) * C + c, x);
            }
        }
    }
    free(slots);
    free(p);
}

/* z [V] = h . w^T, capped, h from element `at`, w already float */
static void all_logits(double *z, et_array h, int64_t at, const float *w, double cap, int V, int D) {
    for (int v = 0; v < V; v++) {
        z[v] = 0.0;
        for (int i = 0; i < D; i++)
            z[v] += array_get(h, at + i) * w[(size_t)v * D + i];
        z[v] = cap > 0 ? cap * tanh(z[v] / cap) : z[v];
    }
}

/* log of the sum of exp(heat * z) over z >= limit */
static double log_sum(const double *z, int V, double heat, double limit) {
    double max = -INFINITY;
    double sum = 0.0;
    for (int v = 0; v < V; v++)
        max = fmax(max, heat * z[v]);
    for (int v = 0; v < V; v++)
        sum += z[v] >= limit ? exp(heat * z[v] - max) : 0.0;
    return max + log(sum);
}

static uint32_t mix(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

double ref_noise(const int32_t key[2], int token) {
    uint32_t bits = mix(mix((uint32_t)token ^ (uint32_t)key[0]) ^ (uint32_t)key[1]);
    double rest = fmin(((bits >> 1) + 0.5) * 0x1p-31, 1.0 - 0x1p-24);
    return -log(-log1p(-rest));
}

void ref_head_sample(et_context *ctx, int32_t *token, float *logp, float *drawn, float *logits, float *state,
                     et_array h, const void *w, int format, const int32_t *key, const float *limit, float temperature,
                     float cap, int block, int begin, int end, int T, int V, int D) {
    (void)logits, (void)state, (void)block, (void)begin, (void)end; /* all at once */
    float *values = malloc((size_t)V * D * sizeof *values);
    double *z = malloc((size_t)V * sizeof *z);
    ref_dequantize(ctx, values, w, format, (int64_t)V * D);
    for (int t = 0; t < T; t++) {
        double heat = temperature > 0 ? 1.0 / temperature : 0.0;
        double least = limit && heat > 0 ? limit[t] : -INFINITY;
        double best = -INFINITY;
        all_logits(z, h, (int64_t)t * D, values, cap, V, D);
        for (int v = 0; v < V; v++) {
            double noisy = heat > 0 ? heat * z[v] + ref_noise(key + 2 * t, v) : z[v];
            if (z[v] >= least && noisy > best) {
                best = noisy;
                token[t] = v;
            }
        }
        logp[t] = (float)(z[token[t]] - log_sum(z, V, 1.0, -INFINITY));
        drawn[t] = heat > 0 ? (float)(heat * z[token[t]] - log_sum(z, V, heat, least)) : 0.0f;
    }
    free(values);
    free(z);
}

static int descending(const void *a, const void *b) {
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x < y) - (x > y);
}

void ref_head_top(et_context *ctx, float *top, float *lse, float *logits, float *state, et_array h, const void *w,
                  int format, const float *limit, float cap, int block, int begin, int end, int T, int M, int V,
                  int D) {
    (void)logits, (void)state, (void)block, (void)begin, (void)end;
    float *values = malloc((size_t)V * D * sizeof *values);
    double *z = malloc((size_t)V * sizeof *z);
    ref_dequantize(ctx, values, w, format, (int64_t)V * D);
    for (int t = 0; t < T; t++) {
        all_logits(z, h, (int64_t)t * D, values, cap, V, D);
        lse[t] = (float)log_sum(z, V, 1.0, -INFINITY);
        qsort(z, (size_t)V, sizeof *z, descending);
        int v = 0;
        while (v < V && z[v] >= limit[t])
            v++;
        for (int i = 0; i < M; i++, v++)
            top[(size_t)t * M + i] = v < V ? (float)z[v] : -INFINITY;
    }
    free(values);
    free(z);
}
