/* Checks of the ops for answers against ref_answers.c: paths that share blocks, windows, odd sizes, every mixture of
 * types; tokens drawn with and without limits, in parts. */
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct path_case {
    int T, P, H, G, C, window;
    float size; /* of q */
};

enum { BLOCKS = 90 }; /* of the cache, more than there is room for scores at a time */

/* Paths of random blocks, which may come in several, of random lengths; the first of all P blocks. */
static int32_t *make_paths(int T, int P) {
    int32_t *path = check_ints((size_t)T * P, BLOCKS, 1);
    for (int t = 0; t < T; t++) {
        int entries = t ? 1 + (int)(check_noise(2, (uint64_t)t) % (uint64_t)P) : P;
        for (int i = 0; i < P; i++) {
            int32_t *entry = &path[t * P + i];
            int last = (int)(check_noise(3, (uint64_t)(t * P + i)) % 20);
            *entry = i < entries ? *entry * ET_CACHE + (last < ET_CACHE ? last : ET_CACHE - 1) : -1;
        }
    }
    return path;
}

/* types, by bit: out, q, keys, values. */
static void check_attention_cached(struct check *c, et_context *alone, struct path_case a, int types) {
    size_t n = (size_t)a.T * a.H * a.C;
    size_t m = (size_t)BLOCKS * a.G * a.C * ET_CACHE;
    int type[4];
    for (int i = 0; i < 4; i++)
        type[i] = types >> i & 1 ? ET_BF16 : ET_F32;
    et_array q = check_array(n, type[1], 1);
    et_array keys = check_array(m, type[2], 2);
    et_array values = check_array(m, type[3], 3);
    et_array out = check_array(n, type[0], 4);
    et_array again = check_array(n, type[0], 5);
    float *want = check_floats(n, 6);
    int32_t *path = make_paths(a.T, a.P);
    float scale = a.size / sqrtf((float)a.C);
    et_attention_cached(c->ctx, out, q, keys, values, path, scale, a.window, a.T, a.P, BLOCKS, a.H, a.G, a.C);
    et_attention_cached(alone, again, q, keys, values, path, scale, a.window, a.T, a.P, BLOCKS, a.H, a.G, a.C);
    ref_attention_cached(NULL, (et_array){want, ET_F32}, q, keys, values, path, scale, a.window, a.T, a.P, BLOCKS, a.H,
                         a.G, a.C);
    check_array_close(c, out, want, n, 1e-5, "attention_cached T %d P %d H %d G %d C %d window %d types %d", a.T, a.P,
                      a.H, a.G, a.C, a.window, types);
    check_true(c, !memcmp(out.data, again.data, n * (type[0] == ET_F32 ? 4 : 2)),
               "attention_cached T %d P %d H %d G %d C %d: threads change bits", a.T, a.P, a.H, a.G, a.C);
    for (int t = 0; t < a.T; t++) { /* each alone */
        size_t row = (size_t)a.H * a.C;
        et_array one = check_array(row, type[0], 7);
        int half = type[1] == ET_BF16;
        et_array query = {(char *)q.data + (size_t)t * row * (half ? 2 : 4), type[1]};
        et_attention_cached(alone, one, query, keys, values, path + t * a.P, scale, a.window, 1, a.P, BLOCKS, a.H, a.G,
                            a.C);
        size_t bytes = row * (type[0] == ET_F32 ? 4 : 2);
        check_true(c, !memcmp((char *)out.data + (size_t)t * bytes, one.data, bytes),
                   "attention_cached T %d H %d G %d C %d: others change bits", a.T, a.H, a.G, a.C);
    }
    check_free();
}

/* types, by bit: keys, values, k, v. */
static void check_cache_store(struct check *c, int T, int G, int C, int types) {
    size_t n = (size_t)T * G * C;
    size_t m = (size_t)BLOCKS * G * C * ET_CACHE;
    et_array x[4];
    for (int i = 0; i < 4; i++)
        x[i] = check_array(i < 2 ? m : n, types >> i & 1 ? ET_BF16 : ET_F32, (uint64_t)i + 1);
    float *want[] = {check_values(x[0], m), check_values(x[1], m)};
    int32_t *slot = check_ints((size_t)T, 1, 5);
    for (int t = 0; t < T; t++)
        slot[t] = (t * 37 + 11) % (BLOCKS * ET_CACHE);
    et_cache_store(c->ctx, x[0], x[1], x[2], x[3], slot, T, BLOCKS, G, C);
    ref_cache_store(NULL, (et_array){want[0], ET_F32}, (et_array){want[1], ET_F32}, x[2], x[3], slot, T, BLOCKS, G, C);
    for (int i = 0; i < 2; i++)
        check_array_close(c, x[i], want[i], m, 1e-12, "cache_store %d T %d G %d C %d types %d", i, T, G, C, types);
    check_free();
}

