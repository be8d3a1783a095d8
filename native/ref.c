#include "ref.h"

#include <stdlib.h>

static float *floats(const void *w, int format, int64_t n) {
    float *out = malloc((size_t)n * sizeof *out);
    if (!out)
        abort();
    unpack(out, w, format, 0, n);
    return out;
}

static void store(float *out, double value, int accumulate) { *out = (float)(value + (accumulate ? (double)*out : 0)); }

void ref_matmul_forward(et_context *ctx, float *out, const float *inp, const void *w, int format, float scale,
                        int accumulate, int T, int N, int K) {
    float *W = floats(w, format, (int64_t)N * K);
    (void)ctx;
    for (int64_t t = 0; t < T; t++)
        for (int64_t n = 0; n < N; n++) {
            double sum = 0;
            for (int64_t k = 0; k < K; k++)
                sum += (double)inp[t * K + k] * (double)W[n * K + k];
            store(&out[t * N + n], (double)scale * sum, accumulate);
        }
    free(W);
}

void ref_matmul_backward(et_context *ctx, float *dinp, const float *dout, const void *w, int format, float scale,
                         int accumulate, int T, int N, int K) {
    float *W = floats(w, format, (int64_t)N * K);
    (void)ctx;
    for (int64_t t = 0; t < T; t++)
        for (int64_t k = 0; k < K; k++) {
            double sum = 0;
            for (int64_t n = 0; n < N; n++)
                sum += (double)dout[t * N + n] * (double)W[n * K + k];
            store(&dinp[t * K + k], (double)scale * sum, accumulate);
        }
    free(W);
}

/* What is defined is how numbers are rounded, so that is taken from quant.h. */
static void int8_forward(float *out, const float *inp, const float *W, const void *w, int format, float scale,
                         int accumulate, int T, int N, int K) {
    for (int64_t t = 0; t < T; t++)
        for (int64_t n = 0; n < N; n++) {
            double sum = 0;
            for (int64_t k = 0; k < K; k += 32) {
                int8_t x[32], q[32];
                float dx, d, m;
                quantize_32(x, &dx, inp + t * K + k);
                weight_32(q, &d, &m, W + n * K + k, w, format, n * K + k);
                for (int i = 0; i < 32; i++)
                    sum += (double)dx * x[i] * ((double)d * q[i] + (double)m);
            }
            store(&out[t * N + n], (double)scale * sum, accumulate);
        }
}

static float *rounded_to_bf16(const float *x, int64_t n) {
    float *out = floats(x, ET_F32, n);
    for (int64_t i = 0; i < n; i++)
        out[i] = bits_to_float((uint32_t)float_to_bf16(x[i]) << 16);
    return out;
}

void ref_product(const char *numbers, int backward, float *out, const float *inp, const void *w, int format,
                 float scale, int accumulate, int T, int N, int K) {
    int64_t in_size = (int64_t)T * (backward ? N : K);
    float *W = floats(w, format, (int64_t)N * K);
    int bf16 = strcmp(numbers, "bf16") == 0;
    float *x = bf16 ? rounded_to_bf16(inp, in_size) : floats(inp, ET_F32, in_size);
    float *r = bf16 ? rounded_to_bf16(W, (int64_t)N * K) : floats(W, ET_F32, (int64_t)N * K);
    if (strcmp(numbers, "int8") == 0)
        int8_forward(out, inp, W, w, format, scale, accumulate, T, N, K);
    else
        (backward ? ref_matmul_backward : ref_matmul_forward)(NULL, out, x, r, ET_F32, scale, accumulate, T, N, K);
    free(W);
    free(x);
    free(r);
}

void ref_matmul_dweight(et_context *ctx, float *dw, const float *dout, const float *inp, float scale, int T, int N,
                        int K) {
    (void)ctx;
    for (int64_t n = 0; n < N; n++)
        for (int64_t k = 0; k < K; k++) {
            double sum = 0;
            for (int64_t t = 0; t < T; t++)
                sum += (double)dout[t * N + n] * (double)inp[t * K + k];
            store(&dw[n * K + k], (double)scale * sum, 1);
        }
}

void ref_dequantize(et_context *ctx, float *out, const void *w, int format, int64_t n) {
    (void)ctx;
    unpack(out, w, format, 0, n);
}

void ref_embed(et_context *ctx, float *out, const int32_t *tokens, const void *w, int format, float scale, int T, int V,
               int D) {
    float *W = floats(w, format, (int64_t)V * D);
    (void)ctx;
    for (int64_t t = 0; t < T; t++)
        for (int64_t d = 0; d < D; d++)
            out[t * D + d] = scale * W[(int64_t)tokens[t] * D + d];
    free(W);
}
