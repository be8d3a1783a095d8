/* The doors of what blocks have in place of attention: convolutions, the delta rule, the scan. */
#include "dispatch.h"

/* What all convolutions need. */
static int check_conv(const int32_t *before, int T, int D, int L) {
    NEED_POSITIVE(T, D, L);
    NEED(L <= ET_MAX_CONV, ET_BAD_ARGUMENT);
    for (int t = 0; t < T; t++)
        NEED(before[t] >= -1 && before[t] < t, ET_BAD_INDEX);
    return ET_OK;
}

int et_conv_forward(et_context *ctx, et_array out, et_array inp, const float *w, const int32_t *before, int T, int D,
                    int L) {
    NEED_ARRAYS(out, inp);
    NEED_ALL(w, before);
    int code = check_conv(before, T, D, L);
    return code ? code : RUN(conv_forward, out, inp, w, before, T, D, L);
}

int et_conv_backward(et_context *ctx, et_array dinp, float *sums, et_array dout, et_array inp, const float *w,
                     const int32_t *before, int T, int D, int L) {
    NEED_ARRAYS(dinp, dout, inp);
    NEED_ALL(sums, w, before);
    int code = check_conv(before, T, D, L);
    return code ? code : RUN(conv_backward, dinp, sums, dout, inp, w, before, T, D, L);
}

int et_causal_conv_forward(et_context *ctx, et_array out, et_array inp, const float *w, const float *bias,
                           const int32_t *before, int first, int T, int W, int D, int L) {
    NEED_ARRAYS(out, inp);
    NEED_ALL(w, before);
    int code = check_conv(before, T, D, L);
    NEED(!code, code);
    NEED(first >= 0 && first <= W - D, ET_BAD_ARGUMENT);
    return RUN(causal_conv_forward, out, inp, w, bias, before, first, T, W, D, L);
}

int et_causal_conv_backward(et_context *ctx, et_array dinp, float *sums, et_array dout, et_array inp, const float *w,
                            const float *bias, const int32_t *before, int first, int T, int W, int D, int L) {
    NEED_ARRAYS(dinp, dout, inp);
    NEED_ALL(sums, w, before);
    int code = check_conv(before, T, D, L);
    NEED(!code, code);
    NEED(first >= 0 && first <= W - D, ET_BAD_ARGUMENT);
    return RUN(causal_conv_backward, dinp, sums, dout, inp, w, bias, before, first, T, W, D, L);
}

/* Pieces of T tokens, at least `least` each, and of `slots` states. */
static int check_pieces(const int32_t *before, const int32_t *pieces, int least, int64_t slots, int T, int P) {
    for (int t = 0; t < T; t++)
        NEED(before[t] >= -1 && before[t] < t, ET_BAD_INDEX);
    for (const int32_t *piece = pieces; piece < pieces + (size_t)P * ET_PIECE_COLUMNS; piece += ET_PIECE_COLUMNS) {
        NEED(piece[0] >= 0 && piece[0] <= piece[1] - least && piece[1] <= T, ET_BAD_INDEX);
        NEED(piece[2] >= 0 && piece[2] < ET_PIECE && piece[1] - piece[0] <= ET_PIECE - piece[2], ET_BAD_INDEX);
        NEED(piece[3] >= -1 && piece[3] < slots && piece[4] >= -1 && piece[4] < slots, ET_BAD_INDEX);
        NEED(!piece[2] || piece[0] < T, ET_BAD_INDEX);
        int32_t at = piece[0];
        for (int i = 0; i < piece[2]; i++) {
            at = before[at];
            NEED(at >= 0, ET_BAD_INDEX);
        }
    }
    return ET_OK;
}

/* What both directions of the delta rule need; least: tokens of a piece. */
static int check_delta(const int32_t *before, const int32_t *pieces, int least, int64_t floats, int T, int H, int E,
                       int C, int P) {
    NEED_POSITIVE(T, H, P);
    NEED(C > 0 && C <= ET_MAX_STATE && C % 4 == 0 && floats >= 0, ET_BAD_ARGUMENT);
    NEED(E > H && (E - H) % 2 == 0 && H % ((E - H) / 2) == 0, ET_BAD_ARGUMENT);
    return check_pieces(before, pieces, least, floats / ((int64_t)H * C * C), T, P);
}