/* ---- tokens -------------------------------------------------------------------------------------------------- */
struct draw_case {
    int T, V, D, block, type;
    float size, temperature;
    int limited;
    float cap; /* 0: none */
};

/* Equal but where two tokens are as good within the rounding of floats. */
static void check_tokens(struct check *c, const struct draw_case *a, const int32_t *got, const int32_t *want,
                         const float *drawn, const float *truth, const int32_t *key) {
    int good = 1;
    for (int t = 0; t < a->T; t++) {
        double ours = drawn[t] + (a->temperature > 0 ? ref_noise(key + 2 * t, got[t]) : 0);
        double best = truth[t] + (a->temperature > 0 ? ref_noise(key + 2 * t, want[t]) : 0);
        good &= got[t] == want[t] || fabs(ours - best) < 1e-3;
    }
    check_true(c, good, "head_sample tokens T %d V %d block %d temperature %g limited %d", a->T, a->V, a->block,
               a->temperature, a->limited);
}

static void check_head_sample(struct check *c, struct draw_case a) {
    size_t rows = (size_t)a.T;
    et_array h = check_array(rows * (size_t)a.D, a.type, 1);
    float *w = check_floats((size_t)a.V * a.D, 2);
    float *logits = check_floats(rows * (size_t)a.block, 3);
    float *state = check_floats(rows * ET_SAMPLE_STATE, 4);
    float *logp = check_floats(rows, 5);
    float *drawn = check_floats(rows, 6);
    float *want_logp = check_floats(rows, 7);
    float *want_drawn = check_floats(rows, 8);
    float *limit = check_floats(rows, 9);
    int32_t *token = check_ints(rows, a.V, 10);
    int32_t *want = check_ints(rows, a.V, 11);
    int32_t *key = check_ints(2 * rows, INT32_MAX, 12);
    for (size_t i = 0; i < rows * (size_t)a.D; i++)
        array_put(h, (int64_t)i, array_get(h, (int64_t)i) * a.size);
    for (size_t t = 0; t < rows; t++)
        key[2 * t] = -key[2 * t];
    float *least = a.limited ? limit : NULL;
    if (a.limited) { /* the third highest logit, a little less */
        float *top = check_floats(3 * rows, 13);
        for (size_t t = 0; t < rows; t++)
            limit[t] = INFINITY;
        ref_head_top(NULL, top, want_logp, NULL, NULL, h, w, ET_F32, limit, a.cap, a.block, 0, a.V, a.T, 3, a.V, a.D);
        for (size_t t = 0; t < rows; t++)
            limit[t] = top[3 * t + 2] - 1e-4f * fabsf(top[3 * t + 2]);
    }
    ref_head_sample(NULL, want, want_logp, want_drawn, NULL, NULL, h, w, ET_F32, key, least, a.temperature, a.cap,
                    a.block, 0, a.V, a.T, a.V, a.D);
    for (int part = a.V; part > 0; part = part == a.V && a.V > 2 ? a.V / 3 + 1 : 0) {
        for (int begin = 0; begin < a.V; begin += part)
            et_head_sample(c->ctx, token, logp, drawn, logits, state, h, w, ET_F32, key, least, a.temperature, a.cap,
                           a.block, begin, begin + part < a.V ? begin + part : a.V, a.T, a.V, a.D);
        check_tokens(c, &a, token, want, drawn, want_drawn, key);
        check_close(c, logp, want_logp, rows, 1e-5, "head_sample logp T %d V %d D %d temperature %g", a.T, a.V, a.D,
                    a.temperature);
        check_close(c, drawn, want_drawn, rows, 1e-5, "head_sample drawn T %d V %d D %d temperature %g limited %d", a.T,
                    a.V, a.D, a.temperature, a.limited);
    }
    check_free();
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a;
    float y = *(const float *)b;
    return (x < y) - (x > y);
}

