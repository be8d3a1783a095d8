/* Checks of the gated delta rule: branches, states that are kept, columns and rows that fill no vector. */
#include "check.h"

#include <string.h>

static int type(int types, int i) { return types >> i & 1 ? ET_BF16 : ET_F32; }

/* types: of qkv and its gradient, of out and its gradient. */
static void check_rule(struct check *c, int T, int H, int G, int C, int longest, int branches, int types) {
    int E = 2 * G + H;
    size_t n = (size_t)T * (size_t)(H * C);
    size_t width = (size_t)T * (size_t)(E * C);
    size_t gates = (size_t)T * (size_t)H;
    size_t floats = (size_t)(T / longest) * (size_t)(H * C * C);
    et_array qkv = check_array(width, type(types, 0), 1);
    et_array dqkv = check_array(width, type(types, 0), 2);
    et_array out = check_array(n, type(types, 1), 3);
    et_array dout = check_array(n, type(types, 1), 4);
    float *beta = check_floats(gates, 5);
    float *alpha = check_floats(gates, 6);
    float *a = check_floats((size_t)H, 7);
    float *dt = check_floats((size_t)H, 8);
    float *states = check_floats(floats, 9);
    float *dstates = check_floats(floats, 10);
    float *dbeta = check_floats(gates, 11);
    float *dalpha = check_floats(gates, 12);
    float *want = check_floats(width, 13);
    float *want_states = check_copy(states, floats);
    float *want_beta = check_floats(gates, 14);
    float *want_alpha = check_floats(gates, 15);
    int32_t *before = check_ints((size_t)T, T, 16);
    int32_t *kept = check_ints((size_t)T, T, 17);
    int32_t *ahead = check_ints((size_t)T, T, 18);
    int32_t *pieces = check_ints((size_t)T * ET_PIECE_COLUMNS, T, 19);
    for (int h = 0; h < H; h++)
        a[h] = h == 1 ? -9.0f : -0.1f * (1.0f + a[h]); /* one that forgets at once */
    check_forest(before, T, branches);
    int P = check_pieces(pieces, before, kept, ahead, T, longest);
    const char *what = "delta_%s T %d H %d G %d C %d longest %d types %d";
    et_delta_forward(c->ctx, out, states, qkv, beta, alpha, a, dt, before, pieces, 1e-6f, (int64_t)floats, T, H, E, C,
                     P);
    ref_delta_forward(NULL, (et_array){want, ET_F32}, want_states, qkv, beta, alpha, a, dt, before, pieces, 1e-6f,
                      (int64_t)floats, T, H, E, C, P);
    int rounds = !strcmp(check_numbers(c->ctx, CHECK_NO_WEIGHT), "bf16") && C % 32 == 0;
    double forward = rounds ? 8e-3 : 2e-5; /* of what is rounded, sums */
    double backward = rounds ? 12e-3 : 5e-5;
    check_array_close(c, out, want, n, forward, what, "forward", T, H, G, C, longest, types);
    check_close(c, states, want_states, floats, forward, what, "states", T, H, G, C, longest, types);
    et_delta_backward(c->ctx, dqkv, dbeta, dalpha, dstates, dout, qkv, beta, alpha, a, dt, states, before, pieces,
                      1e-6f, (int64_t)floats, T, H, E, C, P);
    ref_delta_backward(NULL, (et_array){want, ET_F32}, want_beta, want_alpha, dstates, dout, qkv, beta, alpha, a, dt,
                       states, before, pieces, 1e-6f, (int64_t)floats, T, H, E, C, P);
    double rounded = branches && dqkv.type == ET_BF16 && !rounds
                         ? 0x1p-8
                         : backward; /* what is replayed is added to what is rounded */
    check_array_close(c, dqkv, want, width, rounded, what, "backward", T, H, G, C, longest, types);
    check_close(c, dbeta, want_beta, gates, backward, what, "beta", T, H, G, C, longest, types);
    check_close(c, dalpha, want_alpha, gates, backward, what, "alpha", T, H, G, C, longest, types);
    check_free();
}

void check_delta(struct check *c) {
    if (!strcmp(c->isa, "cuda") || check_is_repeated(c, CHECK_NO_WEIGHT)) /* a device does not have it */
        return;
    for (int types = 0; types < 4; types++) {
        check_rule(c, 1, 1, 1, 4, ET_PIECE, 0, types);
        check_rule(c, 70, 2, 2, 12, 9, 1, types);
        check_rule(c, 90, 4, 2, 20, ET_PIECE, 1, types);
        check_rule(c, 200, 2, 1, 128, ET_PIECE, 0, types);
        check_rule(c, 180, 4, 2, 32, ET_PIECE, 1, types);
    }
    check_rule(c, 300, 2, 2, 64, ET_PIECE, 1, 0);
    check_rule(c, 64, 3, 1, 16, 1, 1, 0);
}
