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

#define GUARD 17                /* floats at either end; odd, so that no array is aligned to a vector */
#define CANARY 0x7fc0beefu      /* a NaN, so that what reads it shows */

struct buffer {
    struct buffer *next;
    size_t n;
    float data[];
};
static struct buffer *buffers;

static float *guarded(size_t n) {
    struct buffer *b = malloc(sizeof *b + (n + 2 * GUARD) * sizeof(float));
    if (!b)
        abort();
    *b = (struct buffer){buffers, n};
    buffers = b;
    for (int i = 0; i < GUARD; i++) {
        memcpy(&b->data[i], &(uint32_t){CANARY}, 4);
        memcpy(&b->data[GUARD + n + (size_t)i], &(uint32_t){CANARY}, 4);
    }
    return b->data + GUARD;
}

static int guards_hold(const float *x) {
    const struct buffer *b = buffers;
    while (b && b->data + GUARD != x)
        b = b->next;
    if (!b)
        return 0;
    const float *end = b->data + GUARD + b->n;
    for (int i = 0; i < GUARD; i++)
        if (memcmp(&b->data[i], &(uint32_t){CANARY}, 4) || memcmp(&end[i], &(uint32_t){CANARY}, 4))
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
    float *x = guarded(n);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(int32_t)(noise(seed, i) >> 40) * 0x1p-23f - 1;
    return x;
}

float *check_copy(const float *x, size_t n) {
    float *copy = guarded(n);
    for (size_t i = 0; i < n; i++)
        copy[i] = x[i];
    return copy;
}

int32_t *check_ints(size_t n, int limit, uint64_t seed) {
    int32_t *x = (int32_t *)guarded(n);
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

void check_close(struct check *c, const float *got, const float *want, size_t n, double tolerance, const char *what,
                 ...) {
    double error = 0, size = 0;
    int same_kind = 1;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(got[i]) || !isfinite(want[i])) {
            same_kind &= isnan(got[i]) ? isnan(want[i]) : got[i] == want[i];
            continue;
        }
        error = fmax(error, fabs((double)got[i] - (double)want[i]));
        size = fmax(size, fabs((double)want[i]));
    }
    double ratio = error / (tolerance * (size > 0 ? size : 1));
    c->worst = fmax(c->worst, ratio);
    va_list args;
    va_start(args, what);
    verdict(c, ratio <= 1 && same_kind && guards_hold(got), what, args);
    va_end(args);
    if (!(ratio <= 1 && same_kind))
        printf("       error %g x tolerance%s\n", ratio, same_kind ? "" : ", and NaN or infinity in other places");
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
    }
    return w;
}

/* ---- products ---------------------------------------------------------------------------------------------- */

static const double CLOSE = 4e-6; /* one output may be a sum that cancels */

static void check_product(struct check *c, et_context *alone, const struct format *f, int T, int N, int K,
                          int accumulate, float scale) {
    size_t TN = (size_t)T * (size_t)N, TK = (size_t)T * (size_t)K;
    uint8_t *w = make_weights(f, (size_t)N * (size_t)K, 7, 1);
    float *inp = check_floats(TK, 1), *dout = check_floats(TN, 2);
    float *out = check_floats(TN, 3), *want = check_copy(out, TN), *again = check_copy(out, TN);
    float *dinp = check_floats(TK, 4), *dwant = check_copy(dinp, TK), *dagain = check_copy(dinp, TK);
    et_matmul_forward(c->ctx, out, inp, w, f->id, scale, accumulate, T, N, K);
    ref_matmul_forward(NULL, want, inp, w, f->id, scale, accumulate, T, N, K);
    check_close(c, out, want, TN, CLOSE, "matmul_forward %s T %d N %d K %d accumulate %d", f->name, T, N, K,
                accumulate);
    et_matmul_backward(c->ctx, dinp, dout, w, f->id, scale, accumulate, T, N, K);
    ref_matmul_backward(NULL, dwant, dout, w, f->id, scale, accumulate, T, N, K);
    check_close(c, dinp, dwant, TK, CLOSE, "matmul_backward %s T %d N %d K %d accumulate %d", f->name, T, N, K,
                accumulate);
    et_matmul_forward(alone, again, inp, w, f->id, scale, accumulate, T, N, K);
    et_matmul_backward(alone, dagain, dout, w, f->id, scale, accumulate, T, N, K);
    check_true(c, !memcmp(out, again, TN * 4) && !memcmp(dinp, dagain, TK * 4),
               "matmul %s T %d N %d K %d: threads change bits", f->name, T, N, K);
    free(w);
    check_free();
}

