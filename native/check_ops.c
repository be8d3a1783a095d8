/* Checks of all ops that no other file checks, against ref_ops.c, through et.h. Sizes straddle the
 * blocks: one value, less than a vector, just past a block. */
#include "check.h"

#include <math.h>
#include <string.h>

static const double EXACT = 1e-12;
static const double CLOSE = 2e-6;

/* ---- norm, rope, glu ----------------------------------------------------------------------------------------- */
static et_array floats(float *x) { return (et_array){x, ET_F32}; }

/* The type of array i: each has a bit of `types`, set for bf16. */
static int type(int types, int i) { return types >> i & 1 ? ET_BF16 : ET_F32; }

static void multiply(et_array a, size_t n, float s) {
    for (size_t i = 0; i < n; i++)
        array_put(a, (int64_t)i, array_get(a, (int64_t)i) * s);
}

/* types: of inp, of out and dinp, of dout. */
static void check_rmsnorm(struct check *c, int64_t rows, int D, float size, int types) {
    size_t n = (size_t)(rows * D);
    size_t R = (size_t)rows;
    et_array inp = check_array(n, type(types, 0), 1);
    et_array dout = check_array(n, type(types, 2), 3);
    et_array out = check_array(n, type(types, 1), 4);
    et_array in_place = check_array_copy(dout, n);
    float *weight = check_floats((size_t)D, 2);
    float *rstd = check_floats(R, 5);
    float *want = check_floats(n, 6);
    float *scale = check_floats(R, 7);
    multiply(inp, n, size);
    et_array norm_in_place = check_array_copy(inp, n);
    et_rmsnorm_forward(c->ctx, out, rstd, inp, weight, 1e-6f, rows, D);
    ref_rmsnorm_forward(NULL, floats(want), scale, inp, weight, 1e-6f, rows, D);
    check_array_close(c, out, want, n, CLOSE, "rmsnorm_forward rows %d D %d size %g types %d", (int)rows, D, size,
                      types);
    check_close(c, rstd, scale, R, CLOSE, "rmsnorm_forward rstd rows %d D %d types %d", (int)rows, D, types);
    et_rmsnorm_forward(c->ctx, norm_in_place, rstd, norm_in_place, weight, 1e-6f, rows, D);
    check_array_close(c, norm_in_place, want, n, CLOSE, "rmsnorm_forward in place rows %d D %d", (int)rows, D);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        et_array dinp = check_array(n, type(types, 1), 8);
        float *truth = check_values(dinp, n);
        et_rmsnorm_backward(c->ctx, dinp, dout, inp, weight, scale, accumulate, rows, D);
        ref_rmsnorm_backward(NULL, floats(truth), dout, inp, weight, scale, accumulate, rows, D);
        check_array_close(c, dinp, truth, n, CLOSE, "rmsnorm_backward rows %d D %d accumulate %d types %d", (int)rows,
                          D, accumulate, types);
    }
    ref_rmsnorm_backward(NULL, floats(want), dout, inp, weight, scale, 0, rows, D);
    et_rmsnorm_backward(c->ctx, in_place, in_place, inp, weight, scale, 0, rows, D);
    check_array_close(c, in_place, want, n, CLOSE, "rmsnorm_backward in place rows %d D %d", (int)rows, D);
    check_free();
}

