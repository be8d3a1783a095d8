/* Grouped-query attention, block by block with an online softmax (Milakov & Gimelshein 2018, Dao et al. 2022):
 * a thread holds BQ x BK scores at a time. Backward makes them again from lse. In float it does so once for dq, where
 * tasks are blocks of queries, and once for dk and dv, where tasks are blocks of keys, so that the outputs of tasks are
 * disjoint; in bf16 once for all.
 *
 * Tokens are a forest in depth-first order (et.h). A segment is a run of tokens whose subtrees end together, so each is
 * the child of the one before; where queries begin, one ends too. No block holds queries or keys of two segments: of a
 * block of keys in another segment the queries see all, or what their window leaves, or nothing, and what nobody sees
 * costs nothing. Where tokens see both ways, a segment is a document, of which queries see the keys after them, too: as
 * many as `ahead`. All outputs are overwritten; sums are in float and rounded once, to the type of their array.
 *
 * What is common is here; attention_float.h multiplies in float, attention_bf16.h in bf16. */

/* Whole tiles: 64, or 96 where a tile has 12 rows. Larger blocks lose on short documents what they gain on long. Heads
 * wider than ET_NARROW_HEAD have half as many tokens in a block, so that it takes no more scratch. */
enum { BQ = 64 % MR == 0 ? 64 : 8 * MR, BK = BQ };
_Static_assert(BK % VL == 0 && BK <= ET_NARROW_HEAD, "scores are whole vectors; gemm packs BK x ET_NARROW_HEAD");
_Static_assert(ET_MAX_HEAD == 2 * ET_NARROW_HEAD && BQ / 2 % VL == 0, "half a block is of whole vectors");

struct attention {
    et_context *ctx;
    et_array dq, dk, dv, dout, out, q, k, v; /* in backward, out is an input, and so is lse */
    float *delta, *lse;
    const int32_t *begin, *end, *position;
    float scale;
    int window, first, T, H, G, C; /* queries are tokens first .. T - 1 */
    int ahead;                     /* how many tokens after its own a query sees at most */
    int block;                     /* tokens of a block, BQ or half of it */
};

enum { FAR_AHEAD = 1 << 30 };

static inline int tokens_of_block(int C) { return C > ET_NARROW_HEAD ? BQ / 2 : BQ; }

static inline int tokens_ahead(const int32_t *begin, int window) {
    return !begin ? 0 : window > 0 ? window - 1 : FAR_AHEAD;
}

/* How many of the tokens t .. last - 1 are of t's segment. */
static inline int same_segment(const struct attention *a, int t, int last) {
    int n = 1;
    while (t + n < last && a->end[t + n] == a->end[t] && t + n != a->first)
        n++;
    return n;
}

/* Blocks are cut from each segment's first token: the tokens of the one that begins at t, */
static inline int block_tokens(const struct attention *a, int t) {
    return same_segment(a, t, min_int(t + a->block, a->T));
}

/* and where the first begins that does so at or after t. */
static inline int next_block(const struct attention *a, int t) {
    int past = 0;
    while (past < t && a->end[t - past - 1] == a->end[t] && t - past != a->first)
        past++;
    past %= a->block;
    return past ? t + same_segment(a, t, min_int(t + a->block - past, a->T)) : t;
}

/* How many tokens, along the path, key k is too far before query q for the window. */
static inline int beyond_window(const struct attention *a, int q, int k) {
    return a->window > 0 ? a->position[q] - a->position[k] - a->window + 1 : 0;
}

/* One past the last key that some of the queries q .. q + nq - 1 of one segment see, */
static inline int end_of_keys(const struct attention *a, int q, int nq) {
    return a->ahead ? min_int(a->end[q], q + nq + a->ahead) : q + nq;
}

/* and the first query that may see key k, from which blocks are cut. */
static inline int first_query(const struct attention *a, int k) {
    return max_int(a->begin ? a->begin[k] : k, a->first);
}

/* Whether none of the queries q .. q + nq - 1 sees one of the keys k .. k + nk - 1 of a segment that they are below or
 * in, as these are too far before or after them. */
static inline int out_of_sight(const struct attention *a, int q, int nq, int k, int nk) {
    return beyond_window(a, q, k + nk - 1) > 0 || k - (q + nq - 1) > a->ahead;
}

/* The first block of keys at or after k, and before `last`, that some of the queries from q on, of one segment, see: *k
 * is its first, and its size is returned; 0: there is none. */
static inline int next_keys(const struct attention *a, int *k, int q, int last) {
    while (*k < last) {
        int beyond = beyond_window(a, q, *k);
        if (a->end[*k] <= q)
            *k = a->end[*k]; /* a subtree that q is not in */
        else if (beyond > 0)
            *k += same_segment(a, *k, min_int(*k + beyond, last));
        else
            return same_segment(a, *k, min_int(*k + a->block, last));
    }
    return 0;
}

