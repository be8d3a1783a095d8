/* The truth of the scan of Mamba 2, in double precision: a state for each token, whatever the pieces. */
#include "ref.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct scan {
    et_array inp, rows;
    const float *bias, *a;
    const int32_t *before;
    int T, W, E, H, C, N, G;
    double *states, *dstates, *zeros; /* after each token, of one head: [T, N, C] */
};

static double *doubles(size_t n) {
    double *x = calloc(n, sizeof *x);
    if (!x)
        abort();
    return x;
}

static double raw(const struct scan *s, int t, int h) {
    return array_get(s->rows, (int64_t)(t + 1) * s->E - s->H + h) + (double)s->bias[h];
}

static double x_of(const struct scan *s, int t, int h, int j) {
    return array_get(s->inp, (int64_t)t * s->W + h * s->C + j);
}

/* Element i of B, or with `c` of C, of a head's group: its column in inp. */
static int64_t column(const struct scan *s, int t, int h, int i, int c) {
    int g = h / (s->H / s->G);
    return (int64_t)t * s->W + s->H * s->C + (c ? s->G + g : g) * s->N + i;
}

static double *state_of(const struct scan *s, double *states, int t) {
    return t < 0 ? s->zeros : states + (int64_t)t * s->N * s->C;
}

static struct scan new_scan(et_array inp, et_array rows, const float *bias, const float *a, const int32_t *before,
                            int T, int W, int E, int H, int C, int N) {
    size_t n = (size_t)N * (size_t)C;
    return (struct scan){inp,
                         rows,
                         bias,
                         a,
                         before,
                         T,
                         W,
                         E,
                         H,
                         C,
                         N,
                         (W - H * C) / (2 * N),
                         doubles(n * (size_t)T),
                         doubles(n * (size_t)T),
                         doubles(n)};
}

static void end_scan(struct scan *s) {
    free(s->states);
    free(s->dstates);
    free(s->zeros);
}

/* All states of a head. */
static void scan_head(const struct scan *s, int h) {
    for (int t = 0; t < s->T; t++) {
        double dt = log1p(exp(raw(s, t, h)));
        double decay = exp(dt * (double)s->a[h]);
        const double *last = state_of(s, s->states, s->before[t]);
        double *state = state_of(s, s->states, t);
        for (int i = 0; i < s->N; i++)
            for (int j = 0; j < s->C; j++)
                state[i * s->C + j] =
                    decay * last[i * s->C + j] + array_get(s->inp, column(s, t, h, i, 0)) * dt * x_of(s, t, h, j);
    }
}

void ref_ssm_forward(et_context *ctx, et_array out, float *states, float *steps, et_array inp, et_array rows,
                     const float *bias, const float *a, const float *skip, const int32_t *before, const int32_t *pieces,
                     int64_t floats, int T, int W, int E, int H, int C, int N, int P) {
    (void)ctx, (void)states, (void)steps, (void)pieces, (void)floats, (void)P;
    struct scan s = new_scan(inp, rows, bias, a, before, T, W, E, H, C, N);
    for (int h = 0; h < H; h++) {
        scan_head(&s, h);
        for (int t = 0; t < T; t++)
            for (int j = 0; j < C; j++) {
                double sum = (double)skip[h] * x_of(&s, t, h, j);
                for (int i = 0; i < N; i++)
                    sum += array_get(inp, column(&s, t, h, i, 1)) * state_of(&s, s.states, t)[i * C + j];
                array_put(out, ((int64_t)t * H + h) * C + j, sum);
            }
    }
    end_scan(&s);
}

/* What token t adds to the gradients of inp [W], and that of its dt; the state before it has its gradient after that. */
static double token_backward(const struct scan *s, double *dinp, et_array dout, double skip, int t, int h) {
    double dt = log1p(exp(raw(s, t, h)));
    double decay = exp(dt * (double)s->a[h]);
    const double *last = state_of(s, s->states, s->before[t]);
    const double *state = state_of(s, s->states, t);
    double *grad = state_of(s, s->dstates, t);
    double *before = state_of(s, s->dstates, s->before[t]);
    double *row = dinp - (int64_t)t * s->W;
    double ddt = 0;
    for (int j = 0; j < s->C; j++) {
        double x = x_of(s, t, h, j);
        double d = array_get(dout, ((int64_t)t * s->H + h) * s->C + j);
        dinp[h * s->C + j] += skip * d;
        for (int i = 0; i < s->N; i++) {
            int at = i * s->C + j;
            double b = array_get(s->inp, column(s, t, h, i, 0));
            grad[at] += array_get(s->inp, column(s, t, h, i, 1)) * d;
            row[column(s, t, h, i, 1)] += state[at] * d;
            row[column(s, t, h, i, 0)] += grad[at] * dt * x;
            dinp[h * s->C + j] += grad[at] * dt * b;
            ddt += grad[at] * (b * x + (double)s->a[h] * decay * last[at]);
            before[at] += decay * grad[at];
        }
    }
    return ddt;
}

void ref_ssm_backward(et_context *ctx, float *dinp, et_array drows, float *states, float *dstates, float *steps,
                      et_array dout, et_array inp, et_array rows, const float *bias, const float *a, const float *skip,
                      const int32_t *before, const int32_t *pieces, int64_t floats, int T, int W, int E, int H, int C,
                      int N, int P) {
    (void)ctx, (void)states, (void)dstates, (void)steps, (void)pieces, (void)floats, (void)P;
    struct scan s = new_scan(inp, rows, bias, a, before, T, W, E, H, C, N);
    double *grads = doubles((size_t)T * (size_t)W);
    for (int h = 0; h < H; h++) {
        scan_head(&s, h);
        memset(s.dstates, 0, (size_t)T * (size_t)N * (size_t)C * sizeof *s.dstates);
        for (int t = T - 1; t >= 0; t--) {
            double ddt = token_backward(&s, grads + (int64_t)t * W, dout, (double)skip[h], t, h);
            memset(s.zeros, 0, (size_t)N * (size_t)C * sizeof *s.zeros);
            array_put(drows, (int64_t)(t + 1) * E - H + h, ddt / (1 + exp(-raw(&s, t, h))));
        }
    }
    for (int64_t i = 0; i < (int64_t)T * W; i++)
        dinp[i] = (float)grads[i];
    free(grads);
    end_scan(&s);
}