/* types: of inp, of out and dinp, of dout. offset: of the values, which is their mean. */
static void check_layernorm(struct check *c, int64_t rows, int D, float size, float offset, int types) {
    size_t n = (size_t)(rows * D);
    size_t R = (size_t)rows;
    et_array inp = check_array(n, type(types, 0), 1);
    et_array dout = check_array(n, type(types, 2), 3);
    et_array out = check_array(n, type(types, 1), 4);
    et_array in_place = check_array_copy(dout, n);
    float *weight = check_floats((size_t)D, 2);
    float *bias = check_floats((size_t)D, 10);
    float *mean = check_floats(R, 5), *rstd = check_floats(R, 6);
    float *true_mean = check_floats(R, 7), *true_rstd = check_floats(R, 8);
    float *want = check_floats(n, 9);
    for (size_t i = 0; i < n; i++)
        array_put(inp, (int64_t)i, (array_get(inp, (int64_t)i) + offset) * size);
    et_array norm_in_place = check_array_copy(inp, n);
    for (int has_bias = 0; has_bias < 2; has_bias++) {
        const float *b = has_bias ? bias : NULL;
        et_layernorm_forward(c->ctx, out, mean, rstd, inp, weight, b, 1e-6f, rows, D);
        ref_layernorm_forward(NULL, floats(want), true_mean, true_rstd, inp, weight, b, 1e-6f, rows, D);
        check_array_close(c, out, want, n, CLOSE, "layernorm_forward rows %d D %d size %g bias %d types %d", (int)rows,
                          D, size, has_bias, types);
    }
    check_close(c, mean, true_mean, R, CLOSE, "layernorm_forward mean rows %d D %d types %d", (int)rows, D, types);
    check_close(c, rstd, true_rstd, R, CLOSE, "layernorm_forward rstd rows %d D %d types %d", (int)rows, D, types);
    et_layernorm_forward(c->ctx, norm_in_place, mean, rstd, norm_in_place, weight, bias, 1e-6f, rows, D);
    check_array_close(c, norm_in_place, want, n, CLOSE, "layernorm_forward in place rows %d D %d", (int)rows, D);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        et_array dinp = check_array(n, type(types, 1), 8);
        float *truth = check_values(dinp, n);
        et_layernorm_backward(c->ctx, dinp, dout, inp, weight, true_mean, true_rstd, accumulate, rows, D);
        ref_layernorm_backward(NULL, floats(truth), dout, inp, weight, true_mean, true_rstd, accumulate, rows, D);
        check_array_close(c, dinp, truth, n, CLOSE, "layernorm_backward rows %d D %d accumulate %d types %d", (int)rows,
                          D, accumulate, types);
    }
    ref_layernorm_backward(NULL, floats(want), dout, inp, weight, true_mean, true_rstd, 0, rows, D);
    et_layernorm_backward(c->ctx, in_place, in_place, inp, weight, true_mean, true_rstd, 0, rows, D);
    check_array_close(c, in_place, want, n, CLOSE, "layernorm_backward in place rows %d D %d", (int)rows, D);
    check_free();
}

static void check_rope(struct check *c, int x_type, int neox, int T, int H, int C, int n_rot) {
    enum { P = 40 };
    size_t n = (size_t)T * H * C;
    size_t angles = (size_t)P * (n_rot / 2);
    et_array x = check_array(n, x_type, 1);
    float *cosines = check_floats(angles, 2);
    float *sines = check_floats(angles, 3);
    float *before = check_values(x, n);
    float *want = check_values(x, n);
    int32_t *positions = check_ints((size_t)T, P, 4);
    for (size_t i = 0; i < angles; i++) {
        float angle = cosines[i] * 3.0f;
        cosines[i] = cosf(angle);
        sines[i] = sinf(angle);
    }
    et_rope(c->ctx, x, cosines, sines, positions, neox, 1.0f, T, H, C, n_rot, P);
    ref_rope(NULL, floats(want), cosines, sines, positions, neox, 1.0f, T, H, C, n_rot, P);
    check_array_close(c, x, want, n, CLOSE, "rope type %d neox %d T %d H %d C %d n_rot %d", x_type, neox, T, H, C,
                      n_rot);
    et_rope(c->ctx, x, cosines, sines, positions, neox, -1.0f, T, H, C, n_rot, P);
    check_array_close(c, x, before, n, x_type == ET_F32 ? CLOSE : 0x1p-7,
                      "rope and back type %d neox %d T %d H %d C %d n_rot %d", x_type, neox, T, H, C, n_rot);
    check_free();
}

