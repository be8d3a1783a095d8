/* et_check [--pick | ROW]: checks every row that this CPU can run (or the named one) against the truth in ref.h. */
#include "check.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(a) ((int)(sizeof(a) / sizeof(a)[0]))
#define THREADS 3

/* ---- buffers ----------------------------------------------------------------------------------------------- */

#define GUARD 17                /* words at either end; odd, so that no array is aligned to a vector */
#define CANARY 0x7fc17fc0u      /* NaN in float and bf16, so that what reads it shows */

struct buffer {
    struct buffer *next;
    size_t bytes;
    char data[];
};
static struct buffer *buffers;

static void *guarded(size_t bytes) {
    struct buffer *b = malloc(sizeof *b + bytes + 2 * GUARD * 4);
    if (!b)
        abort();
    *b = (struct buffer){buffers, bytes};
    buffers = b;
    for (size_t i = 0; i < GUARD * 4; i += 4) {
        memcpy(b->data + i, &(uint32_t){CANARY}, 4);
        memcpy(b->data + GUARD * 4 + bytes + i, &(uint32_t){CANARY}, 4);
    }
    return b->data + GUARD * 4;
}

static int guards_hold(const void *x) {
    const struct buffer *b = buffers;
    while (b && b->data + GUARD * 4 != x)
        b = b->next;
    if (!b)
        return 0;
    for (size_t i = 0; i < GUARD * 4; i += 4)
        if (memcmp(b->data + i, &(uint32_t){CANARY}, 4) ||
            memcmp(b->data + GUARD * 4 + b->bytes + i, &(uint32_t){CANARY}, 4))
            return 0;
    return 1;
}

void check_free(void) {
    while (buffers) {
        struct buffer *next = buffers->next;
        free(buffers);
        buffers = next;
    }
}

