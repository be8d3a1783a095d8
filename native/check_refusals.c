/* Checks of what the doors of et.h must refuse, and with which code. */
#include "check.h"

/* The call must be refused whichever of its `n` arrays of activations t[0] .. t[n - 1] is not one. */
#define REFUSES(n, wrong, ...)                                                                                         \
    for (int bad = 0; bad < (n); bad++) {                                                                              \
        et_array t[n];                                                                                                 \
        for (int i = 0; i < (n); i++)                                                                                  \
            t[i] = i == bad ? (wrong) : (et_array){x, ET_F32};                                                         \
        check_true(c, (__VA_ARGS__) == ET_BAD_ARGUMENT, "array %d of %s", bad, #__VA_ARGS__);                          \
    }

/* Every op that takes activations, with one of a type that they cannot have, or without data. */
static void check_refused_arrays(struct check *c, et_array wrong) {
    float x[512] = {0};
    int32_t zero[2] = {0};
    et_context *ctx = c->ctx;
    REFUSES(2, wrong, et_matmul_forward(ctx, t[0], t[1], x, ET_F32, x, x, 1, 0, 1, 1, 1, 0))
    REFUSES(2, wrong, et_matmul_backward(ctx, t[0], t[1], x, ET_F32, x, x, 1, 0, 1, 1, 1, 0))
    REFUSES(2, wrong, et_matmul_dweight(ctx, x, t[0], t[1], 1, 1, 1, 1))
    REFUSES(2, wrong, et_rmsnorm_forward(ctx, t[0], x, t[1], x, 0, 1, 1))
    REFUSES(3, wrong, et_rmsnorm_backward(ctx, t[0], t[1], t[2], x, x, 0, 1, 1))
    REFUSES(2, wrong, et_layernorm_forward(ctx, t[0], x, x, t[1], x, x, 0, 1, 1))
    REFUSES(3, wrong, et_layernorm_backward(ctx, t[0], t[1], t[2], x, x, x, 0, 1, 1))
    REFUSES(1, wrong, et_rope(ctx, t[0], x, x, zero, 0, 1, 1, 1, 2, 2, 1))
    REFUSES(4, wrong, et_attention_forward(ctx, t[0], x, t[1], t[2], t[3], NULL, zero, zero, 1, 0, 1, 1, 1, 1, 1))
    REFUSES(8, wrong,
            et_attention_backward(ctx, t[0], t[1], t[2], x, t[3], t[4], x, t[5], t[6], t[7], NULL, zero, zero, 1, 0, 1,
                                  1, 1, 1, 1))
    REFUSES(3, wrong, et_glu_forward(ctx, t[0], t[1], t[2], 0, 1))
    REFUSES(6, wrong, et_glu_backward(ctx, t[0], t[1], t[2], t[3], t[4], t[5], 0, 1))
    REFUSES(2, wrong, et_gelu_forward(ctx, t[0], t[1], 1))
    REFUSES(4, wrong, et_gelu_backward(ctx, t[0], t[1], t[2], t[3], 1))
    REFUSES(2, wrong, et_conv_forward(ctx, t[0], t[1], x, (const int32_t[]){-1}, 1, 1, 1))
    REFUSES(3, wrong, et_conv_backward(ctx, t[0], x, t[1], t[2], x, (const int32_t[]){-1}, 1, 1, 1))
    REFUSES(2, wrong, et_causal_conv_forward(ctx, t[0], t[1], x, x, (const int32_t[]){-1}, 0, 1, 1, 1, 1))
    REFUSES(3, wrong, et_causal_conv_backward(ctx, t[0], x, t[1], t[2], x, x, (const int32_t[]){-1}, 0, 1, 1, 1, 1))
    const int32_t piece[] = {0, 1, 0, -1, -1};
    REFUSES(2, wrong,
            et_delta_forward(ctx, t[0], x, t[1], x, x, x, x, (const int32_t[]){-1}, piece, 0, 0, 1, 1, 3, 4, 1))
    REFUSES(3, wrong,
            et_delta_backward(ctx, t[0], x, x, x, t[1], t[2], x, x, x, x, x, (const int32_t[]){-1}, piece, 0, 0, 1, 1,
                              3, 4, 1))
    REFUSES(
        3, wrong,
        et_ssm_forward(ctx, t[0], x, x, t[1], t[2], x, x, x, (const int32_t[]){-1}, piece, 0, 1, 48, 1, 1, 16, 16, 1))
    REFUSES(4, wrong,
            et_ssm_backward(ctx, x, t[0], x, x, x, t[1], t[2], t[3], x, x, x, (const int32_t[]){-1}, piece, 0, 1, 48, 1,
                            1, 16, 16, 1))
    REFUSES(1, wrong, et_add_bias(ctx, t[0], x, 1, 1))
    REFUSES(2, wrong, et_copy(ctx, t[0], t[1], 1))
    REFUSES(2, wrong, et_dropout(ctx, t[0], t[1], 0, 0, 0, 1))
    REFUSES(1, wrong, et_head_forward(ctx, x, zero, x, x, t[0], x, ET_F32, zero, 0, 1, 0, 1, 1, 1, 1))
    REFUSES(4, wrong, et_cache_store(ctx, t[0], t[1], t[2], t[3], zero, 1, 1, 1, 1))
    REFUSES(4, wrong, et_attention_cached(ctx, t[0], t[1], t[2], t[3], zero, 1, 0, 1, 1, 1, 1, 1, 1))
    REFUSES(1, wrong, et_head_sample(ctx, zero, x, x, x, x, t[0], x, ET_F32, zero, NULL, 1, 0, 1, 0, 1, 1, 1, 1))
    REFUSES(1, wrong, et_head_top(ctx, x, x, x, x, t[0], x, ET_F32, x, 0, 1, 0, 1, 1, 1, 1, 1))
    REFUSES(2, wrong, et_head_backward(ctx, x, x, x, t[0], x, t[1], x, ET_F32, zero, x, 0, 1, 0, 1, 1, 1, 1))
}

/* Tokens of [T] that see both ways, whose range, [begin, end), is not that of a document without branches. */
static void check_refused_ranges(struct check *c) {
    static const struct {
        int32_t begin[4], end[4], position[4];
    } wrong[] = {
        {{0, 1, 2, 3}, {4, 4, 4, 4}, {0, 1, 2, 3}}, /* tokens that see none after them */
        {{0, 0, 0, 0}, {2, 2, 4, 4}, {0, 1, 0, 1}}, /* a document that sees the one before */
        {{0, 0, 1, 2}, {2, 2, 4, 4}, {0, 1, 0, 1}}, /* not its first token */
        {{0, 0, 0, 0}, {4, 2, 4, 4}, {0, 1, 1, 2}}, /* a branch */
    };
    float x[64] = {0};
    const et_array a = {x, ET_F32};
    for (int i = 0; i < COUNT(wrong); i++)
        check_true(c,
                   et_attention_forward(c->ctx, a, x, a, a, a, wrong[i].begin, wrong[i].end, wrong[i].position, 1, 0, 4,
                                        4, 1, 1, 2) == ET_BAD_INDEX,
                   "range %d", i);
}

/* Pieces of [2] tokens, the second after the first, and one state, that are none. */
static void check_refused_pieces(struct check *c) {
    static const int32_t wrong[][ET_PIECE_COLUMNS] = {{-1, 1, 0, -1, -1}, {1, 0, 0, -1, -1}, {0, 3, 0, -1, -1},
                                                      {0, 2, 1, -1, -1},  {1, 2, 2, -1, -1}, {0, 2, -1, -1, -1},
                                                      {0, 2, 0, 1, -1},   {0, 2, 0, -1, 1},  {0, 2, 0, -2, -1}};
    const int32_t before[] = {-1, 0};
    float x[64] = {0};
    const et_array a = {x, ET_F32};
    for (int i = 0; i < COUNT(wrong); i++)
        check_true(
            c, et_delta_forward(c->ctx, a, x, a, x, x, x, x, before, wrong[i], 1, 16, 2, 1, 3, 4, 1) == ET_BAD_INDEX,
            "piece %d", i);
    const int32_t empty[] = {1, 1, 0, -1, 0}; /* which forward takes, to copy a state */
    check_true(c,
               et_delta_backward(c->ctx, a, x, x, x, a, a, x, x, x, x, x, before, empty, 1, 16, 2, 1, 3, 4, 1) ==
                   ET_BAD_INDEX,
               "a piece without tokens");
    const int32_t right[] = {0, 2, 0, -1, 0};
    check_true(c, et_delta_forward(c->ctx, a, x, a, x, x, x, x, right, right, 1, 16, 2, 1, 3, 4, 1) == ET_BAD_INDEX,
               "a token after itself");
    static const int heads[][2] = {{1, 2}, {2, 2}, {3, 7}};
    for (int i = 0; i < COUNT(heads); i++)
        check_true(c,
                   et_delta_forward(c->ctx, a, x, a, x, x, x, x, before, right, 1, 16, 2, heads[i][0], heads[i][1], 4,
                                    1) == ET_BAD_ARGUMENT,
                   "%d of %d heads", heads[i][0], heads[i][1]);
    static const int scans[][4] = {
        {48, 1, 8, 16}, {48, 1, 16, 8}, {176, 1, 144, 16}, {40, 1, 16, 16}, {112, 3, 16, 16}};
    for (int i = 0; i < COUNT(scans); i++)
        check_true(c,
                   et_ssm_forward(c->ctx, a, x, x, a, a, x, x, x, before, right, 1024, 2, scans[i][0], 3, scans[i][1],
                                  scans[i][2], scans[i][3], 1) == ET_BAD_ARGUMENT,
                   "scan %d", i);
    for (int C = 2; C < 200; C += 130)
        check_true(
            c, et_delta_forward(c->ctx, a, x, a, x, x, x, x, before, right, 1, 16, 2, 1, 3, C, 1) == ET_BAD_ARGUMENT,
            "states of %d", C);
}

void check_refusals(struct check *c) {
    float x[512] = {0};
    const et_array a = {x, ET_F32};
    const et_array h = {x, ET_BF16};
    const int32_t low[1] = {-1};
    const int32_t high[2] = {2};
    check_true(c, et_matmul_forward(c->ctx, a, a, x, 99, x, x, 1, 0, 1, 1, 32, 0) == ET_BAD_FORMAT, "unknown format");
    check_true(c, et_matmul_forward(c->ctx, a, a, x, ET_Q4_0, x, x, 1, 0, 1, 1, 33, 0) == ET_BAD_ARGUMENT,
               "K not whole blocks");
    check_true(c, et_matmul_backward(c->ctx, a, a, x, ET_Q4_K, x, x, 1, 0, 1, 1, 32, 0) == ET_BAD_ARGUMENT,
               "K below a block");
    check_true(c, et_matmul_forward(c->ctx, a, a, NULL, ET_F32, x, x, 1, 0, 1, 1, 1, 0) == ET_BAD_ARGUMENT,
               "no weight");
    check_true(c, et_matmul_forward(c->ctx, a, a, x, ET_F32, NULL, x, 1, 0, 1, 1, 1, 2) == ET_BAD_ARGUMENT, "no x");
    check_true(c, et_matmul_forward(c->ctx, h, a, x, ET_F32, x, x, 1, 1, 1, 1, 1, 0) == ET_BAD_ARGUMENT,
               "accumulating in bf16");
    check_true(c, et_matmul_dweight(c->ctx, x, a, a, 1, 0, 1, 1) == ET_BAD_ARGUMENT, "T 0");
    check_true(c, et_embed(c->ctx, x, low, x, ET_F32, 1, 1, 2, 4) == ET_BAD_INDEX, "token below the vocabulary");
    check_true(c, et_embed(c->ctx, x, high, x, ET_F32, 1, 1, 2, 4) == ET_BAD_INDEX, "token above the vocabulary");
    check_true(c, et_cache_store(c->ctx, a, a, a, a, low, 1, 1, 1, 1) == ET_BAD_INDEX, "a slot below the cache");
    const int32_t past[1] = {ET_CACHE};
    check_true(c, et_cache_store(c->ctx, a, a, a, a, past, 1, 1, 1, 1) == ET_BAD_INDEX, "a slot past the cache");
    check_true(c, et_attention_cached(c->ctx, a, a, a, a, past, 1, 0, 1, 1, 1, 1, 1, 1) == ET_BAD_INDEX,
               "a path past the cache");
    check_true(c, et_attention_cached(c->ctx, a, a, a, a, low, 1, 0, 1, 1, 1, 1, 1, 1) == ET_BAD_INDEX,
               "a path without a token");
    int32_t token[1];
    check_true(c,
               et_head_sample(c->ctx, token, x, x, x, x, a, x, ET_F32, high, NULL, -1, 0, 1, 0, 1, 1, 1, 1) ==
                   ET_BAD_ARGUMENT,
               "a temperature below 0");
    check_true(c, et_head_top(c->ctx, x, x, x, x, a, x, ET_F32, x, 0, 1, 0, 1, 1, 0, 1, 1) == ET_BAD_ARGUMENT,
               "no highest logits");
    check_true(c, et_causal_conv_forward(c->ctx, a, a, x, NULL, low, 1, 1, 2, 2, 4) == ET_BAD_ARGUMENT,
               "channels past a row");
    check_refused_ranges(c);
    check_refused_pieces(c);
    int threads = strcmp(c->isa, "cuda") == 0 ? 1 : CHECK_THREADS; /* a device's context has one */
    check_true(c, et_context_set_threads(c->ctx, 0) && et_context_set_threads(c->ctx, threads + 1), "bad threads");
    check_true(c, et_context_set_threads(c->ctx, threads) == ET_OK, "all threads");
    et_context *none = NULL;
    check_true(c, et_context_create(&none, "no such set", ET_EXACT, 1, x, sizeof x) == ET_NO_MEMORY,
               "scratch too small");
    check_refused_arrays(c, (et_array){x, ET_F16});
    check_refused_arrays(c, (et_array){x, ET_Q8_0});
    check_refused_arrays(c, (et_array){NULL, ET_F32});
}
