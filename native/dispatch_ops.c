/* One door an op: its checks, then the kernel set's function. */
#include <math.h>

#include "dispatch.h"

/* What both products with a frozen weight [N, K] need. */
static int check_product(et_array out, et_array inp, const void *w, int format, const float *x, const float *y,
                         int accumulate, int T, int N, int K, int R) {
    NEED_ARRAYS(out, inp);
    NEED_ALL(w);
    NEED_POSITIVE(T, N, K);
    NEED((R == 0 || (R > 0 && x && y)) && (!accumulate || out.type == ET_F32), ET_BAD_ARGUMENT);
    return check_format(format, K);
}

int et_matmul_forward(et_context *ctx, et_array out, et_array inp, const void *w, int format, const float *x,
                      const float *y, float scale, int accumulate, int T, int N, int K, int R) {
    int code = check_product(out, inp, w, format, x, y, accumulate, T, N, K, R);
    return code ? code : RUN(matmul_forward, out, inp, w, format, x, y, scale, accumulate, T, N, K, R);
}

int et_matmul_backward(et_context *ctx, et_array dinp, et_array dout, const void *w, int format, const float *x,
                       const float *y, float scale, int accumulate, int T, int N, int K, int R) {
    int code = check_product(dinp, dout, w, format, x, y, accumulate, T, N, K, R);
    return code ? code : RUN(matmul_backward, dinp, dout, w, format, x, y, scale, accumulate, T, N, K, R);
}

int et_matmul_dweight(et_context *ctx, float *dw, et_array dout, et_array inp, float scale, int T, int N, int K) {
    NEED_ALL(dw);
    NEED_ARRAYS(dout, inp);
    NEED_POSITIVE(T, N, K);
    return RUN(matmul_dweight, dw, dout, inp, scale, T, N, K);
}

int et_dequantize(et_context *ctx, float *out, const void *w, int format, int64_t n) {
    NEED_ALL(out, w);
    NEED_POSITIVE(n, 1, 1);
    int code = check_format(format, n);
    return code ? code : RUN(dequantize, out, w, format, n);
}

int et_embed(et_context *ctx, float *out, const int32_t *tokens, const void *w, int format, float scale, int T, int V,
             int D) {
    NEED_ALL(out, tokens, w);
    NEED_POSITIVE(T, V, D);
    int code = check_format(format, D);
    NEED(!code, code);
    NEED(all_below(tokens, T, V), ET_BAD_INDEX);
    return RUN(embed, out, tokens, w, format, scale, T, V, D);
}

int et_rmsnorm_forward(et_context *ctx, et_array out, float *rstd, et_array inp, const float *weight, float eps,
                       int64_t rows, int D) {
    NEED_ARRAYS(out, inp);
    NEED_ALL(rstd, weight);
    NEED_POSITIVE(rows, D, 1);
    NEED(eps >= 0, ET_BAD_ARGUMENT);
    return RUN(rmsnorm_forward, out, rstd, inp, weight, eps, rows, D);
}

int et_rmsnorm_backward(et_context *ctx, et_array dinp, et_array dout, et_array inp, const float *weight,
                        const float *rstd, int accumulate, int64_t rows, int D) {
    NEED_ARRAYS(dinp, dout, inp);
    NEED_ALL(weight, rstd);
    NEED_POSITIVE(rows, D, 1);
    return RUN(rmsnorm_backward, dinp, dout, inp, weight, rstd, accumulate, rows, D);
}

int et_layernorm_forward(et_context *ctx, et_array out, float *mean, float *rstd, et_array inp, const float *weight,
                         const float *bias, float eps, int64_t rows, int D) {
    NEED_ARRAYS(out, inp);
    NEED_ALL(mean, rstd, weight);
    NEED_POSITIVE(rows, D, 1);
    NEED(eps >= 0, ET_BAD_ARGUMENT);
    return RUN(layernorm_forward, out, mean, rstd, inp, weight, bias, eps, rows, D);
}

int et_layernorm_backward(et_context *ctx, et_array dinp, et_array dout, et_array inp, const float *weight,
                          const float *mean, const float *rstd, int accumulate, int64_t rows, int D) {
    NEED_ARRAYS(dinp, dout, inp);
    NEED_ALL(weight, mean, rstd);
    NEED_POSITIVE(rows, D, 1);
    return RUN(layernorm_backward, dinp, dout, inp, weight, mean, rstd, accumulate, rows, D);
}

