/* GELU without a gate: x Phi(x), Phi(x) = (1 + erf(x / sqrt(2))) / 2. */
#include "four.cuh"
#include "gelu.h"

DEVICE float normal_function(float x) { return 0.5f * erfcf(-0.7071067812f * x); }

DEVICE float gelu_slope(float x) { return normal_function(x) + x * 0.3989422804f * expf(-0.5f * x * x); }

KERNEL(gelu_forward, gelu_args) {
    EACH_FOUR(i, a.n) {
        four x = get_four(a.inp, i, a.n, a.whole);
        for (int k = 0; k < 4; k++)
            x.x[k] *= normal_function(x.x[k]);
        put_four(a.out, i, x, a.n, a.whole);
    }
}

/* dinp = dout * (Phi(inp) + inp * Phi'(inp)), and inp * Phi(inp) again */
KERNEL(gelu_backward, gelu_args) {
    EACH_FOUR(i, a.n) {
        four d = get_four(a.dout, i, a.n, a.whole);
        four x = get_four(a.inp, i, a.n, a.whole);
        four act;
        for (int k = 0; k < 4; k++) {
            act.x[k] = x.x[k] * normal_function(x.x[k]);
            d.x[k] *= gelu_slope(x.x[k]);
        }
        put_four(a.out, i, act, a.n, a.whole);
        put_four(a.dinp, i, d, a.n, a.whole);
    }
}
