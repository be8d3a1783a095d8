/* The table: one kernel set an instruction set, in it one function pointer an op.
 *
 * ET_OPS is the list of ops. It makes the fields of a kernel set, the prototypes that generic.h compiles once an ISA,
 * and the prototypes of the double-precision truth in ref.h, so the three cannot drift apart. The functions have the
 * arguments of et.h, already checked by dispatch.c, and cannot fail.
 */
#ifndef ET_TABLE_H
#define ET_TABLE_H

#include "et.h"

// clang-format off
#define ET_OPS(OP)                                                                                                     \
    OP(matmul_forward, (et_context * ctx, et_array out, et_array inp, const void *w, int format, const float *x,       \
                        const float *y, float scale, int accumulate, int T, int N, int K, int R))                      \
    OP(matmul_backward, (et_context * ctx, et_array dinp, et_array dout, const void *w, int format, const float *x,    \
                         const float *y, float scale, int accumulate, int T, int N, int K, int R))                     \
    OP(matmul_dweight, (et_context * ctx, float *dw, et_array dout, et_array inp, float scale, int T, int N, int K))   \
    OP(dequantize, (et_context * ctx, float *out, const void *w, int format, int64_t n))                               \
    OP(embed, (et_context * ctx, float *out, const int32_t *tokens, const void *w, int format, float scale, int T,     \
               int V, int D))                                                                                          \
    OP(rmsnorm_forward, (et_context * ctx, et_array out, float *rstd, et_array inp, const float *weight, float eps,    \
                         int64_t rows, int D))                                                                         \
    OP(rmsnorm_backward, (et_context * ctx, et_array dinp, et_array dout, et_array inp, const float *weight,           \
                          const float *rstd, int accumulate, int64_t rows, int D))                                     \
    OP(layernorm_forward, (et_context * ctx, et_array out, float *mean, float *rstd, et_array inp,                     \
                           const float *weight, const float *bias, float eps, int64_t rows, int D))                    \
    OP(layernorm_backward, (et_context * ctx, et_array dinp, et_array dout, et_array inp, const float *weight,         \
                            const float *mean, const float *rstd, int accumulate, int64_t rows, int D))                \
    OP(rope, (et_context * ctx, et_array x, const float *cos, const float *sin, const int32_t *positions, int neox,    \
              float sign, int T, int H, int C, int n_rot, int P))                                                      \
    OP(attention_forward, (et_context * ctx, et_array out, float *lse, et_array q, et_array k, et_array v,             \
                           const int32_t *begin, const int32_t *end, const int32_t *position, float scale, int window, \
                           int Q, int T, int H, int G, int C))                                                         \
    OP(attention_backward, (et_context * ctx, et_array dq, et_array dk, et_array dv, float *delta, et_array dout,      \
                            et_array out, const float *lse, et_array q, et_array k, et_array v,                        \
                            const int32_t *begin, const int32_t *end, const int32_t *position, float scale,            \
                            int window, int Q, int T, int H, int G, int C))                                            \
    OP(glu_forward, (et_context * ctx, et_array out, et_array gate, et_array up, int kind, int64_t n))                 \
    OP(glu_backward, (et_context * ctx, et_array dgate, et_array dup, et_array act, et_array dout, et_array gate,      \
                      et_array up, int kind, int64_t n))                                                               \
    OP(gelu_forward, (et_context * ctx, et_array out, et_array inp, int64_t n))                                        \
    OP(gelu_backward, (et_context * ctx, et_array dinp, et_array act, et_array dout, et_array inp, int64_t n))         \
    OP(conv_forward, (et_context * ctx, et_array out, et_array inp, const float *w, const int32_t *before, int T,      \
                      int D, int L))                                                                                   \
    OP(conv_backward, (et_context * ctx, et_array dinp, float *sums, et_array dout, et_array inp, const float *w,      \
                       const int32_t *before, int T, int D, int L))                                                    \
    OP(causal_conv_forward, (et_context * ctx, et_array out, et_array inp, const float *w, const float *bias,          \
                             const int32_t *before, int first, int T, int W, int D, int L))                            \
    OP(causal_conv_backward, (et_context * ctx, et_array dinp, float *sums, et_array dout, et_array inp,               \
                              const float *w, const float *bias, const int32_t *before, int first, int T, int W,       \
                              int D, int L))                                                                           \
    OP(delta_forward, (et_context * ctx, et_array out, float *states, et_array qkv, const float *beta,                 \
                       const float *alpha, const float *a, const float *dt, const int32_t *before,                     \
                       const int32_t *pieces, float eps, int64_t floats, int T, int H, int E, int C, int P))           \
    OP(delta_backward, (et_context * ctx, et_array dqkv, float *dbeta, float *dalpha, float *dstates, et_array dout,   \
                        et_array qkv, const float *beta, const float *alpha, const float *a, const float *dt,          \
                        const float *states, const int32_t *before, const int32_t *pieces, float eps, int64_t floats,  \
                        int T, int H, int E, int C, int P))                                                            \
    OP(ssm_forward, (et_context * ctx, et_array out, float *states, float *steps, et_array inp, et_array rows,         \
                     const float *bias, const float *a, const float *skip, const int32_t *before,                      \
                     const int32_t *pieces, int64_t floats, int T, int W, int E, int H, int C, int N, int P))          \
    OP(ssm_backward, (et_context * ctx, float *dinp, et_array drows, float *states, float *dstates, float *steps,      \
                      et_array dout, et_array inp, et_array rows, const float *bias, const float *a,                   \
                      const float *skip, const int32_t *before, const int32_t *pieces, int64_t floats, int T, int W,   \
                      int E, int H, int C, int N, int P))                                                              \
    OP(add_bias, (et_context * ctx, et_array x, const float *bias, int T, int N))                                      \
    OP(copy, (et_context * ctx, et_array out, et_array inp, int64_t n))                                                \
    OP(add, (et_context * ctx, float *x, const float *y, int64_t n))                                                   \
    OP(dropout, (et_context * ctx, et_array out, et_array inp, float p, uint64_t seed, int accumulate, int64_t n))     \
    OP(head_forward, (et_context * ctx, float *logp, int32_t *best, float *logits, float *state, et_array h,           \
                      const void *w, int format, const int32_t *targets, float cap, int block, int begin, int end,     \
                      int T, int V, int D))                                                                            \
    OP(head_backward, (et_context * ctx, float *dh, float *logp, float *logits, et_array e, float *state,              \
                       et_array h, const void *w, int format, const int32_t *targets, const float *a, float cap,       \
                       int block, int begin, int end, int T, int V, int D))                                            \
    OP(cache_store, (et_context * ctx, et_array keys, et_array values, et_array k, et_array v, const int32_t *slot,    \
                     int T, int L, int G, int C))                                                                      \
    OP(attention_cached, (et_context * ctx, et_array out, et_array q, et_array keys, et_array values,                  \
                          const int32_t *path, float scale, int window, int T, int P, int L, int H, int G, int C))     \
    OP(head_sample, (et_context * ctx, int32_t *token, float *logp, float *drawn, float *logits, float *state,         \
                     et_array h, const void *w, int format, const int32_t *key, const float *limit, float temperature, \
                     float cap, int block, int begin, int end, int T, int V, int D))                                   \
    OP(head_top, (et_context * ctx, float *top, float *lse, float *logits, float *state, et_array h, const void *w,    \
                  int format, const float *limit, float cap, int block, int begin, int end, int T, int M, int V,      \
                  int D))                                                                                              \
    OP(adamw, (et_context * ctx, float *param, const float *grad, float *m, float *v, float lr, float beta1,           \
               float beta2, float eps, float weight_decay, int64_t step, int64_t n))                                   \
    OP(adamw8, (et_context * ctx, float *param, const float *grad, struct et_moments *moments, float lr, float beta1,  \
                float beta2, float eps, float weight_decay, int64_t step, uint64_t seed, int64_t n))                   \
    OP(sum_squares, (et_context * ctx, double *out, const float *x, int64_t n))                                        \
    OP(scale, (et_context * ctx, float *x, float s, int64_t n))
// clang-format on

struct et_kernel_set {
    const char *name;
    unsigned needs;                                                       /* CPU_* bits of needs.h */
    const char *(*product)(enum et_precision precision, int backward);    /* "float", "bf16" or "int8" */
    double (*peak)(enum et_precision precision, int backward, int64_t n); /* runs n times what peak.h has; operations */
#define OP(name, args) void(*name) args;
    ET_OPS(OP)
#undef OP
};

#endif