/* How far rounding may lead from the real product, by what is multiplied. */
static double rounding(const char *numbers) {
    return strcmp(numbers, "int8") == 0 ? 0.02 : strcmp(numbers, "bf16") == 0 ? 0.01 : CLOSE;
}

/* One direction of a context that may round: against its own truth tightly, against the real product loosely, and the
 * same bits on one thread. */
static void check_rounded(struct check *c, et_context *ctx, et_context *alone, int backward, const struct format *f,
                          int T, int N, int K, int accumulate) {
    size_t n = (size_t)T * (size_t)(backward ? K : N);
    const char *numbers = et_context_product(ctx, backward);
    const char *own = strcmp(numbers, "int8") == 0 && K % 32 ? et_context_product(alone, 1) : numbers;
    uint8_t *w = make_weights(f, (size_t)N * (size_t)K, 7, 1);
    float *inp = check_floats((size_t)T * (size_t)(backward ? N : K), 1), *out = check_floats(n, 2);
    float *want = check_copy(out, n), *real = check_copy(out, n), *again = check_copy(out, n);
    (backward ? et_matmul_backward : et_matmul_forward)(ctx, out, inp, w, f->id, 0.5f, accumulate, T, N, K);
    (backward ? et_matmul_backward : et_matmul_forward)(alone, again, inp, w, f->id, 0.5f, accumulate, T, N, K);
    ref_product(own, backward, want, inp, w, f->id, 0.5f, accumulate, T, N, K);
    ref_product("float", backward, real, inp, w, f->id, 0.5f, accumulate, T, N, K);
    const char *direction = backward ? "backward" : "forward";
    check_close(c, out, want, n, 1e-5, "%s in %s, %s T %d N %d K %d", direction, own, f->name, T, N, K);
    check_close(c, out, real, n, rounding(own), "%s in %s, %s T %d N %d K %d, real", direction, own, f->name, T, N, K);
    check_true(c, !memcmp(out, again, n * 4), "%s in %s, %s T %d N %d K %d: threads change bits", direction, own,
               f->name, T, N, K);
    free(w);
    check_free();
}

static void check_dweight(struct check *c, int T, int N, int K) {
    size_t NK = (size_t)N * (size_t)K;
    float *inp = check_floats((size_t)T * (size_t)K, 1), *dout = check_floats((size_t)T * (size_t)N, 2);
    float *dw = check_floats(NK, 3), *want = check_copy(dw, NK);
    et_matmul_dweight(c->ctx, dw, dout, inp, 0.7f, T, N, K);
    ref_matmul_dweight(NULL, want, dout, inp, 0.7f, T, N, K);
    check_close(c, dw, want, NK, CLOSE, "matmul_dweight T %d N %d K %d", T, N, K);
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
    int32_t low[1] = {-1}, high[1] = {2};
    check_true(c, et_matmul_forward(c->ctx, x, x, x, 99, 1, 0, 1, 1, 32) == ET_BAD_FORMAT, "unknown format");
    check_true(c, et_matmul_forward(c->ctx, x, x, x, ET_Q4_0, 1, 0, 1, 1, 33) == ET_BAD_ARGUMENT, "K not whole blocks");
    check_true(c, et_matmul_backward(c->ctx, x, x, x, ET_Q4_K, 1, 0, 1, 1, 32) == ET_BAD_ARGUMENT, "K below a block");
    check_true(c, et_matmul_forward(c->ctx, x, x, NULL, ET_F32, 1, 0, 1, 1, 1) == ET_BAD_ARGUMENT, "no weight");
    check_true(c, et_matmul_dweight(c->ctx, x, x, x, 1, 0, 1, 1) == ET_BAD_ARGUMENT, "T 0");
    check_true(c, et_embed(c->ctx, x, low, x, ET_F32, 1, 1, 2, 4) == ET_BAD_INDEX, "token below the vocabulary");
    check_true(c, et_embed(c->ctx, x, high, x, ET_F32, 1, 1, 2, 4) == ET_BAD_INDEX, "token above the vocabulary");
    et_context *none = NULL;
    check_true(c, et_context_create(&none, "no such row", ET_EXACT, 1, x, sizeof x) == ET_NO_MEMORY,
               "scratch too small");
}