int et_rope(et_context *ctx, et_array x, const float *cos, const float *sin, const int32_t *positions, int neox,
            float sign, int T, int H, int C, int n_rot, int P) {
    NEED_ARRAYS(x);
    NEED_ALL(cos, sin, positions);
    NEED_POSITIVE(T, H, C);
    NEED_POSITIVE(n_rot, P, 1);
    NEED(n_rot % 2 == 0 && n_rot <= C && (sign == 1 || sign == -1), ET_BAD_ARGUMENT);
    NEED(all_below(positions, T, P), ET_BAD_INDEX);
    return RUN(rope, x, cos, sin, positions, neox, sign, T, H, C, n_rot, P);
}

/* Whether tokens t .. end - 1 are whole subtrees of a parent at this position. */
static int are_children(const int32_t *end, const int32_t *position, int t, int last, int32_t parent) {
    for (; t < last; t = end[t])
        if (end[t] <= t || end[t] > last || position[t] != parent + 1)
            return 0;
    return 1;
}

/* Whether each token's first is that of its document, and no document has branches. */
static int are_documents(const int32_t *begin, const int32_t *end, int T) {
    for (int t = 0, first = 0; t < T; t++) {
        first = t && end[t - 1] == t ? t : first;
        if (begin[t] != first || end[t] != end[first])
            return 0;
    }
    return 1;
}

static int widest_head(const et_context *ctx) { return et_device_of(ctx) ? ET_NARROW_HEAD : ET_MAX_HEAD; }

/* What both directions of attention need of sizes and of the forest, whose roots may have any position. */
static int check_attention(const et_context *ctx, const int32_t *begin, const int32_t *end, const int32_t *position,
                           int window, int Q, int T, int H, int G, int C) {
    NEED_POSITIVE(T, H, G);
    NEED(Q > 0 && Q <= T && C > 0 && C <= widest_head(ctx) && H % G == 0 && window >= 0, ET_BAD_ARGUMENT);
    for (int t = 0; t < T; t = end[t])
        NEED(end[t] > t && end[t] <= T && position[t] >= 0, ET_BAD_INDEX);
    for (int t = 0; t < T; t++)
        NEED(are_children(end, position, t + 1, end[t], position[t]), ET_BAD_INDEX);
    NEED(!begin || are_documents(begin, end, T), ET_BAD_INDEX);
    return ET_OK;
}

int et_attention_forward(et_context *ctx, et_array out, float *lse, et_array q, et_array k, et_array v,
                         const int32_t *begin, const int32_t *end, const int32_t *position, float scale, int window,
                         int Q, int T, int H, int G, int C) {
    NEED_ARRAYS(out, q, k, v);
    NEED_ALL(lse, end, position);
    int code = check_attention(ctx, begin, end, position, window, Q, T, H, G, C);
    return code ? code : RUN(attention_forward, out, lse, q, k, v, begin, end, position, scale, window, Q, T, H, G, C);
}

int et_attention_backward(et_context *ctx, et_array dq, et_array dk, et_array dv, float *delta, et_array dout,
                          et_array out, const float *lse, et_array q, et_array k, et_array v, const int32_t *begin,
                          const int32_t *end, const int32_t *position, float scale, int window, int Q, int T, int H,
                          int G, int C) {
    NEED_ARRAYS(dq, dk, dv, dout, out, q, k, v);
    NEED_ALL(delta, lse, end, position);
    int code = check_attention(ctx, begin, end, position, window, Q, T, H, G, C);
    return code ? code
                : RUN(attention_backward, dq, dk, dv, delta, dout, out, lse, q, k, v, begin, end, position, scale,
                      window, Q, T, H, G, C);
}

int et_glu_forward(et_context *ctx, et_array out, et_array gate, et_array up, int kind, int64_t n) {
    NEED_ARRAYS(out, gate, up);
    NEED(n > 0 && kind >= 0 && kind <= 3, ET_BAD_ARGUMENT);
    return RUN(glu_forward, out, gate, up, kind, n);
}

int et_glu_backward(et_context *ctx, et_array dgate, et_array dup, et_array act, et_array dout, et_array gate,
                    et_array up, int kind, int64_t n) {
    NEED_ARRAYS(dgate, dup, act, dout, gate, up);
    NEED(n > 0 && kind >= 0 && kind <= 3, ET_BAD_ARGUMENT);
    return RUN(glu_backward, dgate, dup, act, dout, gate, up, kind, n);
}

