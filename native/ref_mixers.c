/* The truth of convolutions, in double precision. */
#include "ref.h"

#include <math.h>

/* (b * x) of token t, channel i. */
static double conv_value(et_array inp, int t, int i, int D) {
    return array_get(inp, (int64_t)t * 3 * D + i) * array_get(inp, ((int64_t)t * 3 + 2) * D + i);
}

static double conv_sum(et_array inp, const float *w, const int32_t *before, int t, int i, int D, int L) {
    double sum = 0;
    for (int j = 0; j < L && t >= 0; j++, t = before[t])
        sum += (double)w[(int64_t)j * D + i] * conv_value(inp, t, i, D);
    return sum;
}

void ref_conv_forward(et_context *ctx, et_array out, et_array inp, const float *w, const int32_t *before, int T, int D,
                      int L) {
    (void)ctx;
    for (int t = 0; t < T; t++)
        for (int i = 0; i < D; i++)
            array_put(out, (int64_t)t * D + i,
                      array_get(inp, ((int64_t)t * 3 + 1) * D + i) * conv_sum(inp, w, before, t, i, D, L));
}

void ref_conv_backward(et_context *ctx, et_array dinp, float *sums, et_array dout, et_array inp, const float *w,
                       const int32_t *before, int T, int D, int L) {
    (void)ctx, (void)sums;
    for (int s = 0; s < T; s++)
        for (int i = 0; i < D; i++) {
            double grad = 0; /* of b * x of token s: what all tokens that see it add */
            for (int t = s; t < T; t++) {
                int j = 0;
                int at = t;
                for (; j < L && at > s; j++)
                    at = before[at];
                if (j < L && at == s)
                    grad += array_get(dout, (int64_t)t * D + i) * array_get(inp, ((int64_t)t * 3 + 1) * D + i) *
                            (double)w[(int64_t)j * D + i];
            }
            int64_t row = (int64_t)s * 3 * D + i;
            array_put(dinp, row, grad * array_get(inp, row + 2 * D));
            array_put(dinp, row + D, array_get(dout, (int64_t)s * D + i) * conv_sum(inp, w, before, s, i, D, L));
            array_put(dinp, row + 2 * D, grad * array_get(inp, row));
        }
}

/* What SiLU takes, of channel i of token t. */
static double causal_conv_sum(et_array inp, const float *w, const float *bias, const int32_t *before, int first, int t,
                              int i, int W, int D, int L) {
    double sum = bias ? (double)bias[i] : 0;
    for (int j = 0; j < L && t >= 0; j++, t = before[t])
        sum += (double)w[(int64_t)j * D + i] * array_get(inp, (int64_t)t * W + first + i);
    return sum;
}

void ref_causal_conv_forward(et_context *ctx, et_array out, et_array inp, const float *w, const float *bias,
                             const int32_t *before, int first, int T, int W, int D, int L) {
    (void)ctx;
    for (int t = 0; t < T; t++)
        for (int i = 0; i < D; i++) {
            double sum = causal_conv_sum(inp, w, bias, before, first, t, i, W, D, L);
            array_put(out, (int64_t)t * D + i, sum / (1 + exp(-sum)));
        }
}

void ref_causal_conv_backward(et_context *ctx, et_array dinp, float *sums, et_array dout, et_array inp, const float *w,
                              const float *bias, const int32_t *before, int first, int T, int W, int D, int L) {
    (void)ctx, (void)sums;
    for (int s = 0; s < T; s++)
        for (int i = 0; i < D; i++) {
            double grad = 0; /* what all tokens that see token s add */
            for (int t = s; t < T; t++) {
                int j = 0;
                int at = t;
                for (; j < L && at > s; j++)
                    at = before[at];
                if (j == L || at != s)
                    continue;
                double sum = causal_conv_sum(inp, w, bias, before, first, t, i, W, D, L);
                double sigmoid = 1 / (1 + exp(-sum));
                double slope = sigmoid * (1 + sum * (1 - sigmoid));
                grad += array_get(dout, (int64_t)t * D + i) * slope * (double)w[(int64_t)j * D + i];
            }
            array_put(dinp, (int64_t)s * W + first + i, grad);
        }
}