/* types: of gate and its gradient, of up and its gradient, of dout. */
static void check_glu(struct check *c, int kind, int64_t n, float size, int types) {
    size_t N = (size_t)n;
    et_array gate = check_array(N, type(types, 0), 1);
    et_array up = check_array(N, type(types, 1), 2);
    et_array dout = check_array(N, type(types, 2), 3);
    float *want = check_floats(N, 4);
    float *dgate = check_floats(N, 5);
    float *dup = check_floats(N, 6);
    multiply(gate, N, size);
    et_array out = check_array_copy(gate, N);
    et_array own_gate = check_array_copy(gate, N);
    et_array own_up = check_array_copy(up, N);
    et_array own_dout = check_array_copy(dout, N);
    et_array second_up = check_array_copy(up, N);
    et_glu_forward(c->ctx, out, out, up, kind, n);
    ref_glu_forward(NULL, floats(want), gate, up, kind, n);
    check_array_close(c, out, want, N, CLOSE, "glu_forward kind %d n %d size %g types %d", kind, (int)n, size, types);
    et_array act = check_array(N, type(types, 2), 7);
    float *act_want = check_floats(N, 8);
    ref_glu_backward(NULL, floats(dgate), floats(dup), floats(act_want), dout, gate, up, kind, n);
    et_glu_backward(c->ctx, own_gate, own_up, act, dout, own_gate, own_up, kind, n);
    check_array_close(c, act, act_want, N, CLOSE, "glu_backward act kind %d n %d size %g types %d", kind, (int)n, size,
                      types);
    check_array_close(c, own_gate, dgate, N, CLOSE, "glu_backward dgate kind %d n %d size %g types %d", kind, (int)n,
                      size, types);
    check_array_close(c, own_up, dup, N, CLOSE, "glu_backward dup kind %d n %d size %g types %d", kind, (int)n, size,
                      types);
    et_glu_backward(c->ctx, own_dout, second_up, act, own_dout, gate, second_up, kind, n);
    check_array_close(c, own_dout, dgate, N, CLOSE, "glu_backward dgate over dout kind %d n %d types %d", kind, (int)n,
                      types);
    check_array_close(c, second_up, dup, N, CLOSE, "glu_backward dup over up kind %d n %d types %d", kind, (int)n,
                      types);
    check_free();
}

/* types: of inp and dinp, of dout. */
static void check_gelu(struct check *c, int64_t n, float size, int types) {
    size_t N = (size_t)n;
    et_array inp = check_array(N, type(types, 0), 1);
    et_array dout = check_array(N, type(types, 1), 2);
    et_array act = check_array(N, type(types, 1), 3);
    float *want = check_floats(N, 4);
    float *dinp = check_floats(N, 5);
    multiply(inp, N, size);
    et_array out = check_array_copy(inp, N);
    et_array own_inp = check_array_copy(inp, N);
    et_array own_dout = check_array_copy(dout, N);
    et_gelu_forward(c->ctx, out, out, n);
    ref_gelu_forward(NULL, floats(want), inp, n);
    check_array_close(c, out, want, N, CLOSE, "gelu_forward n %d size %g types %d", (int)n, size, types);
    ref_gelu_backward(NULL, floats(dinp), floats(want), dout, inp, n);
    et_gelu_backward(c->ctx, own_dout, act, own_dout, inp, n);
    check_array_close(c, act, want, N, CLOSE, "gelu_backward act n %d size %g types %d", (int)n, size, types);
    check_array_close(c, own_dout, dinp, N, CLOSE, "gelu_backward over dout n %d size %g types %d", (int)n, size,
                      types);
    et_gelu_backward(c->ctx, own_inp, act, dout, own_inp, n);
    check_array_close(c, own_inp, dinp, N, CLOSE, "gelu_backward over inp n %d size %g types %d", (int)n, size, types);
    check_free();
}