int et_delta_forward(et_context *ctx, et_array out, float *states, et_array qkv, const float *beta, const float *alpha,
                     const float *a, const float *dt, const int32_t *before, const int32_t *pieces, float eps,
                     int64_t floats, int T, int H, int E, int C, int P) {
    NEED_ARRAYS(out, qkv);
    NEED_ALL(states, beta, alpha, a, dt, before, pieces);
    int code = check_delta(before, pieces, 0, floats, T, H, E, C, P);
    return code ? code
                : RUN(delta_forward, out, states, qkv, beta, alpha, a, dt, before, pieces, eps, floats, T, H, E, C, P);
}

int et_delta_backward(et_context *ctx, et_array dqkv, float *dbeta, float *dalpha, float *dstates, et_array dout,
                      et_array qkv, const float *beta, const float *alpha, const float *a, const float *dt,
                      const float *states, const int32_t *before, const int32_t *pieces, float eps, int64_t floats,
                      int T, int H, int E, int C, int P) {
    NEED_ARRAYS(dqkv, dout, qkv);
    NEED_ALL(dbeta, dalpha, dstates, beta, alpha, a, dt, states, before, pieces);
    int code = check_delta(before, pieces, 1, floats, T, H, E, C, P);
    return code ? code
                : RUN(delta_backward, dqkv, dbeta, dalpha, dstates, dout, qkv, beta, alpha, a, dt, states, before,
                      pieces, eps, floats, T, H, E, C, P);
}

/* What both directions of the scan need. */
static int check_ssm(const int32_t *before, const int32_t *pieces, int64_t floats, int T, int W, int E, int H, int C,
                     int N, int P) {
    NEED_POSITIVE(T, H, P);
    NEED(C > 0 && C <= ET_MAX_STATE && C % 16 == 0 && N > 0 && N <= ET_MAX_STATE && N % 16 == 0, ET_BAD_ARGUMENT);
    NEED(floats >= 0 && E >= H && (int64_t)P + T <= ET_SHARED_FLOATS, ET_BAD_ARGUMENT);
    int64_t shared = W - (int64_t)H * C; /* of B and C */
    NEED(shared > 0 && shared % (2 * N) == 0 && H % (shared / (2 * N)) == 0, ET_BAD_ARGUMENT);
    return check_pieces(before, pieces, 1, floats / ((int64_t)H * N * C), T, P);
}

int et_ssm_forward(et_context *ctx, et_array out, float *states, float *steps, et_array inp, et_array rows,
                   const float *bias, const float *a, const float *skip, const int32_t *before, const int32_t *pieces,
                   int64_t floats, int T, int W, int E, int H, int C, int N, int P) {
    NEED_ARRAYS(out, inp, rows);
    NEED_ALL(states, steps, bias, a, skip, before, pieces);
    int code = check_ssm(before, pieces, floats, T, W, E, H, C, N, P);
    return code ? code
                : RUN(ssm_forward, out, states, steps, inp, rows, bias, a, skip, before, pieces, floats, T, W, E, H, C,
                      N, P);
}

int et_ssm_backward(et_context *ctx, float *dinp, et_array drows, float *states, float *dstates, float *steps,
                    et_array dout, et_array inp, et_array rows, const float *bias, const float *a, const float *skip,
                    const int32_t *before, const int32_t *pieces, int64_t floats, int T, int W, int E, int H, int C,
                    int N, int P) {
    NEED_ARRAYS(drows, dout, inp, rows);
    NEED_ALL(dinp, states, dstates, steps, bias, a, skip, before, pieces);
    int code = check_ssm(before, pieces, floats, T, W, E, H, C, N, P);
    return code ? code
                : RUN(ssm_backward, dinp, drows, states, dstates, steps, dout, inp, rows, bias, a, skip, before, pieces,
                      floats, T, W, E, H, C, N, P);
}
