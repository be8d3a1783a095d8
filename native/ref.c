#include "ref.h"

#include <stdlib.h>

static float *floats(const void *w, int format, int64_t n) {
    float *out = malloc((size_t)n * sizeof *out);
    if (!out)
        abort();
    unpack(out, w, format, 0, n);
    return out;
}

static float *array_floats(et_array a, int64_t n) { return floats(a.data, a.type, n); }

/* c [M, N] (accumulate: +)= scale * sum, element (m, n) of it at sum[m * N + n] */
static void store(et_array c, const double *sum, float scale, int accumulate, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        array_put(c, i, (double)scale * sum[i] + (accumulate ? array_get(c, i) : 0));
}

/* sum [M, N] += a [M, K] . b, where b is [N, K] or [K, N] */
static void add_product(double *sum, const float *a, const float *b, int transposed, int M, int N, int K) {
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++)
            for (int64_t k = 0; k < K; k++)
                sum[m * N + n] += (double)a[m * K + k] * (double)b[transposed ? n * K + k : k * N + n];
}

/* n numbers, `stride` apart, to multiples of a 127th of the largest. */
static void round_run(float *x, ptrdiff_t stride, int n) {
    float most = 0;
    for (int i = 0; i < n; i++)
        most = fmaxf(most, fabsf(x[i * stride]));
    for (int i = 0; i < n; i++)
        x[i * stride] = most < 0x1p-100f ? 0 : rintf(x[i * stride] * (127 / most)) * (most / 127);
}

/* x [rows, columns] along its rows or across, in runs */
static void round_to_int8(float *x, int across, int rows, int columns, int run) {
    for (int r = 0; r < rows; r += across ? run : 1)
        for (int c = 0; c < columns; c += across ? 1 : run) {
            int left = across ? rows - r : columns - c;
            round_run(x + (int64_t)r * columns + c, across ? columns : 1, left < run ? left : run);
        }
}

static void round_to_bf16(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        x[i] = bits_to_float((uint32_t)float_to_bf16(x[i]) << 16);
}

void ref_product(const char *numbers, int backward, et_array out, et_array inp, const void *w, int format,
                 const float *x, const float *y, float scale, int accumulate, int T, int N, int K, int R) {
    int inner = backward ? N : K;
    int outer = backward ? K : N;
    int bf16 = strcmp(numbers, "bf16") == 0;
    int int8 = strncmp(numbers, "int8", 4) == 0;
    int run = strcmp(numbers, "int8") == 0 ? 32 : 128;
    float *parts[4] = {array_floats(inp, (int64_t)T * inner), floats(w, format, (int64_t)N * K),
                       R ? floats(x, ET_F32, (int64_t)T * R) : NULL, R ? floats(y, ET_F32, (int64_t)R * outer) : NULL};
    int64_t sizes[4] = {(int64_t)T * inner, (int64_t)N * K, (int64_t)T * R, (int64_t)R * outer};
    double *sum = calloc((size_t)T * (size_t)outer, sizeof *sum);
    for (int i = 0; i < 4 && bf16; i++)
        round_to_bf16(parts[i], parts[i] ? sizes[i] : 0);
    if (int8) {
        round_to_int8(parts[0], 0, T, inner, run);
        if (backward || !keeps_codes(format)) /* else w has such numbers */
            round_to_int8(parts[1], backward, N, K, run);
    }
    add_product(sum, parts[0], parts[1], !backward, T, outer, inner);
    if (R)
        add_product(sum, parts[2], parts[3], !backward, T, outer, R);
    store(out, sum, scale, accumulate, (int64_t)T * outer);
    for (int i = 0; i < 4; i++)
        free(parts[i]);
    free(sum);
}

void ref_matmul_forward(et_context *ctx, et_array out, et_array inp, const void *w, int format, const float *x,
                        const float *y, float scale, int accumulate, int T, int N, int K, int R) {
    (void)ctx;
    ref_product("float", 0, out, inp, w, format, x, y, scale, accumulate, T, N, K, R);
}

void ref_matmul_backward(et_context *ctx, et_array dinp, et_array dout, const void *w, int format, const float *x,
                         const float *y, float scale, int accumulate, int T, int N, int K, int R) {
    (void)ctx;
    ref_product("float", 1, dinp, dout, w, format, x, y, scale, accumulate, T, N, K, R);
}

void ref_matmul_dweight(et_context *ctx, float *dw, et_array dout, et_array inp, float scale, int T, int N, int K) {
    (void)ctx;
    for (int64_t n = 0; n < N; n++)
        for (int64_t k = 0; k < K; k++) {
            double sum = 0;
            for (int64_t t = 0; t < T; t++)
                sum += array_get(dout, t * N + n) * array_get(inp, t * K + k);
            dw[n * K + k] = (float)((double)scale * sum + dw[n * K + k]);
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