/* Extreme gates: finite inputs give finite outputs, NaN comes out where it went in and nowhere else. */
static void check_glu_extremes(struct check *c) {
    static const float values[] = {0.0f, 1e30f, -1e30f, 88.8f, -88.8f, 104.0f, -104.0f, 1e-40f, NAN, 3e38f, -3e38f};
    enum { N = COUNT(values) };
    for (int kind = 0; kind < (strcmp(c->isa, "cuda") ? 4 : 3); kind++) {
        float *gate = check_floats(N, 1);
        float *up = check_floats(N, 2);
        float *out = check_floats(N, 3);
        float *dup = check_floats(N, 4);
        float *act = check_floats(N, 5);
        memcpy(gate, values, sizeof values);
        et_glu_forward(c->ctx, floats(out), floats(gate), floats(up), kind, N);
        int good = 1;
        for (int i = 0; i < N; i++)
            good &= isnan(gate[i]) ? isnan(out[i]) : isfinite(out[i]);
        check_true(c, good, "glu_forward of extreme gates kind %d", kind);
        et_glu_backward(c->ctx, floats(out), floats(dup), floats(act), floats(up), floats(gate), floats(up), kind, N);
        good = 1;
        for (int i = 0; i < N; i++)
            good &= isnan(gate[i]) ? isnan(out[i]) && isnan(dup[i]) : isfinite(out[i]) && isfinite(dup[i]);
        check_true(c, good, "glu_backward of extreme gates kind %d", kind);
        et_gelu_backward(c->ctx, floats(out), floats(act), floats(up), floats(gate), N);
        good = 1;
        for (int i = 0; i < N; i++) {
            float want = gate[i] > 80.0f ? gate[i] : 0.0f;
            good &= isnan(gate[i]) ? isnan(out[i]) && isnan(act[i]) : isfinite(out[i]) && fabsf(act[i] - want) < 1e-30f;
        }
        check_true(c, good, "gelu_backward of extremes");
        check_free();
    }
}

/* ---- head ---------------------------------------------------------------------------------------------------- */
static void check_head(struct check *c, int T, int V, int D, int block, int e_type, float size, float cap) {
    size_t n = (size_t)T * D;
    size_t rows = (size_t)T;
    size_t work = rows * (size_t)block;
    et_array h = check_array(n, e_type, 1);
    float *w = check_floats((size_t)V * D, 2);
    float *a = check_floats(rows, 3);
    float *logits = check_floats(work, 4);
    float *dh = check_floats(n, 5);
    float *want = check_floats(n, 6);
    float *logp = check_floats(rows, 7);
    float *truth = check_floats(rows, 8);
    float *state = check_floats(rows * ET_HEAD_STATE, 12);
    et_array e = e_type == ET_F32 ? (et_array){logits, ET_F32} : check_array(work, e_type, 13);
    int32_t *targets = check_ints(rows, V, 9);
    int32_t *best = check_ints(rows, V, 10);
    int32_t *top = check_ints(rows, V, 11);
    for (size_t i = 0; i < n; i++)
        array_put(h, (int64_t)i, array_get(h, (int64_t)i) * size);
    a[0] = 0.0f;
    et_head_forward(c->ctx, logp, best, logits, state, h, w, ET_F32, targets, cap, block, 0, V, T, V, D);
    ref_head_forward(NULL, truth, top, NULL, NULL, h, w, ET_F32, targets, cap, block, 0, V, T, V, D);
    check_close(c, logp, truth, rows, CLOSE, "head_forward T %d V %d D %d block %d size %g", T, V, D, block, size);
    check_true(c, !memcmp(best, top, rows * sizeof *best), "head_forward best T %d V %d D %d block %d", T, V, D, block);
    et_head_forward(c->ctx, logp, NULL, logits, state, h, w, ET_F32, targets, cap, block, 0, V, T, V, D);
    check_close(c, logp, truth, rows, CLOSE, "head_forward without best T %d V %d D %d", T, V, D);
    et_head_backward(c->ctx, dh, logp, logits, e, state, h, w, ET_F32, targets, a, cap, block, 0, V, T, V, D);
    ref_head_backward(NULL, want, truth, NULL, e, NULL, h, w, ET_F32, targets, a, cap, block, 0, V, T, V, D);
    check_close(c, logp, truth, rows, CLOSE, "head_backward logp T %d V %d D %d block %d", T, V, D, block);
    check_close(c, dh, want, n, e_type == ET_F32 ? 1e-5 : 4e-3, "head_backward T %d V %d D %d block %d size %g cap %g",
                T, V, D, block, size, cap);
    for (int begin = 0; begin < V; begin += V / 3 + 1) { /* in parts */
        int end = begin + V / 3 + 1 < V ? begin + V / 3 + 1 : V;
        et_head_backward(c->ctx, dh, logp, logits, e, state, h, w, ET_F32, targets, a, cap, block, begin, end, T, V, D);
    }
    check_close(c, logp, truth, rows, CLOSE, "head_backward in parts logp T %d V %d D %d block %d", T, V, D, block);
    check_close(c, dh, want, n, e_type == ET_F32 ? 1e-5 : 4e-3, "head_backward in parts T %d V %d D %d block %d", T, V,
                D, block);
    memcpy(want, dh, n * sizeof *dh);
    memcpy(truth, logp, rows * sizeof *logp);
    for (int begin = 0; begin < V; begin += V / 3 + 1) {
        int end = begin + V / 3 + 1 < V ? begin + V / 3 + 1 : V;
        et_head_backward(c->ctx, dh, logp, logits, e, state, h, w, ET_F32, targets, NULL, cap, block, begin, end, T, V,
                         D);
    }
    et_head_backward(c->ctx, dh, logp, logits, e, state, h, w, ET_F32, targets, a, cap, block, V, V, T, V, D);
    check_true(c, !memcmp(logp, truth, rows * sizeof *logp) && !memcmp(dh, want, n * sizeof *dh),
               "head_backward with a at the end T %d V %d D %d block %d cap %g", T, V, D, block, cap);
    ref_head_forward(NULL, truth, top, NULL, NULL, h, w, ET_F32, targets, cap, block, 0, V, T, V, D);
    for (int begin = 0; begin < V; begin += V / 3 + 1) {
        int end = begin + V / 3 + 1 < V ? begin + V / 3 + 1 : V;
        et_head_forward(c->ctx, logp, best, logits, state, h, w, ET_F32, targets, cap, block, begin, end, T, V, D);
    }
    check_close(c, logp, truth, rows, CLOSE, "head_forward in parts T %d V %d D %d block %d", T, V, D, block);
    check_true(c, !memcmp(best, top, rows * sizeof *best), "head_forward best in parts T %d V %d D %d", T, V, D);
    check_free();
}