int et_gelu_forward(et_context *ctx, et_array out, et_array inp, int64_t n) {
    NEED_ARRAYS(out, inp);
    NEED_POSITIVE(n, 1, 1);
    return RUN(gelu_forward, out, inp, n);
}

int et_gelu_backward(et_context *ctx, et_array dinp, et_array act, et_array dout, et_array inp, int64_t n) {
    NEED_ARRAYS(dinp, act, dout, inp);
    NEED_POSITIVE(n, 1, 1);
    return RUN(gelu_backward, dinp, act, dout, inp, n);
}

int et_add_bias(et_context *ctx, et_array x, const float *bias, int T, int N) {
    NEED_ARRAYS(x);
    NEED_ALL(bias);
    NEED_POSITIVE(T, N, 1);
    return RUN(add_bias, x, bias, T, N);
}

int et_copy(et_context *ctx, et_array out, et_array inp, int64_t n) {
    NEED_ARRAYS(out, inp);
    NEED_POSITIVE(n, 1, 1);
    return RUN(copy, out, inp, n);
}

int et_add(et_context *ctx, float *x, const float *y, int64_t n) {
    NEED_ALL(x, y);
    NEED_POSITIVE(n, 1, 1);
    return RUN(add, x, y, n);
}

int et_dropout(et_context *ctx, et_array out, et_array inp, float p, uint64_t seed, int accumulate, int64_t n) {
    NEED_ARRAYS(out, inp);
    NEED(n > 0 && p >= 0 && p < 1, ET_BAD_ARGUMENT);
    return RUN(dropout, out, inp, p, seed, accumulate, n);
}

/* A cap of logits is 0, none, or positive; devices have none. */
static int may_cap(const et_context *ctx, float cap) {
    return cap == 0 || (cap > 0 && isfinite(cap) && !et_device_of(ctx));
}

/* What both directions of the head need. */
static int check_head(const et_context *ctx, int format, const int32_t *targets, float cap, int block, int begin,
                      int end, int T, int V, int D) {
    NEED_POSITIVE(T, V, D);
    NEED(may_cap(ctx, cap), ET_BAD_ARGUMENT);
    NEED(block > 0 && 0 <= begin && (begin < end || begin == V) && end <= V && begin <= end && D <= ET_THREAD_FLOATS,
         ET_BAD_ARGUMENT);
    int code = check_format(format, D);
    NEED(!code, code);
    NEED(all_below(targets, T, V), ET_BAD_INDEX);
    return ET_OK;
}

int et_head_forward(et_context *ctx, float *logp, int32_t *best, float *logits, float *state, et_array h, const void *w,
                    int format, const int32_t *targets, float cap, int block, int begin, int end, int T, int V, int D) {
    NEED_ALL(logp, logits, state, w, targets);
    NEED_ARRAYS(h);
    int code = check_head(ctx, format, targets, cap, block, begin, end, T, V, D);
    return code ? code
                : RUN(head_forward, logp, best, logits, state, h, w, format, targets, cap, block, begin, end, T, V, D);
}

int et_head_backward(et_context *ctx, float *dh, float *logp, float *logits, et_array e, float *state, et_array h,
                     const void *w, int format, const int32_t *targets, const float *a, float cap, int block, int begin,
                     int end, int T, int V, int D) {
    NEED_ALL(dh, logp, logits, state, w, targets);
    NEED_ARRAYS(h, e);
    int code = check_head(ctx, format, targets, cap, block, begin, end, T, V, D);
    return code ? code
                : RUN(head_backward, dh, logp, logits, e, state, h, w, format, targets, a, cap, block, begin, end, T, V,
                      D);
}

/* What both ops on a cache of L blocks need of it, and of the slots of n tokens from -1 on, or from 0. */
static int check_cache(const et_context *ctx, const int32_t *slot, int64_t n, int least, int L, int G, int C) {
    NEED_POSITIVE(L, G, n);
    NEED(C > 0 && C <= widest_head(ctx) && L <= INT32_MAX / ET_CACHE, ET_BAD_ARGUMENT);
    for (int64_t i = 0; i < n; i++)
        NEED(slot[i] >= least && slot[i] < L * ET_CACHE, ET_BAD_INDEX);
    return ET_OK;
}

