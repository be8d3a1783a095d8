/* Checks of attention against ref_ops.c: documents, seen both ways or not, trees, windows, keys without queries, odd
 * sizes, every mixture of types. */
#include "check.h"

#include <math.h>
#include <string.h>

struct attention_case {
    int T, H, G, C, window, documents; /* documents 0: a random forest */
    float size;                        /* of q: large gives sharp distributions */
    int before;                        /* tokens of T that are keys alone */
    int both_ways;                     /* whether tokens see those after them */
};

/* Which arrays are bf16, by bit: out, dq, dk, dv, q, k, v, dout. */
static int type_of(int types, int i) { return types >> i & 1 ? ET_BF16 : ET_F32; }

/* How deep token t is, whose predecessor is depth - 1 deep: as deep as `depth`, but for one token in 16 of a forest, or
 * where a document begins. */
static int depth_of(int t, int depth, int T, int documents, uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    if (documents)
        return (int64_t)t * documents / T == (int64_t)(t - 1) * documents / T ? depth : 0;
    return *state >> 28 ? depth : (int)((*state >> 8) % (uint32_t)(depth + 1));
}

struct forest {
    int32_t *begin, *end, *position;
};

static struct forest make_forest(int T, int documents, int both_ways) {
    struct forest made = {both_ways ? check_ints((size_t)T, 1, 0) : NULL, check_ints((size_t)T, 1, 0),
                          check_ints((size_t)T, 1, 0)};
    int32_t *path = check_ints((size_t)T, 1, 0);
    uint32_t state = (uint32_t)T;
    int depth = 0;
    for (int t = 0; t < T; t++) {
        int kept = t ? depth_of(t, depth, T, documents, &state) : 0;
        while (depth > kept)
            made.end[path[--depth]] = t;
        made.position[t] = depth;
        if (both_ways)
            made.begin[t] = t - depth;
        path[depth++] = t;
    }
    while (depth)
        made.end[path[--depth]] = T;
    return made;
}

/* n values of noise, as bf16 has them if `rounded`, in an array of `type`. */
static et_array attention_array(int type, size_t n, uint64_t seed, float size, int rounded) {
    float *x = check_floats(n, seed);
    et_array made = {type == ET_F32 ? x : check_floats((n + 1) / 2, seed), type};
    for (size_t i = 0; i < n; i++) {
        float value = x[i] * size;
        array_put(made, (int64_t)i, rounded ? bits_to_float((uint32_t)float_to_bf16(value) << 16) : value);
    }
    return made;
}

/* One output of attention, n values, in whatever type. */
static void check_attention_output(struct check *c, const struct attention_case *a, const char *name, et_array got,
                                   const float *want, size_t n, double tolerance) {
    float *wide = check_floats(n, 0);
    for (size_t i = 0; i < n; i++)
        wide[i] = (float)array_get(got, (int64_t)i);
    check_close(c, got.data, want, 0, 1, "attention %s outside its array", name);
    check_close(c, wide, want, n, tolerance,
                "attention %s T %d H %d G %d C %d window %d documents %d size %g before %d both ways %d of %s in %s",
                name, a->T, a->H, a->G, a->C, a->window, a->documents, a->size, a->before, a->both_ways,
                got.type == ET_F32 ? "float" : "bf16", check_numbers(c->ctx, CHECK_NO_WEIGHT));
}

/* The outputs of a context: out, dq, dk, dv, lse, delta. */
struct attention_outputs {
    et_array x[6];
};

static struct attention_outputs run_attention(et_context *ctx, const struct attention_case *a, int types,
                                              const et_array in[4], const size_t sizes[6]) {
    struct attention_outputs o;
    struct forest f = make_forest(a->T, a->documents, a->both_ways);
    float scale = 1.0f / sqrtf((float)a->C);
    for (int i = 0; i < 6; i++)
        o.x[i] = attention_array(i < 4 ? type_of(types, i) : ET_F32, sizes[i], (uint64_t)i + 5, 1, 0);
    et_attention_forward(ctx, o.x[0], o.x[4].data, in[0], in[1], in[2], f.begin, f.end, f.position, scale, a->window,
                         a->T - a->before, a->T, a->H, a->G, a->C);
    et_attention_backward(ctx, o.x[1], o.x[2], o.x[3], o.x[5].data, in[3], o.x[0], o.x[4].data, in[0], in[1], in[2],
                          f.begin, f.end, f.position, scale, a->window, a->T - a->before, a->T, a->H, a->G, a->C);
    return o;
}