/* ---- element by element -------------------------------------------------------------------------------------- */
static void check_sums(struct check *c, int T, int N) {
    size_t n = (size_t)T * N;
    float *x = check_floats(n, 1);
    float *y = check_floats(n, 2);
    float *want = check_copy(x, n);
    double got = 0.0;
    double sum = 0.0;
    et_add(c->ctx, x, y, (int64_t)n);
    ref_add(NULL, want, y, (int64_t)n);
    check_close(c, x, want, n, EXACT, "add n %d", (int)n);
    et_scale(c->ctx, x, -0.37f, (int64_t)n);
    ref_scale(NULL, want, -0.37f, (int64_t)n);
    check_close(c, x, want, n, EXACT, "scale n %d", (int)n);
    et_sum_squares(c->ctx, &got, x, (int64_t)n);
    ref_sum_squares(NULL, &sum, x, (int64_t)n);
    check_true(c, fabs(got - sum) <= 1e-13 * sum, "sum_squares n %d: %.17g, not %.17g", (int)n, got, sum);
    check_free();
}

static void check_copy_op(struct check *c, int out_type, int inp_type, int64_t n) {
    et_array inp = check_array((size_t)n, inp_type, 1);
    et_array out = check_array((size_t)n, out_type, 2);
    et_copy(c->ctx, out, inp, n);
    check_array_close(c, out, check_values(inp, (size_t)n), (size_t)n, EXACT, "copy types %d %d n %d", out_type,
                      inp_type, (int)n);
    check_free();
}

static void check_add_bias(struct check *c, int x_type, int T, int N) {
    size_t n = (size_t)T * N;
    et_array x = check_array(n, x_type, 1);
    float *bias = check_floats((size_t)N, 2);
    float *want = check_values(x, n);
    et_add_bias(c->ctx, x, bias, T, N);
    ref_add_bias(NULL, floats(want), bias, T, N);
    check_array_close(c, x, want, n, EXACT, "add_bias type %d T %d N %d", x_type, T, N);
    check_free();
}

