/* Checks of the scan of Mamba 2: branches, states that are kept, groups, sizes of one tile and of several. */
#include "check.h"

#include <string.h>

static int type(int types, int i) { return types >> i & 1 ? ET_BF16 : ET_F32; }

struct sizes {
    int T, H, C, N, G, longest, branches;
};

/* Whether products are of rounded numbers. */
static int is_rounded(struct check *c, struct sizes s) {
    return !strcmp(check_numbers(c->ctx, CHECK_NO_WEIGHT), "bf16") && s.C % 32 == 0 && s.N % 32 == 0;
}

/* types: of inp, of rows and their gradient, of out and its gradient. */
static void check_scan(struct check *c, et_context *alone, struct sizes s, int types) {
    int T = s.T, H = s.H, C = s.C, N = s.N;
    int W = H * C + 2 * s.G * N;
    int E = H + 5;
    size_t n = (size_t)T * (size_t)(H * C);
    size_t width = (size_t)T * (size_t)W;
    size_t row = (size_t)T * (size_t)E;
    size_t floats = (size_t)(T / s.longest) * (size_t)(H * N * C);
    et_array inp = check_array(width, type(types, 0), 1);
    et_array rows = check_array(row, type(types, 1), 2);
    et_array drows = check_array(row, type(types, 1), 3);
    et_array out = check_array(n, type(types, 2), 4);
    et_array dout = check_array(n, type(types, 2), 5);
    float *dinp = check_floats(width, 6);
    float *states = check_floats(floats, 7);
    float *dstates = check_floats(floats, 8);
    float *steps = check_floats((size_t)(3 * H * T), 9);
    float *bias = check_floats((size_t)H, 10);
    float *a = check_floats((size_t)H, 11);
    float *skip = check_floats((size_t)H, 12);
    float *want = check_floats(width, 13);
    float *want_rows = check_values(drows, row);
    int32_t *before = check_ints((size_t)T, T, 14);
    int32_t *kept = check_ints((size_t)T, T, 15);
    int32_t *ahead = check_ints((size_t)T, T, 16);
    int32_t *pieces = check_ints((size_t)T * ET_PIECE_COLUMNS, T, 17);
    for (int h = 0; h < H; h++) {
        a[h] = h == 1 ? -60.0f : -0.1f * (1.01f + a[h]); /* one that forgets at once, */
        bias[h] = h == 2 ? 30.0f : 3 * bias[h] - 2;      /* one whose steps are long */
    }
    check_forest(before, T, s.branches);
    int P = check_pieces(pieces, before, kept, ahead, T, s.longest);
    double unit = is_rounded(c, s) ? 2e-3 : 1e-6; /* rounding, of sums */
    const char *what = "ssm_%s T %d H %d C %d N %d G %d longest %d branches %d types %d";
    et_ssm_forward(c->ctx, out, states, steps, inp, rows, bias, a, skip, before, pieces, (int64_t)floats, T, W, E, H, C,
                   N, P);
    ref_ssm_forward(NULL, (et_array){want, ET_F32}, states, steps, inp, rows, bias, a, skip, before, pieces,
                    (int64_t)floats, T, W, E, H, C, N, P);
    check_array_close(c, out, want, n, 3 * unit, what, "forward", T, H, C, N, s.G, s.longest, s.branches, types);
    et_ssm_backward(c->ctx, dinp, drows, states, dstates, steps, dout, inp, rows, bias, a, skip, before, pieces,
                    (int64_t)floats, T, W, E, H, C, N, P);
    ref_ssm_backward(NULL, want, (et_array){want_rows, ET_F32}, states, dstates, steps, dout, inp, rows, bias, a, skip,
                     before, pieces, (int64_t)floats, T, W, E, H, C, N, P);
    check_close(c, dinp, want, width, 5 * unit, what, "backward", T, H, C, N, s.G, s.longest, s.branches, types);
    check_array_close(c, drows, want_rows, row, 10 * unit, what, "backward dt", T, H, C, N, s.G, s.longest, s.branches,
                      types);
    float *same = check_copy(dinp, width);
    et_ssm_backward(alone, dinp, drows, states, dstates, steps, dout, inp, rows, bias, a, skip, before, pieces,
                    (int64_t)floats, T, W, E, H, C, N, P);
    check_true(c, !memcmp(same, dinp, width * sizeof *dinp), what, "backward on one thread", T, H, C, N, s.G, s.longest,
               s.branches, types);
    check_true(c, check_guards(states) && check_guards(dstates) && check_guards(steps), "work space of the scan");
    check_free();
}

void check_ssm(struct check *c, et_context *alone) {
    static const struct sizes sizes[] = {
        {1, 2, 16, 16, 1, 64, 0}, {63, 2, 16, 16, 1, 64, 0},   {200, 3, 32, 48, 1, 64, 0}, {300, 6, 16, 32, 2, 64, 1},
        {90, 5, 48, 16, 1, 7, 1}, {150, 8, 64, 128, 2, 64, 1}, {70, 4, 128, 128, 4, 3, 1}, {400, 5, 32, 64, 1, 64, 1},
    };
    if (strcmp(c->isa, "cuda") == 0 || check_is_repeated(c, CHECK_NO_WEIGHT)) /* a device has no such op */
        return;
    for (int i = 0; i < COUNT(sizes); i++)
        for (int types = 0; types < 8; types++)
            check_scan(c, alone, sizes[i], types);
}