static void check_attention(struct check *c, et_context *alone, struct attention_case a, int types) {
    static const char *const names[] = {"out", "dq", "dk", "dv", "lse", "delta"};
    int Q = a.T - a.before;
    size_t n = (size_t)Q * a.H * a.C;
    size_t m = (size_t)a.T * a.G * a.C;
    size_t rows = (size_t)a.H * Q;
    size_t sizes[] = {n, n, m, m, rows, rows};
    int rounds = strcmp(check_numbers(c->ctx, CHECK_NO_WEIGHT), "bf16") == 0;
    const et_array in[] = {
        attention_array(type_of(types, 4), n, 1, a.size, rounds), attention_array(type_of(types, 5), m, 2, 1, rounds),
        attention_array(type_of(types, 6), m, 3, 1, rounds), attention_array(type_of(types, 7), n, 4, 1, rounds)};
    struct attention_outputs got = run_attention(c->ctx, &a, types, in, sizes);
    struct attention_outputs again = run_attention(alone, &a, types, in, sizes), want;
    struct forest f = make_forest(a.T, a.documents, a.both_ways);
    float scale = 1.0f / sqrtf((float)a.C);
    for (size_t i = 0; i < 6; i++)
        want.x[i] = attention_array(ET_F32, sizes[i], 0, 1, 0);
    ref_attention_forward(NULL, want.x[0], want.x[4].data, in[0], in[1], in[2], f.begin, f.end, f.position, scale,
                          a.window, Q, a.T, a.H, a.G, a.C);
    ref_attention_backward(NULL, want.x[1], want.x[2], want.x[3], want.x[5].data, in[3], want.x[0], want.x[4].data,
                           in[0], in[1], in[2], f.begin, f.end, f.position, scale, a.window, Q, a.T, a.H, a.G, a.C);
    for (size_t i = 0; i < 6; i++) { /* that out is rounded tells in delta, and so in dq and dk */
        double tolerance = rounds || (types && i > 0) ? 1e-2 : types ? 0x1p-8 : a.size > 10.0f ? 1e-4 : 1e-5;
        check_attention_output(c, &a, names[i], got.x[i], want.x[i].data, sizes[i], tolerance);
        check_true(c, !memcmp(got.x[i].data, again.x[i].data, sizes[i] * (got.x[i].type == ET_F32 ? 4 : 2)),
                   "attention %s T %d H %d G %d C %d: threads change bits", names[i], a.T, a.H, a.G, a.C);
    }
    check_free();
}

/* A NaN reaches the queries that see it and no query of its own block's past. */
static void check_attention_nan(struct check *c, int type) {
    enum { T = 20, C = 32 };
    et_array q = attention_array(type, T * C, 1, 1, 0);
    et_array k = attention_array(type, T * C, 2, 1, 0);
    et_array v = attention_array(type, T * C, 3, 1, 0);
    et_array out = attention_array(type, T * C, 4, 1, 0);
    float *lse = check_floats(T, 5);
    int good = 1;
    array_put(k, 10 * C, NAN);
    struct forest f = make_forest(T, 1, 0);
    et_attention_forward(c->ctx, out, lse, q, k, v, f.begin, f.end, f.position, 1.0f, 0, T, T, 1, 1, C);
    for (int t = 0; t < T; t++)
        good &= t < 10 ? isfinite(array_get(out, t * C)) && isfinite(lse[t])
                       : isnan(array_get(out, t * C)) && isnan(lse[t]);
    check_true(c, good, "attention_forward of a NaN key");
    check_free();
}

void check_attentions(struct check *c, et_context *alone) {
    if (check_is_repeated(c, CHECK_NO_WEIGHT))
        return;
    static const struct attention_case cases[] = {
        {1, 1, 1, 32, 0, 1, 1, 0, 0},      {2, 3, 1, 64, 0, 1, 1, 0, 0},     {17, 2, 2, 80, 0, 1, 1, 0, 0},
        {130, 3, 1, 64, 0, 1, 1, 0, 0},    {65, 3, 3, 128, 0, 1, 4, 0, 0},   {67, 2, 1, 256, 0, 1, 1, 0, 0},
        {130, 3, 1, 32, 0, 5, 1, 0, 0},    {200, 2, 1, 32, 0, 200, 1, 0, 0}, {130, 2, 2, 32, 1, 1, 1, 0, 0},
        {150, 2, 1, 64, 7, 1, 1, 0, 0},    {260, 1, 1, 32, 64, 1, 1, 0, 0},  {260, 1, 1, 32, 100, 3, 1, 0, 0},
        {129, 3, 1, 33, 0, 2, 1, 0, 0},    {70, 1, 1, 2, 0, 1, 1, 0, 0},     {130, 2, 1, 64, 0, 1, 200, 0, 0},
        {100, 10, 2, 31, 0, 1, 1, 0, 0},   {300, 3, 1, 64, 0, 0, 1, 0, 0},   {131, 2, 2, 80, 0, 0, 4, 0, 0},
        {260, 2, 1, 32, 9, 0, 1, 0, 0},    {400, 1, 1, 32, 70, 0, 1, 0, 0},  {257, 9, 3, 64, 0, 0, 200, 0, 0},
        {230, 3, 1, 64, 0, 1, 1, 101, 0},  {300, 2, 1, 32, 0, 0, 1, 64, 0},  {260, 4, 2, 80, 20, 1, 1, 150, 0},
        {200, 2, 2, 33, 9, 0, 4, 199, 0},  {140, 1, 1, 32, 0, 7, 1, 70, 0},  {1, 1, 1, 32, 0, 1, 1, 0, 1},
        {130, 3, 1, 64, 0, 1, 1, 0, 1},    {200, 2, 2, 33, 0, 7, 4, 0, 1},   {260, 4, 2, 80, 20, 1, 1, 0, 1},
        {300, 1, 1, 32, 100, 2, 1, 0, 1},  {230, 3, 1, 64, 0, 1, 1, 101, 1}, {300, 2, 1, 128, 70, 1, 1, 150, 1},
        {67, 2, 1, 256, 0, 3, 4, 0, 1},    {130, 3, 1, 512, 0, 2, 1, 0, 0},  {100, 2, 2, 300, 0, 0, 4, 0, 0},
        {150, 8, 1, 512, 40, 1, 1, 70, 0}, {131, 5, 1, 480, 20, 3, 1, 0, 1},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        if (cases[i].C > ET_NARROW_HEAD && strcmp(c->isa, "cuda") == 0)
            continue; /* it has no wide heads */
        check_attention(c, alone, cases[i], 0);
        check_attention(c, alone, cases[i], 0xff);
        check_attention(c, alone, cases[i], i % 2 ? 0xa5 : 0x5a);
    }
    check_attention_nan(c, ET_F32);
    check_attention_nan(c, ET_BF16);
}
