/* The gated activations of an MLP: out = act(gate) * up, act SiLU (SwiGLU) or GELU (GeGLU), tanh-approximated or, as
 * GLU_ERF, exact (gelu.cuh). The first two are x * sigmoid(z): z = x for SiLU; z = 2 sqrt(2/pi) (x + 0.044715 x^3) for
 * GELU, as (1 + tanh u) / 2 is sigmoid(2u). */
#include "four.cuh"
#include "glu.h"

enum { GLU_SILU = 0, GLU_GELU = 1, GLU_ERF = 2 };

struct gated {
    float x;             /* the gate, or its floor */
    float sigmoid, rest; /* sigmoid(z) and sigmoid(-z), each accurate where it is small */
    float slope;         /* dz/dx */
};

/* The floor is where act(x) has come within 2e-33 of 0: a little below, e^-z would overflow. GELU's sigmoid is flat in
 * float above 16: x^3 is taken there, so that it cannot overflow to inf * 0. NaN passes both. */
DEVICE gated make_gated(float x, int kind) {
    float least = kind == GLU_SILU ? -80.0f : -9.65f;
    gated g = {x < least ? least : x, 0, 0, 1.0f};
    float z = g.x;
    if (kind == GLU_GELU) {
        float near = g.x > 16.0f ? 16.0f : g.x;
        float square = near * near;
        g.slope = 1.5957691216f + 0.2140698642f * square;
        z = near * (1.5957691216f + 0.0713562874f * square);
    }
    float e = expf(-z);
    g.sigmoid = 1.0f / (1.0f + e);
    g.rest = e * g.sigmoid;
    return g;
}

DEVICE void glu_forward_values(const glu_args &a, et_array out, et_array gate, et_array up) {
    EACH_FOUR(i, a.n) {
        four x = get_four(gate, i, a.n, a.whole);
        four u = get_four(up, i, a.n, a.whole);
        for (int k = 0; k < 4; k++) {
            gated g = make_gated(x.x[k], a.kind);
            x.x[k] = a.kind == GLU_ERF ? x.x[k] * normal_function(x.x[k]) * u.x[k] : g.x * g.sigmoid * u.x[k];
        }
        put_four(out, i, x, a.n, a.whole);
    }
}

/* Of one type, as in training, or of any. */
KERNEL(glu_forward, glu_args) {
    et_array out = a.out;
    et_array gate = a.gate;
    et_array up = a.up;
    if (gate.type == out.type && up.type == out.type)
        EITHER(out, gate.type = up.type = out.type; glu_forward_values(a, out, gate, up));
    else
        glu_forward_values(a, out, gate, up);
}

/* Of one value, in place: x from the gate to dout * up * act'(gate), d from dout to dout * act(gate); and act(gate) * up
 * again. */
DEVICE void sigmoid_backward(float &x, float &d, float &act, float up, int kind) {
    gated g = make_gated(x, kind);
    float push = d * g.sigmoid;
    act = g.x * g.sigmoid * up;
    x = push * up * (1.0f + g.x * g.rest * g.slope);
    d = push * g.x;
}

DEVICE void erf_backward(float &x, float &d, float &act, float up) {
    float gelu = x * normal_function(x);
    act = gelu * up;
    x = d * up * gelu_slope(x);
    d *= gelu;
}

DEVICE void glu_backward_values(const glu_args &a) {
    EACH_FOUR(i, a.n) {
        four d = get_four(a.dout, i, a.n, a.whole);
        four u = get_four(a.up, i, a.n, a.whole);
        four x = get_four(a.gate, i, a.n, a.whole);
        four act;
        for (int k = 0; k < 4; k++) {
            if (a.kind == GLU_ERF)
                erf_backward(x.x[k], d.x[k], act.x[k], u.x[k]);
            else
                sigmoid_backward(x.x[k], d.x[k], act.x[k], u.x[k], a.kind);
        }
        put_four(a.out, i, act, a.n, a.whole);
        put_four(a.dgate, i, x, a.n, a.whole);
        put_four(a.dup, i, d, a.n, a.whole);
    }
}

KERNEL(glu_backward, glu_args) {
    glu_args b = a;
    int type = a.dout.type;
    if (a.out.type == type && a.dgate.type == type && a.dup.type == type && a.gate.type == type && a.up.type == type)
        EITHER(b.dout, b.out.type = b.dgate.type = b.dup.type = b.gate.type = b.up.type = b.dout.type;
               glu_backward_values(b));
    else
        glu_backward_values(b);
}
