/* Checks of weights and products, every format, against ref.c. */
#include "check.h"

#include <stdlib.h>
#include <string.h>

/* ---- weights ----------------------------------------------------------------------------------------------- */

struct format {
    const char *name;
    int id, block, bytes;
    enum et_scales scales;
    int where, halves;
};

static const struct format formats[] = {
#define FORMAT(name, number, block, bytes, scales, where, halves)                                                      \
    {#name, number, block, bytes, ET_##scales, where, halves},
#include "formats.def"
#undef FORMAT
};

static const struct format *format_of(int id) {
    const struct format *f = formats;
    while (f->id != id)
        f++;
    return f;
}

static uint8_t *memory; /* of the weights that are in use */

/* n weights of any bytes whose scales are of ordinary size, to the end of their memory; some at an odd address.
 * Freed by the caller. */
static uint8_t *make_weights(const struct format *f, size_t n, uint64_t seed, int tame) {
    static uint64_t made;
    size_t bytes = n / (size_t)f->block * (size_t)f->bytes;
    size_t odd = check_noise(2, made++) & 1;
    memory = malloc(bytes + odd);
    if (!memory)
        abort();
    uint8_t *w = memory + odd;
    for (size_t i = 0; i < bytes; i++)
        w[i] = (uint8_t)check_noise(seed, i);
    for (size_t i = 0; tame && i < bytes; i += (size_t)f->bytes) {
        for (int j = 0; j < f->halves; j++) { /* a half in +-[2^-5, 2^-3) */
            uint8_t *upper = w + i + f->where + 2 * j + 1;
            *upper = (*upper & 0x87) | 0x28;
        }
        if (f->scales == ET_VALUES && !f->halves) /* in +-[0.5, 2) */
            w[i + (size_t)f->bytes - 1] = (w[i + (size_t)f->bytes - 1] & 0x80) | 0x3f;
        if (f->scales == ET_EXPONENT) /* in 120 .. 127 */
            w[i] = 0x78 | (w[i] & 7);
    }
    return w;
}

/* ---- products ---------------------------------------------------------------------------------------------- */

static const double CLOSE = 4e-6; /* one output may be a sum that cancels */

/* How far rounding may lead from the real product, by what is multiplied. */
static double rounding(const char *numbers) {
    return strncmp(numbers, "int8", 4) == 0 ? 0.02 : strcmp(numbers, "bf16") == 0 ? 0.01 : CLOSE;
}

static enum factor factor_of(int backward, int format, int inner) {
    if (inner % 32 || format == ET_F32)
        return CHECK_NO_WEIGHT;
    return backward ? CHECK_BACKWARD : CHECK_FORWARD;
}

struct shape {
    int T, N, K, R, accumulate, inp_type, out_type;
    float scale;
};

/* One direction: against its own truth tightly, against the real product loosely, and the same bits on one thread. */
static void check_direction(struct check *c, et_context *alone, int backward, const struct format *f, struct shape s) {
    int inner = backward ? s.N : s.K;
    int outer = backward ? s.K : s.N;
    enum factor factor = factor_of(backward, f->id, inner);
    if (check_is_repeated(c, factor))
        return;
    size_t n = (size_t)s.T * (size_t)outer;
    size_t inp_size = (size_t)s.T * (size_t)inner;
    const char *own = check_numbers(c->ctx, factor);
    const char *direction = backward ? "backward" : "forward";
    uint8_t *w = make_weights(f, (size_t)s.N * (size_t)s.K, 7, 1);
    float *x = check_floats((size_t)(s.T * s.R), 5);
    float *y = check_floats((size_t)(s.R * outer), 6);
    et_array start = check_array(n, ET_F32, 2);
    et_array inp = check_array(inp_size, s.inp_type, 1);
    et_array out = check_array_as(start, n, s.out_type);
    et_array again = check_array_as(start, n, s.out_type);
    et_array want = check_array_as(start, n, s.out_type);
    et_array real = check_array_as(start, n, ET_F32);
    et_context_set_threads(c->ctx, 1 + (s.T + s.N + backward) % CHECK_THREADS); /* that changes no bit either */
    (backward ? et_matmul_backward : et_matmul_forward)(c->ctx, out, inp, w, f->id, x, y, s.scale, s.accumulate, s.T,
                                                        s.N, s.K, s.R);
    (backward ? et_matmul_backward : et_matmul_forward)(alone, again, inp, w, f->id, x, y, s.scale, s.accumulate, s.T,
                                                        s.N, s.K, s.R);
    ref_product(own, backward, want, inp, w, f->id, x, y, s.scale, s.accumulate, s.T, s.N, s.K, s.R);
    ref_product("float", backward, real, inp, w, f->id, x, y, s.scale, s.accumulate, s.T, s.N, s.K, s.R);
    /* bf16 is rounded once a block of inner elements, and may be rounded to a neighbour */
    double tight = strcmp(own, "float") == 0 ? CLOSE : 1e-5;
    double half = s.out_type == ET_BF16 ? 0x1p-7 + 0x1p-8 * (inner / 256 + s.R / 32) : 0;
    const char *what = "%s in %s, %s T %d N %d K %d R %d accumulate %d, types %d %d%s";
    check_close(c, check_values(out, n), check_values(want, n), n, tight + half, what, direction, own, f->name, s.T,
                s.N, s.K, s.R, s.accumulate, s.inp_type, s.out_type, "");
    check_close(c, check_values(out, n), real.data, n, rounding(own) + half, what, direction, own, f->name, s.T, s.N,
                s.K, s.R, s.accumulate, s.inp_type, s.out_type, ", real");
    check_true(c, check_guards(out.data) && !memcmp(out.data, again.data, n * (s.out_type == ET_F32 ? 4 : 2)), what,
               direction, own, f->name, s.T, s.N, s.K, s.R, s.accumulate, s.inp_type, s.out_type,
               ": threads change bits");
    free(memory);
    check_free();
}

static void check_product(struct check *c, et_context *alone, const struct format *f, struct shape s) {
    check_direction(c, alone, 0, f, s);
    check_direction(c, alone, 1, f, s);
}

static void check_dweight(struct check *c, int T, int N, int K, int dout_type, int inp_type) {
    if (check_is_repeated(c, CHECK_NO_WEIGHT))
        return;
    size_t NK = (size_t)N * (size_t)K;
    size_t TN = (size_t)T * (size_t)N;
    size_t TK = (size_t)T * (size_t)K;
    et_array inp = check_array(TK, inp_type, 1);
    et_array dout = check_array(TN, dout_type, 2);
    float *dw = check_floats(NK, 3);
    float *want = check_copy(dw, NK);
    et_matmul_dweight(c->ctx, dw, dout, inp, 0.7f, T, N, K);
    ref_matmul_dweight(NULL, want, dout, inp, 0.7f, T, N, K);
    check_close(c, dw, want, NK, rounding(check_numbers(c->ctx, CHECK_NO_WEIGHT)),
                "matmul_dweight T %d N %d K %d types %d %d", T, N, K, dout_type, inp_type);
    check_free();
}

/* The head's gradient, of probabilities times weights. */
static void check_head_product(struct check *c, int T, int V, int D, int block, int e_type) {
    size_t n = (size_t)T * (size_t)D;
    size_t rows = (size_t)T;
    et_array h = check_array(n, e_type, 1);
    et_array e = check_array(rows * (size_t)block, e_type, 2);
    uint8_t *w = make_weights(format_of(ET_Q8_0), (size_t)V * (size_t)D, 3, 1);
    float *a = check_floats(rows, 4);
    float *logits = check_floats(rows * (size_t)block, 5);
    float *state = check_floats(rows * ET_HEAD_STATE, 6);
    float *dh = check_floats(n, 7);
    float *want = check_floats(n, 8);
    float *logp = check_floats(rows, 9);
    float *truth = check_floats(rows, 10);
    int32_t *targets = check_ints(rows, V, 11);
    for (size_t i = 0; i < n; i++)
        array_put(h, (int64_t)i, array_get(h, (int64_t)i) * 0.02);
    et_head_backward(c->ctx, dh, logp, logits, e, state, h, w, ET_Q8_0, targets, a, 0, block, 0, V, T, V, D);
    ref_head_backward(NULL, want, truth, NULL, e, NULL, h, w, ET_Q8_0, targets, a, 0, block, 0, V, T, V, D);
    const char *own = check_numbers(c->ctx, CHECK_BACKWARD);
    double tolerance = e_type == ET_F32 && !strcmp(own, "float") ? 1e-5 : 0.01;
    const char *what = "head_backward in %s, %s T %d V %d D %d block %d type %d";
    check_close(c, logp, truth, rows, tolerance, what, own, "logp", T, V, D, block, e_type);
    check_close(c, dh, want, n, tolerance, what, own, "dh", T, V, D, block, e_type);
    free(memory);
    check_free();
}

static void check_weights(struct check *c, const struct format *f) {
    enum { V = 7, T = 19 };
    size_t D = f->block == 1 ? 33 : 3 * (size_t)f->block;
    size_t n = V * D;
    int32_t *tokens = check_ints(T, V, 5);
    for (int tame = 0; tame < 2; tame++) {
        uint8_t *w = make_weights(f, n, 11, tame);
        float *out = check_floats(n, 1);
        float *want = check_floats(n, 2);
        float *rows = check_floats(T * D, 3);
        float *want_rows = check_floats(T * D, 4);
        et_dequantize(c->ctx, out, w, f->id, (int64_t)n);
        ref_dequantize(NULL, want, w, f->id, (int64_t)n);
        check_close(c, out, want, n, 1e-7, "dequantize %s, %s", f->name, tame ? "finite" : "any bytes");
        et_embed(c->ctx, rows, tokens, w, f->id, 1.5f, T, V, (int)D);
        ref_embed(NULL, want_rows, tokens, w, f->id, 1.5f, T, V, (int)D);
        check_close(c, rows, want_rows, T * D, 2e-7, "embed %s, %s", f->name, tame ? "finite" : "any bytes");
        free(memory);
    }
    check_free();
}

/* Every format, odd sizes, several blocks each way, every mixture of types, with and without LoRA's part. */
void check_products(struct check *c, et_context *alone) {
    static const int T[] = {1, 2, 7, 12, 33, 70};
    static const int N[] = {37, 16, 8, 100, 1, 33};
    static const int R[] = {0, 8, 1, 40, 0, 3};
    for (int f = 0; f < COUNT(formats); f++)
        for (int i = 0; i < COUNT(T); i++) {
            int odd = i % 2 && formats[f].block == 1;
            int K = formats[f].block > 1 ? 3 * formats[f].block : odd ? 45 : 96;
            check_product(c, alone, &formats[f], (struct shape){T[i], N[i], K, R[i], i % 2, ET_F32, ET_F32, 0.5f});
            check_product(c, alone, &formats[f], (struct shape){T[i], N[i], K, R[i], 0, ET_BF16, ET_BF16, 1});
        }
    for (int i = 0; i < 2; i++) {
        check_head_product(c, 5, 320, 64, 320, i ? ET_BF16 : ET_F32);
        check_head_product(c, 40, 2016, 96, 992, i ? ET_BF16 : ET_F32);
    }
    for (int i = 0; i < 4; i++) { /* more than one block of inner elements, of columns, of rows */
        int inp = i % 2 ? ET_BF16 : ET_F32;
        int out = i / 2 ? ET_BF16 : ET_F32;
        int accumulate = out == ET_F32;
        check_product(c, alone, format_of(ET_Q4_1), (struct shape){130, 96, 1600, 8, accumulate, inp, out, 1});
        check_product(c, alone, format_of(ET_Q4_1), (struct shape){5, 800, 800, 70, 0, inp, out, 1});
        check_product(c, alone, format_of(ET_Q8_0), (struct shape){700, 40, 64, 8, 0, inp, out, 1});
        check_product(c, alone, format_of(ET_Q4_K), (struct shape){9, 600, 1280, 16, 0, inp, out, 1});
        check_product(c, alone, format_of(ET_Q4_0), (struct shape){40, 64, 4096, 8, 0, inp, out, 1});
        check_product(c, alone, format_of(ET_Q2_0), (struct shape){20, 576, 1600, 8, 0, inp, out, 1});
        check_product(c, alone, format_of(ET_F32), (struct shape){3, 5, 1, 1, accumulate, inp, out, 1});
        for (int t = 0; t < COUNT(T); t++) {
            check_dweight(c, T[t], 8, 45, inp, out);
            check_dweight(c, T[t], 45, 8, inp, out);
            check_dweight(c, T[t], 1, 1, inp, out);
        }
        check_dweight(c, 600, 8, 33, inp, out);
        check_dweight(c, 600, 100, 16, inp, out);
    }
}

void check_formats(struct check *c) {
    for (int f = 0; f < COUNT(formats); f++)
        check_weights(c, &formats[f]);
}
