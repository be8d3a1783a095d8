/* Checks of convolutions against ref_mixers.c, through et.h. */
#include "check.h"

#include <string.h>

static const double CLOSE = 2e-6;

static et_array floats(float *x) { return (et_array){x, ET_F32}; }

/* The type of array i: each has a bit of `types`, set for bf16. */
static int type(int types, int i) { return types >> i & 1 ? ET_BF16 : ET_F32; }

/* The token before each: documents of several lengths, and branches. */
static int32_t *forest(int T, uint64_t seed) {
    int32_t *before = check_ints((size_t)T, T, seed);
    for (int t = 0; t < T; t++)
        before[t] = t % 7 == 0 ? -1 : t % 5 == 3 ? before[t] % t : t - 1;
    return before;
}

/* types: of inp and its gradient, of out and its gradient. */
static void check_conv(struct check *c, int T, int D, int L, int types) {
    size_t n = (size_t)T * (size_t)D;
    et_array inp = check_array(3 * n, type(types, 0), 1);
    et_array dout = check_array(n, type(types, 1), 2);
    et_array out = check_array(n, type(types, 1), 3);
    et_array dinp = check_array(3 * n, type(types, 0), 4);
    float *w = check_floats((size_t)L * (size_t)D, 5);
    float *want = check_floats(3 * n, 6);
    float *sums = check_floats(n, 7);
    int32_t *before = forest(T, 8);
    et_conv_forward(c->ctx, out, inp, w, before, T, D, L);
    ref_conv_forward(NULL, floats(want), inp, w, before, T, D, L);
    check_array_close(c, out, want, n, CLOSE, "conv_forward T %d D %d L %d types %d", T, D, L, types);
    et_conv_backward(c->ctx, dinp, sums, dout, inp, w, before, T, D, L);
    ref_conv_backward(NULL, floats(want), sums, dout, inp, w, before, T, D, L);
    check_array_close(c, dinp, want, 3 * n, CLOSE, "conv_backward T %d D %d L %d types %d", T, D, L, types);
    check_free();
}

/* The D channels from `first` on of W. types: of inp and its gradient, of out and its gradient. */
static void check_causal_conv(struct check *c, int T, int W, int D, int first, int L, int biased, int types) {
    size_t n = (size_t)T * (size_t)D;
    size_t wide = (size_t)T * (size_t)W;
    et_array inp = check_array(wide, type(types, 0), 1);
    et_array dout = check_array(n, type(types, 1), 2);
    et_array out = check_array(n, type(types, 1), 3);
    et_array dinp = check_array(wide, type(types, 0), 4);
    float *truth = check_values(dinp, wide);
    float *w = check_floats((size_t)L * (size_t)D, 5);
    float *bias = biased ? check_floats((size_t)D, 6) : NULL;
    float *want = check_floats(n, 7);
    float *sums = check_floats(n, 8);
    int32_t *before = forest(T, 9);
    for (size_t i = 0; i < wide; i++)
        array_put(inp, (int64_t)i, array_get(inp, (int64_t)i) * 8);
    et_causal_conv_forward(c->ctx, out, inp, w, bias, before, first, T, W, D, L);
    ref_causal_conv_forward(NULL, floats(want), inp, w, bias, before, first, T, W, D, L);
    check_array_close(c, out, want, n, CLOSE, "causal_conv_forward T %d W %d D %d first %d L %d biased %d types %d", T,
                      W, D, first, L, biased, types);
    et_causal_conv_backward(c->ctx, dinp, sums, dout, inp, w, bias, before, first, T, W, D, L);
    ref_causal_conv_backward(NULL, floats(truth), sums, dout, inp, w, bias, before, first, T, W, D, L);
    check_array_close(c, dinp, truth, wide, CLOSE,
                      "causal_conv_backward T %d W %d D %d first %d L %d biased %d types %d", T, W, D, first, L, biased,
                      types);
    check_free();
}

void check_mixers(struct check *c) {
    if (strcmp(c->isa, "cuda") == 0) /* has none of these ops */
        return;
    for (int types = 0; types < 4; types++) {
        check_conv(c, 1, 1, 3, types);
        check_conv(c, 33, 64, 3, types);
        check_conv(c, 20, 75, 4, types);
        for (int biased = 0; biased < 2; biased++) {
            check_causal_conv(c, 1, 1, 1, 0, 4, biased, types);
            check_causal_conv(c, 33, 64, 64, 0, 4, biased, types);
            check_causal_conv(c, 40, 300, 139, 97, 4, biased, types);
            check_causal_conv(c, 20, 76, 75, 1, 2, biased, types);
        }
    }
}