/* splitmix64 of (seed, i) */
static uint64_t noise(uint64_t seed, uint64_t i) {
    uint64_t z = seed * 0x9e3779b97f4a7c15u + (i + 1) * 0xd1342543de82ef95u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

float *check_floats(size_t n, uint64_t seed) {
    return check_array(n, ET_F32, seed).data;
}

et_array check_array(size_t n, int type, uint64_t seed) {
    et_array a = {guarded(n * (type == ET_F32 ? 4 : 2)), type};
    for (size_t i = 0; i < n; i++)
        array_put(a, (int64_t)i, (float)(int32_t)(noise(seed, i) >> 40) * 0x1p-23f - 1);
    return a;
}

static et_array copy(et_array a, size_t n, int type) {
    et_array out = {guarded(n * (type == ET_F32 ? 4 : 2)), type};
    for (size_t i = 0; i < n; i++)
        array_put(out, (int64_t)i, array_get(a, (int64_t)i));
    return out;
}

et_array check_array_copy(et_array a, size_t n) { return copy(a, n, a.type); }
float *check_values(et_array a, size_t n) { return copy(a, n, ET_F32).data; }
float *check_copy(const float *x, size_t n) { return check_values((et_array){(void *)x, ET_F32}, n); }

int32_t *check_ints(size_t n, int limit, uint64_t seed) {
    int32_t *x = guarded(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (int32_t)(noise(seed, i) % (uint64_t)limit);
    return x;
}

/* ---- verdicts ---------------------------------------------------------------------------------------------- */

static void verdict(struct check *c, int fact, const char *what, va_list args) {
    c->passed += fact;
    c->failed += !fact;
    if (fact)
        return;
    printf("FAILED %s: ", c->isa);
    vprintf(what, args);
    putchar('\n');
}

void check_true(struct check *c, int fact, const char *what, ...) {
    va_list args;
    va_start(args, what);
    verdict(c, fact, what, args);
    va_end(args);
}

static void close_to(struct check *c, et_array got, const float *want, size_t n, double tolerance, const char *what,
                     va_list args) {
    double error = 0, size = 0;
    int same_kind = 1;
    for (size_t i = 0; i < n; i++) {
        double x = array_get(got, (int64_t)i), y = want[i];
        if (!isfinite(x) || !isfinite(y)) {
            same_kind &= isnan(x) ? isnan(y) : x == y;
            continue;
        }
        error = fmax(error, fabs(x - y) - (got.type == ET_BF16 ? 0x1p-8 * fabs(y) : 0));
        size = fmax(size, fabs(y));
    }
    double ratio = error / (tolerance * (size > 0 ? size : 1));
    c->worst = fmax(c->worst, ratio);
    verdict(c, ratio <= 1 && same_kind && guards_hold(got.data), what, args);
    if (!(ratio <= 1 && same_kind))
        printf("       error %g x tolerance%s\n", ratio, same_kind ? "" : ", and NaN or infinity in other places");
}

void check_close(struct check *c, const float *got, const float *want, size_t n, double tolerance, const char *what,
                 ...) {
    va_list args;
    va_start(args, what);
    close_to(c, (et_array){(void *)got, ET_F32}, want, n, tolerance, what, args);
    va_end(args);
}

void check_array_close(struct check *c, et_array got, const float *want, size_t n, double tolerance, const char *what,
                       ...) {
    va_list args;
    va_start(args, what);
    close_to(c, got, want, n, tolerance, what, args);
    va_end(args);
}

/* ---- weights ----------------------------------------------------------------------------------------------- */

struct format {
    const char *name;
    int id, block, bytes;
    int halves[2]; /* where the block has its scales, -1: nowhere */
};

static const struct format formats[] = {
    {"F32", ET_F32, 1, 4, {-1, -1}},
    {"F16", ET_F16, 1, 2, {0, -1}},
    {"BF16", ET_BF16, 1, 2, {-1, -1}},
    {"Q8_0", ET_Q8_0, 32, 34, {0, -1}},
    {"Q4_0", ET_Q4_0, 32, 18, {0, -1}},
    {"Q4_1", ET_Q4_1, 32, 20, {0, 2}},
    {"Q5_0", ET_Q5_0, 32, 22, {0, -1}},
    {"Q5_1", ET_Q5_1, 32, 24, {0, 2}},
    {"IQ4_NL", ET_IQ4_NL, 32, 18, {0, -1}},
    {"Q2_K", ET_Q2_K, 256, 84, {80, 82}},
    {"Q3_K", ET_Q3_K, 256, 110, {108, -1}},
    {"Q4_K", ET_Q4_K, 256, 144, {0, 2}},
    {"Q5_K", ET_Q5_K, 256, 176, {0, 2}},
    {"Q6_K", ET_Q6_K, 256, 210, {208, -1}},
    {"IQ4_XS", ET_IQ4_XS, 256, 136, {0, -1}},
    {"MXFP4", ET_MXFP4, 32, 17, {-1, -1}},
    {"Q2_0", ET_Q2_0, 64, 18, {0, -1}},
};

/* n weights of any bytes whose scales are of ordinary size; in a buffer of exactly their bytes. Freed by the caller. */
static uint8_t *make_weights(const struct format *f, size_t n, uint64_t seed, int tame) {
    size_t bytes = n / (size_t)f->block * (size_t)f->bytes;
    uint8_t *w = malloc(bytes);
    if (!w)
        abort();
    for (size_t i = 0; i < bytes; i++)
        w[i] = (uint8_t)noise(seed, i);
    for (size_t i = 0; tame && i < bytes; i += (size_t)f->bytes) {
        for (int j = 0; j < 2 && f->halves[j] >= 0; j++) /* a half in +-[2^-5, 2^-3) */
            w[i + (size_t)f->halves[j] + 1] = (w[i + (size_t)f->halves[j] + 1] & 0x87) | 0x28;
        if (f->id == ET_BF16 || f->id == ET_F32) /* in +-[0.5, 2) */
            w[i + (size_t)f->bytes - 1] = (w[i + (size_t)f->bytes - 1] & 0x80) | 0x3f;
        if (f->id == ET_MXFP4) /* the exponent in 120 .. 127 */
            w[i] = 0x78 | (w[i] & 7);
    }
    return w;
}

/* ---- products ---------------------------------------------------------------------------------------------- */

static const double CLOSE = 4e-6; /* one output may be a sum that cancels */

/* How far rounding may lead from the real product, by what is multiplied. */
static double rounding(const char *numbers) {
    return strcmp(numbers, "int8") == 0 ? 0.02 : strcmp(numbers, "bf16") == 0 ? 0.01 : CLOSE;
}

/* What all but products with quantized weights is rounded to. */
const char *check_numbers(et_context *ctx) {
    int int8 = strcmp(et_context_product(ctx, 0), "int8") == 0;
    if (int8)
        et_context_set_precision(ctx, ET_FAST);
    const char *numbers = et_context_product(ctx, 0);
    if (int8)
        et_context_set_precision(ctx, ET_INT8);
    return numbers;
}

static const char *numbers_of(et_context *ctx, int backward, int format, int inner) {
    return inner % 32 || format == ET_F32 ? check_numbers(ctx) : et_context_product(ctx, backward);
}

struct shape {
    int T, N, K, R, accumulate, inp_type, out_type;
    float scale;
};

/* One direction: against its own truth tightly, against the real product loosely, and the same bits on one thread. */
static void check_direction(struct check *c, et_context *alone, int backward, const struct format *f, struct shape s) {
    int inner = backward ? s.N : s.K, outer = backward ? s.K : s.N;
    size_t n = (size_t)s.T * (size_t)outer, inp_size = (size_t)s.T * (size_t)inner;
    const char *own = numbers_of(c->ctx, backward, f->id, inner), *direction = backward ? "backward" : "forward";
    uint8_t *w = make_weights(f, (size_t)s.N * (size_t)s.K, 7, 1);
    float *x = check_floats((size_t)(s.T * s.R), 5), *y = check_floats((size_t)(s.R * outer), 6);
    et_array start = check_array(n, ET_F32, 2);
    et_array inp = check_array(inp_size, s.inp_type, 1), out = copy(start, n, s.out_type);
    et_array again = copy(start, n, s.out_type), want = copy(start, n, s.out_type);
    et_array real = copy(start, n, ET_F32);
    et_context_set_threads(c->ctx, 1 + (s.T + s.N + backward) % THREADS); /* that changes no bit either */
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
    check_close(c, check_values(out, n), check_values(want, n), n, tight + half, what, direction, own, f->name, s.T, s.N, s.K,
                s.R, s.accumulate, s.inp_type, s.out_type, "");
    check_close(c, check_values(out, n), real.data, n, rounding(own) + half, what, direction, own, f->name, s.T, s.N, s.K,
                s.R, s.accumulate, s.inp_type, s.out_type, ", real");
    check_true(c, guards_hold(out.data) && !memcmp(out.data, again.data, n * (s.out_type == ET_F32 ? 4 : 2)), what,
               direction, own, f->name, s.T, s.N, s.K, s.R, s.accumulate, s.inp_type, s.out_type, ": threads change bits");
    free(w);
    check_free();
}

static void check_product(struct check *c, et_context *alone, const struct format *f, struct shape s) {
    check_direction(c, alone, 0, f, s);
    check_direction(c, alone, 1, f, s);
}

static void check_dweight(struct check *c, int T, int N, int K, int dout_type, int inp_type) {
    size_t NK = (size_t)N * (size_t)K, TN = (size_t)T * (size_t)N, TK = (size_t)T * (size_t)K;
    et_array inp = check_array(TK, inp_type, 1), dout = check_array(TN, dout_type, 2);
    float *dw = check_floats(NK, 3), *want = check_copy(dw, NK);
    et_matmul_dweight(c->ctx, dw, dout, inp, 0.7f, T, N, K);
    ref_matmul_dweight(NULL, want, dout, inp, 0.7f, T, N, K);
    check_close(c, dw, want, NK, rounding(numbers_of(c->ctx, 1, ET_F32, T)), "matmul_dweight T %d N %d K %d types %d %d",
                T, N, K, dout_type, inp_type);
    check_free();
}

static void check_weights(struct check *c, const struct format *f) {
    enum { V = 7, T = 19 };
    size_t D = f->block == 1 ? 33 : 3 * (size_t)f->block, n = V * D;
    int32_t *tokens = check_ints(T, V, 5);
    for (int tame = 0; tame < 2; tame++) {
        uint8_t *w = make_weights(f, n, 11, tame);
        float *out = check_floats(n, 1), *want = check_floats(n, 2), *rows = check_floats(T * D, 3);
        float *want_rows = check_floats(T * D, 4);
        et_dequantize(c->ctx, out, w, f->id, (int64_t)n);
        ref_dequantize(NULL, want, w, f->id, (int64_t)n);
        check_close(c, out, want, n, 1e-7, "dequantize %s, %s", f->name, tame ? "finite" : "any bytes");
        et_embed(c->ctx, rows, tokens, w, f->id, 1.5f, T, V, (int)D);
        ref_embed(NULL, want_rows, tokens, w, f->id, 1.5f, T, V, (int)D);
        check_close(c, rows, want_rows, T * D, 2e-7, "embed %s, %s", f->name, tame ? "finite" : "any bytes");
        free(w);
    }
    check_free();
}

/* Arguments that must be refused, and with which code. */
static void check_refusals(struct check *c) {
    float x[512] = {0};
    et_array a = {x, ET_F32}, h = {x, ET_BF16}, bad = {x, ET_Q8_0};
    int32_t low[1] = {-1}, high[1] = {2};
    check_true(c, et_matmul_forward(c->ctx, a, a, x, 99, x, x, 1, 0, 1, 1, 32, 0) == ET_BAD_FORMAT, "unknown format");
    check_true(c, et_matmul_forward(c->ctx, a, a, x, ET_Q4_0, x, x, 1, 0, 1, 1, 33, 0) == ET_BAD_ARGUMENT,
               "K not whole blocks");
    check_true(c, et_matmul_backward(c->ctx, a, a, x, ET_Q4_K, x, x, 1, 0, 1, 1, 32, 0) == ET_BAD_ARGUMENT,
               "K below a block");
    check_true(c, et_matmul_forward(c->ctx, a, a, NULL, ET_F32, x, x, 1, 0, 1, 1, 1, 0) == ET_BAD_ARGUMENT, "no weight");
    check_true(c, et_matmul_forward(c->ctx, a, a, x, ET_F32, NULL, x, 1, 0, 1, 1, 1, 2) == ET_BAD_ARGUMENT, "no x");
    check_true(c, et_matmul_forward(c->ctx, bad, a, x, ET_F32, x, x, 1, 0, 1, 1, 1, 0) == ET_BAD_ARGUMENT, "bad type");
    check_true(c, et_matmul_forward(c->ctx, h, a, x, ET_F32, x, x, 1, 1, 1, 1, 1, 0) == ET_BAD_ARGUMENT,
               "accumulating in bf16");
    check_true(c, et_matmul_dweight(c->ctx, x, a, a, 1, 0, 1, 1) == ET_BAD_ARGUMENT, "T 0");
    check_true(c, et_glu_forward(c->ctx, h, h, (et_array){x, ET_F16}, 0, 1) == ET_BAD_ARGUMENT, "half");
    check_true(c, et_glu_forward(c->ctx, h, (et_array){NULL, ET_F32}, h, 0, 1) == ET_BAD_ARGUMENT, "no gate");
    check_true(c, et_embed(c->ctx, x, low, x, ET_F32, 1, 1, 2, 4) == ET_BAD_INDEX, "token below the vocabulary");
    check_true(c, et_embed(c->ctx, x, high, x, ET_F32, 1, 1, 2, 4) == ET_BAD_INDEX, "token above the vocabulary");
    check_true(c, et_context_set_threads(c->ctx, 0) && et_context_set_threads(c->ctx, THREADS + 1), "bad threads");
    check_true(c, et_context_set_threads(c->ctx, THREADS) == ET_OK, "all threads");
    et_context *none = NULL;
    check_true(c, et_context_create(&none, "no such row", ET_EXACT, 1, x, sizeof x) == ET_NO_MEMORY,
               "scratch too small");
}

/* Every format, odd sizes, several blocks each way, every mixture of types, with and without LoRA's part. */
static void check_products(struct check *c, et_context *alone) {
    static const int T[] = {1, 2, 7, 12, 33, 70}, N[] = {37, 16, 8, 100, 1, 33}, R[] = {0, 8, 1, 40, 0, 3};
    for (int f = 0; f < COUNT(formats); f++)
        for (int i = 0; i < COUNT(T); i++) {
            int odd = i % 2 && formats[f].block == 1, K = formats[f].block > 1 ? 3 * formats[f].block : odd ? 45 : 96;
            check_product(c, alone, &formats[f], (struct shape){T[i], N[i], K, R[i], i % 2, ET_F32, ET_F32, 0.5f});
            check_product(c, alone, &formats[f], (struct shape){T[i], N[i], K, R[i], 0, ET_BF16, ET_BF16, 1});
        }
    for (int i = 0; i < 4; i++) { /* more than one block of inner elements, of columns, of rows */
        int inp = i % 2 ? ET_BF16 : ET_F32, out = i / 2 ? ET_BF16 : ET_F32, accumulate = out == ET_F32;
        check_product(c, alone, &formats[5], (struct shape){130, 96, 1600, 8, accumulate, inp, out, 1});
        check_product(c, alone, &formats[5], (struct shape){5, 800, 800, 70, 0, inp, out, 1});
        check_product(c, alone, &formats[3], (struct shape){700, 40, 64, 8, 0, inp, out, 1});
        check_product(c, alone, &formats[11], (struct shape){9, 600, 1280, 16, 0, inp, out, 1});
        check_product(c, alone, &formats[4], (struct shape){40, 64, 4096, 8, 0, inp, out, 1});
        check_product(c, alone, &formats[16], (struct shape){20, 576, 1600, 8, 0, inp, out, 1});
        check_product(c, alone, &formats[0], (struct shape){3, 5, 1, 1, accumulate, inp, out, 1});
        for (int t = 0; t < COUNT(T); t++) {
            check_dweight(c, T[t], 8, 45, inp, out);
            check_dweight(c, T[t], 45, 8, inp, out);
            check_dweight(c, T[t], 1, 1, inp, out);
        }
        check_dweight(c, 600, 8, 33, inp, out);
        check_dweight(c, 600, 100, 16, inp, out);
    }
}

static void check_row(struct check *c) {
    for (int f = 0; f < COUNT(formats); f++)
        check_weights(c, &formats[f]);
    check_refusals(c);
    check_ops(c);
    check_optimizer(c);
}

/* ---- the walk ---------------------------------------------------------------------------------------------- */

static et_context *make_context(const char *isa, enum et_precision precision, int threads, void **scratch) {
    et_context *ctx = NULL;
    size_t bytes = et_scratch_bytes(threads);
    *scratch = calloc(1, bytes);
    return *scratch && et_context_create(&ctx, isa, precision, threads, *scratch, bytes) == ET_OK ? ctx : NULL;
}

static void check_isa(struct check *total, const char *isa) {
    struct check c = {.isa = isa};
    for (int precision = ET_EXACT; precision <= ET_INT8; precision++) {
        void *scratch, *scratch_alone;
        c.ctx = make_context(isa, (enum et_precision)precision, THREADS, &scratch);
        et_context *alone = make_context(isa, (enum et_precision)precision, 1, &scratch_alone);
        if (!c.ctx || !alone)
            check_true(&c, 0, "no context");
        else {
            check_products(&c, alone);
            if (precision == ET_EXACT)
                check_row(&c);
            check_attentions(&c, alone);
        }
        et_context_destroy(c.ctx);
        et_context_destroy(alone);
        free(scratch);
        free(scratch_alone);
    }
    printf("%-12s %6d checks, %d failed, worst error %.2f of the tolerance\n", isa, c.passed + c.failed, c.failed,
           c.worst);
    total->passed += c.passed;
    total->failed += c.failed;
}

int main(int argc, char **argv) {
    const char *only = argc > 1 ? argv[1] : NULL;
    struct check total = {.isa = "all"};
    if (only && strcmp(only, "--pick") == 0) {
        void *scratch;
        et_context *ctx = make_context(NULL, ET_FAST, 1, &scratch);
        puts(ctx ? et_context_isa(ctx) : "none");
        et_context_destroy(ctx);
        free(scratch);
        return 0;
    }
    for (int i = 0; et_isa_name(i); i++) {
        if (!et_isa_usable(i))
            continue;
        if (!only || strcmp(only, et_isa_name(i)) == 0)
            check_isa(&total, et_isa_name(i));
    }
    printf("%d passed, %d failed\n", total.passed, total.failed);
    return total.failed || !total.passed;
}