/* Elements from a token to the next, and where token t of a head begins: head h of [Q, H, C], head g of [T, G, C]. */
static inline ptrdiff_t q_stride(const struct attention *a) { return (ptrdiff_t)a->H * a->C; }
static inline ptrdiff_t k_stride(const struct attention *a) { return (ptrdiff_t)a->G * a->C; }
static inline ptrdiff_t q_at(const struct attention *a, int h, int t) {
    return (t - a->first) * q_stride(a) + (ptrdiff_t)h * a->C;
}
static inline ptrdiff_t k_at(const struct attention *a, int g, int t) { return t * k_stride(a) + (ptrdiff_t)g * a->C; }

/* Where lse and delta [H, Q] have query t of head h. */
static inline ptrdiff_t row_at(const struct attention *a, int h, int t) {
    return (ptrdiff_t)h * (a->T - a->first) + t - a->first;
}

/* How many blocks of queries are tasks, and where one begins. The last see most and come first, so that the threads end
 * together. */
static inline int query_blocks(const struct attention *a) { return ceil_div(a->T - a->first, a->block); }
static inline int query_begin(const struct attention *a, int i) {
    return a->first + (query_blocks(a) - 1 - i) * a->block;
}

/* out from element i on [n] = s * x [n] */
static inline void store_scaled(et_array out, ptrdiff_t i, const float *x, float s, int n) {
    for (int j = 0; j < n; j += VL)
        store_part(out, i + j, s * vload_part(x + j, n - j), n - j);
}

/* delta = rowsum(dout * out), which is rowsum(p * (dout . v^T)), for queries q .. q + nq - 1 of head h; dout's elements
 * are those from `at` on, `stride` apart from token to token. */
static void attention_delta(const struct attention *a, et_array dout, ptrdiff_t at, ptrdiff_t stride, int h, int q,
                            int nq) {
    for (int t = q; t < q + nq; t++, at += stride) {
        vec sum = {0};
        for (int j = 0; j < a->C; j += VL)
            sum += load_part(dout, at + j, a->C - j) * load_part(a->out, q_at(a, h, t) + j, a->C - j);
        a->delta[row_at(a, h, t)] = lanes_sum(sum);
    }
}

#include "attention_float.h"
#ifdef ET_BF16_PRODUCTS /* whose packing for attention is AVX-512's so far */
#include "attention_strips.h"
#include "attention_bf16.h"
#include "attention_pairs.h"
#define ATTENTION(pass, a)                                                                                             \
    (et_precision((a)->ctx) == ET_EXACT ? attention_##pass##_float(a) : attention_##pass##_bf16(a))
#else
#define ATTENTION(pass, a) attention_##pass##_float(a)
#endif

/* out [Q, H, C] = softmax(scale * q . k^T) . v, lse [H, Q] */
static void attention_forward(et_context *ctx, et_array out, float *lse, et_array q, et_array k, et_array v,
                              const int32_t *begin, const int32_t *end, const int32_t *position, float scale,
                              int window, int Q, int T, int H, int G, int C) {
    struct attention a = {.ctx = ctx,
                          .out = out,
                          .lse = lse,
                          .q = q,
                          .k = k,
                          .v = v,
                          .begin = begin,
                          .end = end,
                          .position = position,
                          .scale = scale,
                          .window = window,
                          .first = T - Q,
                          .T = T,
                          .H = H,
                          .G = G,
                          .C = C,
                          .ahead = tokens_ahead(begin, window),
                          .block = tokens_of_block(C)};
    ATTENTION(forward, &a);
}

/* dq [Q, H, C], dk, dv [T, G, C]; delta [H, Q] is work space. */
static void attention_backward(et_context *ctx, et_array dq, et_array dk, et_array dv, float *delta, et_array dout,
                               et_array out, const float *lse, et_array q, et_array k, et_array v, const int32_t *begin,
                               const int32_t *end, const int32_t *position, float scale, int window, int Q, int T,
                               int H, int G, int C) {
    struct attention a = {.ctx = ctx,
                          .dq = dq,
                          .dk = dk,
                          .dv = dv,
                          .delta = delta,
                          .dout = dout,
                          .out = out,
                          .lse = (float *)lse,
                          .q = q,
                          .k = k,
                          .v = v,
                          .begin = begin,
                          .end = end,
                          .position = position,
                          .scale = scale,
                          .window = window,
                          .first = T - Q,
                          .T = T,
                          .H = H,
                          .G = G,
                          .C = C,
                          .ahead = tokens_ahead(begin, window),
                          .block = tokens_of_block(C)};
    ATTENTION(backward, &a);
}