/* types: of inp, of out. */
static void check_dropout(struct check *c, float p, int64_t n, int types) {
    size_t N = (size_t)n;
    uint64_t seed = 0x123456789abcdefu;
    et_array inp = check_array(N, type(types, 0), 1);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        et_array out = check_array(N, type(types, 1), 2);
        float *want = check_values(out, N);
        et_dropout(c->ctx, out, inp, p, seed, accumulate, n);
        ref_dropout(NULL, floats(want), inp, p, seed, accumulate, n);
        check_array_close(c, out, want, N, 2e-7, "dropout p %g n %d accumulate %d types %d", p, (int)n, accumulate,
                          types);
    }
    et_array in_place = check_array_copy(inp, N);
    float *want = check_values(inp, N);
    float *same = check_values(inp, N);
    et_dropout(c->ctx, in_place, in_place, p, seed, 0, n);
    ref_dropout(NULL, floats(want), inp, p, seed, 0, n);
    check_array_close(c, in_place, want, N, 2e-7, "dropout in place p %g n %d types %d", p, (int)n, types);
    if (p == 0.0f)
        check_true(c, !memcmp(check_values(in_place, N), same, N * sizeof *same), "dropout p 0 is the identity, n %d",
                   (int)n);
    check_free();
}

void check_ops(struct check *c) {
    static const int widths[] = {2, 3, 16, 64, 130, 576};
    static const int64_t lengths[] = {1, 7, 64, 1000, 16384, 40001};
    for (int i = 0; i < COUNT(widths); i++) {
        for (int types = 0; types < 8; types++) {
            check_rmsnorm(c, 1, widths[i], 1.0f, types);
            check_rmsnorm(c, 130, widths[i], 1e3f, types);
            if (widths[i] == 2) /* its gradient is 0 */
                continue;
            check_layernorm(c, 1, widths[i], 1.0f, -0.3f, types);
            check_layernorm(c, 130, widths[i], 1e3f, 0.5f, types);
        }
        for (int t = 0; t < 2; t++) {
            check_add_bias(c, type(t, 0), 1, widths[i]);
            check_add_bias(c, type(t, 0), 37, widths[i]);
        }
        check_sums(c, 1, widths[i]);
        check_sums(c, 37, widths[i]);
    }
    check_rmsnorm(c, 2, 20000, 1e-4f, 0);
    check_rmsnorm(c, 2, 20000, 1e-4f, 7);
    check_layernorm(c, 2, 20000, 1.0f, 0.1f, 0);
    check_layernorm(c, 2, 20000, 1.0f, 0.1f, 7);
    check_sums(c, 3, 40001);
    check_add_bias(c, ET_F32, 3, 40001);
    for (int i = 0; i < 4; i++) {
        int x_type = type(i, 1);
        int neox = i & 1;
        check_rope(c, x_type, neox, 1, 1, 2, 2);
        check_rope(c, x_type, neox, 17, 3, 64, 64);
        check_rope(c, x_type, neox, 130, 2, 80, 32);
        check_rope(c, x_type, neox, 5, 1, 256, 6);
        check_rope(c, x_type, neox, 5, 3, 40, 38);
    }
    for (int i = 0; i < COUNT(lengths); i++) {
        for (int kind = 0; kind < 3; kind++) {
            for (int types = 0; types < 8; types++) {
                check_glu(c, kind, lengths[i], 1.0f, types);
                check_glu(c, kind, lengths[i], lengths[i] == 1 ? 2.0f : 30.0f, types);
            }
        }
        for (int types = 0; types < 4; types++) {
            check_gelu(c, lengths[i], 1.0f, types);
            check_gelu(c, lengths[i], lengths[i] == 1 ? 2.0f : 30.0f, types);
            check_copy_op(c, type(types, 0), type(types, 1), lengths[i]);
            check_dropout(c, 0.0f, lengths[i], types);
            check_dropout(c, 0.1f, lengths[i], types);
        }
    }
    check_glu_extremes(c);
    for (int i = 0; i < 2; i++) {
        check_head(c, 1, 5, 32, 1, type(i, 0), 1.0f, 0);
        check_head(c, 2, 1, 32, 3, type(i, 0), 1.0f, 0);
        check_head(c, 5, 300, 64, 300, type(i, 0), 1.0f, 0);
        check_head(c, 17, 1001, 96, 128, type(i, 0), 20.0f, 0);
        if (strcmp(c->isa, "cuda")) {
            check_head(c, 5, 300, 64, 300, type(i, 0), 1.0f, 2.0f);
            check_head(c, 17, 1001, 96, 128, type(i, 0), 20.0f, 30.0f);
        }
    }
}