int et_cache_store(et_context *ctx, et_array keys, et_array values, et_array k, et_array v, const int32_t *slot, int T,
                   int L, int G, int C) {
    NEED_ARRAYS(keys, values, k, v);
    NEED_ALL(slot);
    int code = check_cache(ctx, slot, T, 0, L, G, C);
    return code ? code : RUN(cache_store, keys, values, k, v, slot, T, L, G, C);
}

int et_attention_cached(et_context *ctx, et_array out, et_array q, et_array keys, et_array values, const int32_t *path,
                        float scale, int window, int T, int P, int L, int H, int G, int C) {
    NEED_ARRAYS(out, q, keys, values);
    NEED_ALL(path);
    NEED_POSITIVE(T, P, H);
    int code = check_cache(ctx, path, (int64_t)T * P, -1, L, G, C);
    NEED(!code, code);
    NEED(H % G == 0 && window >= 0, ET_BAD_ARGUMENT);
    for (int t = 0; t < T; t++)
        NEED(path[(int64_t)t * P] >= 0, ET_BAD_INDEX);
    return RUN(attention_cached, out, q, keys, values, path, scale, window, T, P, L, H, G, C);
}

/* What both ops that look for tokens need. */
static int check_drawing(const et_context *ctx, int format, float cap, int block, int begin, int end, int T, int V,
                         int D) {
    NEED_POSITIVE(T, V, D);
    NEED(may_cap(ctx, cap), ET_BAD_ARGUMENT);
    NEED(block > 0 && 0 <= begin && begin < end && end <= V, ET_BAD_ARGUMENT);
    return check_format(format, D);
}

int et_head_sample(et_context *ctx, int32_t *token, float *logp, float *drawn, float *logits, float *state, et_array h,
                   const void *w, int format, const int32_t *key, const float *limit, float temperature, float cap,
                   int block, int begin, int end, int T, int V, int D) {
    NEED_ALL(token, logp, drawn, logits, state, w, key);
    NEED_ARRAYS(h);
    int code = check_drawing(ctx, format, cap, block, begin, end, T, V, D);
    NEED(!code, code);
    NEED(temperature == 0 || (temperature > 0 && isfinite(1 / temperature)), ET_BAD_ARGUMENT);
    return RUN(head_sample, token, logp, drawn, logits, state, h, w, format, key, limit, temperature, cap, block, begin,
               end, T, V, D);
}

int et_head_top(et_context *ctx, float *top, float *lse, float *logits, float *state, et_array h, const void *w,
                int format, const float *limit, float cap, int block, int begin, int end, int T, int M, int V, int D) {
    NEED_ALL(top, lse, logits, state, w, limit);
    NEED_ARRAYS(h);
    NEED(M > 0, ET_BAD_ARGUMENT);
    int code = check_drawing(ctx, format, cap, block, begin, end, T, V, D);
    return code ? code
                : RUN(head_top, top, lse, logits, state, h, w, format, limit, cap, block, begin, end, T, M, V, D);
}

int et_adamw(et_context *ctx, float *param, const float *grad, float *m, float *v, float lr, float beta1, float beta2,
             float eps, float weight_decay, int64_t step, int64_t n) {
    NEED_ALL(param, grad, m, v);
    NEED_POSITIVE(step, n, 1);
    NEED(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1 && eps >= 0, ET_BAD_ARGUMENT);
    return RUN(adamw, param, grad, m, v, lr, beta1, beta2, eps, weight_decay, step, n);
}

int et_adamw8(et_context *ctx, float *param, const float *grad, struct et_moments *moments, float lr, float beta1,
              float beta2, float eps, float weight_decay, int64_t step, uint64_t seed, int64_t n) {
    NEED_ALL(param, grad, moments);
    NEED_POSITIVE(step, n, 1);
    NEED(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1 && eps >= 0, ET_BAD_ARGUMENT);
    return RUN(adamw8, param, grad, moments, lr, beta1, beta2, eps, weight_decay, step, seed, n);
}

int et_sum_squares(et_context *ctx, double *out, const float *x, int64_t n) {
    NEED_ALL(out, x);
    NEED_POSITIVE(n, 1, 1);
    return RUN(sum_squares, out, x, n);
}

int et_scale(et_context *ctx, float *x, float s, int64_t n) {
    NEED_ALL(x);
    NEED_POSITIVE(n, 1, 1);
    return RUN(scale, x, s, n);
}