static void check_row(struct check *c, et_context *alone) {
    static const int sizes[] = {1, 2, 7, 33}, outputs[] = {1, 8, 37, 100};
    for (int f = 0; f < COUNT(formats); f++) {
        int odd = formats[f].block == 1 ? 45 : 3 * formats[f].block, one = formats[f].block == 1 ? 8 : formats[f].block;
        for (int t = 0; t < COUNT(sizes); t++)
            for (int n = 0; n < COUNT(outputs); n++)
                check_product(c, alone, &formats[f], sizes[t], outputs[n], n % 2 ? one : odd, (t + n) % 2,
                              n == 2 ? 0.3f : 1);
        check_weights(c, &formats[f]);
    }
    check_product(c, alone, &formats[0], 3, 5, 1, 1, 1);
    check_product(c, alone, &formats[5], 130, 96, 1600, 1, 0.5f); /* more than one block of inner elements, */
    check_product(c, alone, &formats[5], 5, 800, 800, 0, 1);      /* of columns, */
    check_product(c, alone, &formats[3], 700, 40, 64, 0, 1);      /* and of rows */
    check_product(c, alone, &formats[11], 9, 600, 1280, 0, 1);
    for (int t = 0; t < COUNT(sizes); t++) {
        check_dweight(c, sizes[t], 8, 45);
        check_dweight(c, sizes[t], 45, 8);
        check_dweight(c, sizes[t], 1, 1);
    }
    check_dweight(c, 600, 8, 33);
    check_refusals(c);
    check_ops(c);
}

/* ---- the walk ---------------------------------------------------------------------------------------------- */

static et_context *make_context(const char *isa, enum et_precision precision, int threads, void **scratch) {
    et_context *ctx = NULL;
    size_t bytes = et_scratch_bytes(threads);
    *scratch = calloc(1, bytes);
    return *scratch && et_context_create(&ctx, isa, precision, threads, *scratch, bytes) == ET_OK ? ctx : NULL;
}

/* The products that round: every format but F32, which never does, odd sizes, and several blocks each way. */
static void check_precision(struct check *c, et_context *ctx, et_context *alone) {
    static const int T[] = {1, 2, 7, 12, 33, 70}, N[] = {37, 16, 8, 100, 1, 33};
    for (int backward = 0; backward < 2; backward++) {
        for (int f = 1; f < COUNT(formats); f++)
            for (int i = 0; i < COUNT(T); i++)
                check_rounded(c, ctx, alone, backward, &formats[f], T[i], N[i],
                              formats[f].block > 1 ? 3 * formats[f].block
                              : i % 2              ? 45
                                                   : 96,
                              i % 2);
        check_rounded(c, ctx, alone, backward, &formats[5], 130, 96, 1600, 1);
        check_rounded(c, ctx, alone, backward, &formats[5], 5, 800, 800, 0);
        check_rounded(c, ctx, alone, backward, &formats[3], 700, 40, 64, 0);
        check_rounded(c, ctx, alone, backward, &formats[11], 9, 600, 1280, 0);
    }
}

static void check_isa(struct check *total, const char *isa) {
    struct check c = {.isa = isa};
    for (int precision = ET_EXACT; precision <= ET_INT8; precision++) {
        void *scratch, *scratch_alone;
        c.ctx = make_context(isa, (enum et_precision)precision, THREADS, &scratch);
        et_context *alone = make_context(isa, (enum et_precision)precision, 1, &scratch_alone);
        if (!c.ctx || !alone)
            check_true(&c, 0, "no context");
        else if (precision == ET_EXACT)
            check_row(&c, alone);
        else
            check_precision(&c, c.ctx, alone);
        if (c.ctx && alone)
            check_attentions(&c, alone);
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