static void check_head_top(struct check *c, struct draw_case a, int M) {
    size_t rows = (size_t)a.T;
    et_array h = check_array(rows * (size_t)a.D, a.type, 1);
    float *w = check_floats((size_t)a.V * a.D, 2);
    float *logits = check_floats(rows * (size_t)a.block, 3);
    float *state = check_floats(rows * ET_SAMPLE_STATE, 4);
    float *lse = check_floats(rows, 5);
    float *want_lse = check_floats(rows, 6);
    float *top = check_floats(rows * (size_t)M, 7);
    float *want = check_floats(rows * (size_t)M, 8);
    float *limit = check_floats(rows, 9);
    for (size_t t = 0; t < rows; t++)
        limit[t] = a.limited ? 1.0f : INFINITY; /* of the size of logits, whose rounding is theirs */
    et_head_top(c->ctx, top, lse, logits, state, h, w, ET_F32, limit, a.cap, a.block, 0, a.V, a.T, M, a.V, a.D);
    ref_head_top(NULL, want, want_lse, NULL, NULL, h, w, ET_F32, limit, a.cap, a.block, 0, a.V, a.T, M, a.V, a.D);
    for (size_t t = 0; t < rows; t++)
        qsort(top + t * (size_t)M, (size_t)M, sizeof *top, by_value);
    check_close(c, top, want, rows * (size_t)M, 1e-5, "head_top T %d V %d D %d M %d limited %d", a.T, a.V, a.D, M,
                a.limited);
    check_close(c, lse, want_lse, rows, 1e-5, "head_top lse T %d V %d D %d M %d", a.T, a.V, a.D, M);
    check_free();
}

void check_cached(struct check *c, et_context *alone) {
    static const struct path_case cases[] = {
        {1, 1, 1, 1, 32, 0, 1},   {3, 2, 3, 1, 64, 0, 1},   {5, 40, 9, 3, 64, 0, 4},  {4, 70, 2, 2, 80, 0, 1},
        {2, 9, 10, 2, 31, 0, 1},  {3, 5, 7, 1, 256, 0, 1},  {3, 6, 4, 4, 33, 7, 1},   {5, 40, 3, 1, 64, 33, 1},
        {4, 50, 6, 3, 128, 1, 1}, {4, 40, 8, 2, 2, 300, 1}, {2, 3, 3, 1, 64, 0, 200}, {3, 40, 9, 1, 512, 0, 4},
        {2, 9, 5, 1, 300, 33, 1},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        if (cases[i].C > ET_NARROW_HEAD && strcmp(c->isa, "cuda") == 0)
            continue; /* it has no wide heads */
        check_attention_cached(c, alone, cases[i], 0);
        check_attention_cached(c, alone, cases[i], 15);
        check_attention_cached(c, alone, cases[i], i % 2 ? 5 : 10);
    }
    for (int types = 0; types < 16; types++) {
        check_cache_store(c, 1, 1, 2, types);
        check_cache_store(c, 77, 3, 33, types);
    }
}

void check_draws(struct check *c) {
    static const struct draw_case cases[] = {
        {1, 5, 32, 1, ET_F32, 1, 1, 0, 0},         {2, 1, 32, 3, ET_F32, 1, 1, 0, 0},
        {5, 300, 64, 300, ET_F32, 1, 0, 0, 0},     {17, 1001, 96, 128, ET_BF16, 2, 0.7f, 0, 0},
        {9, 2003, 64, 77, ET_F32, 1, 1, 1, 0},     {9, 2003, 64, 512, ET_F32, 1, 3, 1, 0},
        {17, 5000, 32, 2048, ET_BF16, 1, 0, 0, 0}, {6, 5000, 32, 3072, ET_F32, 1, 1, 0, 0},
        {9, 2003, 64, 77, ET_F32, 9, 0.7f, 1, 5},  {5, 300, 64, 300, ET_F32, 20, 0, 0, 3},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        if (cases[i].cap > 0 && strcmp(c->isa, "cuda") == 0)
            continue; /* it has no caps */
        check_head_sample(c, cases[i]);
        for (int M = 1; M < 5000; M = 7 * M + 1)
            check_head_top(c, cases[i], M);
    }
}
