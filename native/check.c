/* The harness' library: buffers with canaries, noise, and verdicts. */
#include "check.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- buffers ----------------------------------------------------------------------------------------------- */

#define GUARD 17 /* words at either end; odd, so that no array is aligned to a vector that is not meant to be */
#define CANARY 0x7fc17fc0u /* NaN in float and bf16, so that what reads it shows */

struct buffer {
    struct buffer *next;
    size_t bytes;
    char *array;
    _Alignas(16) char data[];
};
static struct buffer *buffers;
static uint64_t made, checks;

/* Whether an array is aligned to 16 bytes: all arrays of half of the checks, half of those of the others. */
static int is_aligned(void) { return (int)((check_noise(1, made++) | check_noise(2, checks)) & 1); }

static void *guarded(size_t bytes) {
    struct buffer *b = malloc(sizeof *b + bytes + 2 * GUARD * 4 + 12);
    if (!b)
        abort();
    *b = (struct buffer){buffers, bytes, b->data + GUARD * 4 + (is_aligned() ? 12 : 0)};
    buffers = b;
    for (size_t i = 0; i < GUARD * 4; i += 4) {
        memcpy(b->array - GUARD * 4 + i, &(uint32_t){CANARY}, 4);
        memcpy(b->array + bytes + i, &(uint32_t){CANARY}, 4);
    }
    return b->array;
}

int check_guards(const void *x) {
    const struct buffer *b = buffers;
    while (b && b->array != x)
        b = b->next;
    if (!b)
        return 0;
    for (size_t i = 0; i < GUARD * 4; i += 4)
        if (memcmp(b->array - GUARD * 4 + i, &(uint32_t){CANARY}, 4) ||
            memcmp(b->array + b->bytes + i, &(uint32_t){CANARY}, 4))
            return 0;
    return 1;
}

void check_free(void) {
    checks++;
    while (buffers) {
        struct buffer *next = buffers->next;
        free(buffers);
        buffers = next;
    }
}

uint64_t check_noise(uint64_t seed, uint64_t i) {
    uint64_t z = seed * 0x9e3779b97f4a7c15u + (i + 1) * 0xd1342543de82ef95u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

float *check_floats(size_t n, uint64_t seed) { return check_array(n, ET_F32, seed).data; }

et_array check_array(size_t n, int type, uint64_t seed) {
    et_array a = {guarded(n * (type == ET_F32 ? 4 : 2)), type};
    for (size_t i = 0; i < n; i++)
        array_put(a, (int64_t)i, (float)(int32_t)(check_noise(seed, i) >> 40) * 0x1p-23f - 1);
    return a;
}

et_array check_array_as(et_array a, size_t n, int type) {
    et_array out = {guarded(n * (type == ET_F32 ? 4 : 2)), type};
    for (size_t i = 0; i < n; i++)
        array_put(out, (int64_t)i, array_get(a, (int64_t)i));
    return out;
}

et_array check_array_copy(et_array a, size_t n) { return check_array_as(a, n, a.type); }
float *check_values(et_array a, size_t n) { return check_array_as(a, n, ET_F32).data; }
float *check_copy(const float *x, size_t n) { return check_values((et_array){(void *)x, ET_F32}, n); }

int32_t *check_ints(size_t n, int limit, uint64_t seed) {
    int32_t *x = guarded(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (int32_t)(check_noise(seed, i) % (uint64_t)limit);
    return x;
}

/* ---- forests ------------------------------------------------------------------------------------------------ */

void check_forest(int32_t *before, int T, int branches) {
    before[0] = -1;
    for (int t = 1; t < T; t++) {
        uint64_t noise = check_noise(11, (uint64_t)t);
        before[t] = t - 1;
        for (uint64_t up = noise % 8 || !branches ? 0 : noise / 8 % 40; up > 0 && before[t] >= 0; up--)
            before[t] = before[before[t]];
    }
}

int check_pieces(int32_t *pieces, const int32_t *before, int32_t *kept, int32_t *ahead, int T, int longest) {
    int slots = 0;
    int count = 0;
    for (int t = 0; t < T; t++)
        ahead[t] = 0;
    for (int t = T - 1; t >= 0; t--) {
        kept[t] = ahead[t] == longest ? slots++ : -1;
        int passed = kept[t] >= 0 ? 1 : ahead[t] + 1;
        if (before[t] >= 0 && ahead[before[t]] < passed)
            ahead[before[t]] = passed;
    }
    for (int t = 0; t < T; t++) {
        int32_t *piece = pieces + (count - 1) * ET_PIECE_COLUMNS;
        if (before[t] != t - 1 || before[t] < 0 || kept[before[t]] >= 0) {
            piece = pieces + count++ * ET_PIECE_COLUMNS;
            piece[0] = t;
            piece[2] = 0;
            int32_t at = before[t];
            for (; at >= 0 && kept[at] < 0; at = before[at])
                piece[2]++;
            piece[3] = at < 0 ? -1 : kept[at];
        }
        piece[1] = t + 1;
        piece[4] = kept[t];
    }
    return count;
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
    double error = 0;
    double size = 0;
    int same_kind = 1;
    for (size_t i = 0; i < n; i++) {
        double x = array_get(got, (int64_t)i);
        double y = want[i];
        if (!isfinite(x) || !isfinite(y)) {
            same_kind &= isnan(x) ? isnan(y) : x == y;
            continue;
        }
        error = fmax(error, fabs(x - y) - (got.type == ET_BF16 ? 0x1p-8 * fabs(y) : 0));
        size = fmax(size, fabs(y));
    }
    double ratio = error / (tolerance * (size > 0 ? size : 1));
    c->worst = fmax(c->worst, ratio);
    verdict(c, ratio <= 1 && same_kind && check_guards(got.data), what, args);
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

const char *check_numbers(et_context *ctx, enum factor factor) {
    int int8 = strcmp(et_context_product(ctx, 0), "int8") == 0;
    if (int8 && factor == CHECK_BACKWARD)
        return "int8 of 128";
    if (factor != CHECK_NO_WEIGHT)
        return et_context_product(ctx, factor == CHECK_BACKWARD);
    if (int8)
        et_context_set_precision(ctx, ET_FAST);
    const char *numbers = et_context_product(ctx, 0);
    if (int8)
        et_context_set_precision(ctx, ET_INT8);
    return numbers;
}

int check_is_repeated(struct check *c, enum factor factor) {
    const char *own = check_numbers(c->ctx, factor);
    int repeated = 0;
    for (int lower = ET_EXACT; lower < (int)c->precision; lower++) {
        et_context_set_precision(c->ctx, (enum et_precision)lower);
        repeated |= strcmp(own, check_numbers(c->ctx, factor)) == 0;
    }
    et_context_set_precision(c->ctx, c->precision);
    return repeated;
}
