/* edgetune's native core: the C ABI.
 *
 * All arrays are row-major float32 unless said otherwise. Letters: T tokens, D model width, F MLP width,
 * H query heads, G key/value heads, C head width, V vocabulary, R LoRA rank; N rows (outputs) and K columns
 * (inputs) of a weight. Outputs come first, then inputs, then sizes. Every function returns ET_OK or a negative
 * code, never prints, exits or allocates (but for et_context_create), and writes only its outputs.
 * Unless the comment says "accumulates", outputs are overwritten. Outputs must not overlap inputs unless said.
 *
 * Results do not depend on the number of threads: work is cut into tasks whose outputs are disjoint, and which
 * thread takes a task changes no bit.
 */
#ifndef ET_H
#define ET_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum et_code {
    ET_OK = 0,
    ET_BAD_ARGUMENT = -1, /* a size is zero, negative or not a multiple of what the format needs */
    ET_BAD_FORMAT = -2,   /* unknown weight format */
    ET_BAD_INDEX = -3,    /* a token, target or position outside its range, or tokens that are no forest */
    ET_NO_ISA = -4,       /* the named kernel set does not exist, or this CPU cannot run it */
    ET_NO_MEMORY = -5,    /* scratch too small, or the context could not be created */
    ET_DEVICE = -6,       /* the context's device failed, now or in an op before; it can do no more */
};

/* Weight formats, ET_F32 and so on, numbered as in GGUF (ggml_type). */
enum et_format {
#define FORMAT(name, number, ...) ET_##name = number,
#include "formats.def"
#undef FORMAT
};

/* How the products of et_matmul_* and attention are computed; sums, and all else, are float.
 * ET_EXACT: in float. ET_FAST: in the quickest way that keeps the gradient of a LoRA within a cosine of 0.9995 of
 * float's: bf16 where the CPU multiplies it, both sides rounded to nearest; else float, and backward, but for the head,
 * in 8-bit integers in runs of 32. ET_INT8: in 8-bit integers, for a cosine of 0.995: along what is summed, in runs of
 * 32, backward but for the head of 128, both sides are rounded to 127ths of the run's largest magnitude, but forward w
 * keeps its codes in the formats whose blocks have one scale; LoRA's part is float. Where the CPU has no dot products of bytes, weights are in F32 or the summed size is
 * no multiple of 32, and in attention, it is ET_FAST. */
enum et_precision { ET_EXACT = 0, ET_FAST = 1, ET_INT8 = 2 };

/* Activations: float (type ET_F32), or bf16 (type ET_BF16), which takes half the memory and is rounded to nearest where
 * it is written. What is called float * is float always. */
typedef struct {
    void *data;
    int type;
} et_array;

int et_format_block(int format); /* weights a block, or ET_BAD_FORMAT */
int et_format_bytes(int format); /* bytes a block, or ET_BAD_FORMAT */

/* The kernel sets of isas.def that were compiled in, best first, scalar last; NULL past the end. */
const char *et_isa_name(int i);
int et_isa_usable(int i);          /* 1 if CPU and OS can run set i and EDGETUNE_ISA does not hide it */
const char *et_cpu_features(void); /* what detection found, space separated, for `doctor` */

/* A context: a kernel set, a pool of threads, and the scratch that all ops pack into.
 * isa NULL: the best usable set. The scratch belongs to the caller and must outlive the context. */
typedef struct et_context et_context; /* runs one op at a time: not for two threads at once */
size_t et_scratch_bytes(int threads);
int et_context_create(et_context **ctx, const char *isa, enum et_precision precision, int threads, void *scratch,
                      size_t scratch_bytes);
void et_context_destroy(et_context *ctx);
void et_context_set_precision(et_context *ctx, enum et_precision precision); /* from the next op on */
/* From the next op on, only `threads` of the context's threads work; the others sleep. 1 <= threads <= those it has. */
int et_context_set_threads(et_context *ctx, int threads);
/* Waits until all ops so far are done; a CPU's ops are when they return. Returns ET_OK or ET_DEVICE. */
int et_context_synchronize(et_context *ctx);
const char *et_context_isa(const et_context *ctx);
/* What et_matmul_forward or _backward multiply in, in this kernel set at this precision: "float", "bf16" or "int8". */
const char *et_context_product(const et_context *ctx, int backward);
/* Runs a loop of such multiplications and additions in registers n times on every thread that works, for its time to be
 * taken as the most that products could reach; returns the operations done. */
double et_register_loop(et_context *ctx, int backward, int64_t n);

/* ---- products with a frozen weight w [N, K] in any format, and LoRA's part of rank R beside it ------------------ */
/* out [T, N] (accumulate: +)= scale * (inp [T, K] . w^T + x [T, R] . y [N, R]^T); R = 0: x and y are not looked at.
 * Where accumulating, out is float. Where it is bf16 and K large, sums are rounded once every few thousand of K. */
int et_matmul_forward(et_context *ctx, et_array out, et_array inp, const void *w, int format, const float *x,
                      const float *y, float scale, int accumulate, int T, int N, int K, int R);
/* dinp [T, K] (accumulate: +)= scale * (dout [T, N] . w + x [T, R] . y [R, K]); as forward. */
int et_matmul_backward(et_context *ctx, et_array dinp, et_array dout, const void *w, int format, const float *x,
                       const float *y, float scale, int accumulate, int T, int N, int K, int R);
/* dw [N, K] += scale * dout [T, N]^T . inp [T, K]; accumulates. For the small float weights of LoRA. */
int et_matmul_dweight(et_context *ctx, float *dw, et_array dout, et_array inp, float scale, int T, int N, int K);
/* out [n] = the values of n consecutive weights; n a multiple of the block */
int et_dequantize(et_context *ctx, float *out, const void *w, int format, int64_t n);
/* out [T, D] = scale * rows tokens[t] of w [V, D] */
int et_embed(et_context *ctx, float *out, const int32_t *tokens, const void *w, int format, float scale, int T, int V,
             int D);

/* ---- the parts of a block ---------------------------------------------------------------------------------- */
/* out = inp * rstd * weight, rstd [rows] = 1/sqrt(mean(inp^2) + eps); rows of D. out may be inp. */
int et_rmsnorm_forward(et_context *ctx, et_array out, float *rstd, et_array inp, const float *weight, float eps,
                       int64_t rows, int D);
/* dinp (accumulate: +)= gradient through the norm; the weight is frozen. dinp may be dout when not accumulating. */
int et_rmsnorm_backward(et_context *ctx, et_array dinp, et_array dout, et_array inp, const float *weight,
                        const float *rstd, int accumulate, int64_t rows, int D);
/* out = (inp - mean) * rstd * weight + bias, rstd [rows] = 1/sqrt(variance + eps); rows of D. bias NULL: none. out may be
 * inp. */
int et_layernorm_forward(et_context *ctx, et_array out, float *mean, float *rstd, et_array inp, const float *weight,
                         const float *bias, float eps, int64_t rows, int D);
/* dinp (accumulate: +)= gradient through the norm; weight and bias are frozen. dinp may be dout when not accumulating. */
int et_layernorm_backward(et_context *ctx, et_array dinp, et_array dout, et_array inp, const float *weight,
                          const float *mean, const float *rstd, int accumulate, int64_t rows, int D);
/* x [T, H, C] rotated in place by cos/sin [P, n_rot/2] at row positions[t]; the last C - n_rot values stay.
 * neox 0: pairs (2i, 2i+1); 1: pairs (i, i + n_rot/2). sign +1 forward, -1 backward (the inverse rotation). */
int et_rope(et_context *ctx, et_array x, const float *cos, const float *sin, const int32_t *positions, int neox,
            float sign, int T, int H, int C, int n_rot, int P);
/* Grouped-query attention. k, v [T, G, C]; out, q [Q, H, C] of the last Q of these T tokens; lse [H, Q] is the
 * log-sum-exp, kept for backward.
 * Tokens are a forest in depth-first order: those of the subtree of token j are j .. end[j] - 1, position[j] is that
 * of its parent plus 1. Documents one after another are trees without branches. Token t sees token j if begin[j] <= t <
 * end[j] and, unless window is 0, |position[t] - position[j]| < window. begin NULL: begin[j] is j, so tokens see none
 * after them. Else all are documents, and begin[j] is the first token of j's: tokens see both ways. C <= ET_MAX_HEAD, on a
 * device ET_NARROW_HEAD.
 * Never holds T x T.
 * Each array may have another type. Where the context is not ET_EXACT and the kernel set multiplies bf16, all products,
 * with the probabilities too, are of numbers rounded to bf16, and sums are in float. */
#define ET_MAX_HEAD 512
#define ET_NARROW_HEAD 256
int et_attention_forward(et_context *ctx, et_array out, float *lse, et_array q, et_array k, et_array v,
                         const int32_t *begin, const int32_t *end, const int32_t *position, float scale, int window,
                         int Q, int T, int H, int G, int C);
/* dk, dv [T, G, C] are what the Q queries add; delta [H, Q] is work space. */
int et_attention_backward(et_context *ctx, et_array dq, et_array dk, et_array dv, float *delta, et_array dout,
                          et_array out, const float *lse, et_array q, et_array k, et_array v, const int32_t *begin,
                          const int32_t *end, const int32_t *position, float scale, int window, int Q, int T, int H,
                          int G, int C);
/* out = act(gate) * up, n values. kind 0: SiLU (SwiGLU), 1: tanh-approximated GELU (GeGLU), 2: GELU, 3: sigmoid. out may be gate
 * or up. */
int et_glu_forward(et_context *ctx, et_array out, et_array gate, et_array up, int kind, int64_t n);
/* Also act, which forward gave, so that it need not be kept. dgate, dup may be dout or each their own forward input. */
int et_glu_backward(et_context *ctx, et_array dgate, et_array dup, et_array act, et_array dout, et_array gate,
                    et_array up, int kind, int64_t n);
/* out [n] = inp * Phi(inp), Phi(x) = (1 + erf(x / sqrt(2))) / 2: GELU without a gate. out may be inp. */
int et_gelu_forward(et_context *ctx, et_array out, et_array inp, int64_t n);
/* Also act, which forward gave. dinp may be dout or inp. */
int et_gelu_backward(et_context *ctx, et_array dinp, et_array act, et_array dout, et_array inp, int64_t n);
/* A gated short convolution: inp [T, 3 D] holds b, c and x of each token, out [T, D] = c * sum over j < L of w_j * (b * x
 * of the token j before). w [L, D], L <= ET_MAX_CONV; before[t] < t is the token before t in its document, -1: none. */
#define ET_MAX_CONV 8
int et_conv_forward(et_context *ctx, et_array out, et_array inp, const float *w, const int32_t *before, int T, int D,
                    int L);
/* dinp [T, 3 D] of dout [T, D]; sums [T, D] is work space. */
int et_conv_backward(et_context *ctx, et_array dinp, float *sums, et_array dout, et_array inp, const float *w,
                     const int32_t *before, int T, int D, int L);
/* A convolution with SiLU, of D channels of inp [T, W] from `first` on: out [T, D] = SiLU(bias + sum over j < L of w_j *
 * inp of the token j before). w [L, D]; bias [D] or NULL; before as above. */
int et_causal_conv_forward(et_context *ctx, et_array out, et_array inp, const float *w, const float *bias,
                           const int32_t *before, int first, int T, int W, int D, int L);
/* Those channels of dinp [T, W], and no others, of dout [T, D]; sums [T, D] is work space. dinp may not be inp. */
int et_causal_conv_backward(et_context *ctx, et_array dinp, float *sums, et_array dout, et_array inp, const float *w,
                            const float *bias, const int32_t *before, int first, int T, int W, int D, int L);
/* The gated delta rule: out [T, H, C] of qkv [T, 2 G + H, C], each token's q of G heads, k of G heads and v of H heads;
 * value head h has q and k of head h % G, which become 1 / sqrt(C) and 1 long. A head's state S [C, C] passes
 * from token to token of a document: P = e^g S, d = sigmoid(beta) (v - P^T k), S = P + k d^T, out = S^T q, where g = a
 * ln(1 + e^(alpha + dt)). beta, alpha [T, H]; a, dt [H]; C a multiple of 4, up to ET_MAX_STATE.
 *
 * pieces [P, ET_PIECE_COLUMNS], in order: a run begin .. end - 1 of tokens, each of which the next continues; how many
 * tokens before it, of its document, it replays, by before [T], from the state `source` on (-1: zeros); the state that is
 * kept at its end (-1: none). It has up to ET_PIECE tokens with what it replays. All tokens are in one piece each;
 * one without tokens copies a state. states are [floats / (H C C), H, C, C]. Where the context is not ET_EXACT, C is a
 * multiple of 32, and the kernel set multiplies bf16, products of pieces of more than 16 tokens are of numbers rounded to
 * bf16, and sums are in float, states too. */
#define ET_MAX_STATE 128
#define ET_PIECE 64
#define ET_PIECE_COLUMNS 5
int et_delta_forward(et_context *ctx, et_array out, float *states, et_array qkv, const float *beta, const float *alpha,
                     const float *a, const float *dt, const int32_t *before, const int32_t *pieces, float eps,
                     int64_t floats, int T, int H, int E, int C, int P);
/* dqkv, dbeta, dalpha of dout; E is 2 G + H. dstates is work space as large as states, which forward has left. */
int et_delta_backward(et_context *ctx, et_array dqkv, float *dbeta, float *dalpha, float *dstates, et_array dout,
                      et_array qkv, const float *beta, const float *alpha, const float *a, const float *dt,
                      const float *states, const int32_t *before, const int32_t *pieces, float eps, int64_t floats,
                      int T, int H, int E, int C, int P);
/* The scan of Mamba 2: out [T, H, C] of inp [T, W], each token's x of H heads of C values, B of G groups of N and C of as
 * many, and of the last H of the E values of rows [T, E]. A head's state S [N, C] passes from token to token of a
 * document: S = e^(dt a) S + B (dt x)^T, out = S^T C + skip x, dt = ln(1 + e^(row + bias)). bias, a and skip [H]; C and N
 * are multiples of 16 up to ET_MAX_STATE. before and pieces as above; states [floats / (H N C), H, N, C] and steps [3, H,
 * T] are work space. Products are rounded as above, where C and N are multiples of 32. */
int et_ssm_forward(et_context *ctx, et_array out, float *states, float *steps, et_array inp, et_array rows,
                   const float *bias, const float *a, const float *skip, const int32_t *before, const int32_t *pieces,
                   int64_t floats, int T, int W, int E, int H, int C, int N, int P);
/* dinp [T, W] and the last H of the E values of each row of drows; dstates is work space as states are. */
int et_ssm_backward(et_context *ctx, float *dinp, et_array drows, float *states, float *dstates, float *steps,
                    et_array dout, et_array inp, et_array rows, const float *bias, const float *a, const float *skip,
                    const int32_t *before, const int32_t *pieces, int64_t floats, int T, int W, int E, int H, int C,
                    int N, int P);
/* x [T, N] += bias [N] */
int et_add_bias(et_context *ctx, et_array x, const float *bias, int T, int N);
/* out [n] = inp [n], from one type to the other or the same */
int et_copy(et_context *ctx, et_array out, et_array inp, int64_t n);
/* x [n] += y [n] */
int et_add(et_context *ctx, float *x, const float *y, int64_t n);
/* out = inp * keep / (1 - p); keep is a pure function of (seed, index), so backward calls it again on dout.
 * accumulate: out += ... . out may be inp when not accumulating. */
int et_dropout(et_context *ctx, et_array out, et_array inp, float p, uint64_t seed, int accumulate, int64_t n);

/* ---- head and loss, fused: logits exist for `block` entries of the vocabulary at a time -------------------------- */
/* A call goes over entries begin .. end - 1; several calls, in order from 0 to V, do what one does, if state (and dh)
 * stay as they were left. logp and dh are there after the last, and again after one that begins at V. */
#define ET_HEAD_STATE 4
/* logp [T] = log softmax(h [T, D] . w [V, D]^T)[targets]; best [T] = arg max (NULL: not wanted). Work space: logits
 * [T, block], state [T, ET_HEAD_STATE]. */
int et_head_forward(et_context *ctx, float *logp, int32_t *best, float *logits, float *state, et_array h, const void *w,
                    int format, const int32_t *targets, float cap, int block, int begin, int end, int T, int V, int D);
/* With a [T] = -dL/dlogp: dh [T, D] = sum_v a_t (softmax(z_t) - onehot(target_t))_v w_v; logp as above. Where a depends
 * on logp, it may be NULL up to V, and the call that begins there, with the same state and dh, has it. e [T, block] is
 * work space too: in the type that is multiplied, it need not be converted; floats may be logits. */
int et_head_backward(et_context *ctx, float *dh, float *logp, float *logits, et_array e, float *state, et_array h,
                     const void *w, int format, const int32_t *targets, const float *a, float cap, int block, int begin,
                     int end, int T, int V, int D);

/* ---- answers: one token more of many at a time ------------------------------------------------------------------- */
/* A cache of keys [L, G, C, ET_CACHE] and values [L, G, ET_CACHE, C] has L blocks of ET_CACHE tokens. Slot i is token
 * i % ET_CACHE of block i / ET_CACHE. Of T tokens k, v [T, G, C] go to the slots slot [T], each another. */
#define ET_CACHE 16
int et_cache_store(et_context *ctx, et_array keys, et_array values, et_array k, et_array v, const int32_t *slot, int T,
                   int L, int G, int C);
/* Attention of T queries q [T, H, C] in float, each over the tokens along its path [T, P]: an entry is the slot of the
 * last token of a block that is seen, from the block's first on; -1 ends a path that has fewer than P. With a window, of
 * these tokens the last `window` are seen. What is not seen may be anything. Queries may share blocks; the result of one
 * does not depend on the others. */
int et_attention_cached(et_context *ctx, et_array out, et_array q, et_array keys, et_array values, const int32_t *path,
                        float scale, int window, int T, int P, int L, int H, int G, int C);
/* token [T] = one drawn from softmax(z_t / temperature), z_t = h_t . w^T, among logits >= limit[t] (limit NULL: all);
 * temperature 0: the first of the highest. logp [T]: its log-probability by softmax(z_t) of all; drawn [T]: in what it
 * was drawn from. It is the highest of z / temperature - log(-log(u)), u = 1 - min((b + 1/2) / 2^31, 1 - 2^-24), where b
 * are the upper 31 of the 32 random bits that et_dropout has for the key key [T, 2], low word first, and the token as
 * the value's index. Parts of the vocabulary, logits [T, block] and state [T, ET_SAMPLE_STATE] as in et_head_forward. */
#define ET_SAMPLE_STATE 5
int et_head_sample(et_context *ctx, int32_t *token, float *logp, float *drawn, float *logits, float *state, et_array h,
                   const void *w, int format, const int32_t *key, const float *limit, float temperature, float cap,
                   int block, int begin, int end, int T, int V, int D);
/* top [T, M] = the M highest logits below limit[t], in no order, -inf where there are fewer; lse [T] of all logits. */
int et_head_top(et_context *ctx, float *top, float *lse, float *logits, float *state, et_array h, const void *w,
                int format, const float *limit, float cap, int block, int begin, int end, int T, int M, int V, int D);

/* ---- optimizer --------------------------------------------------------------------------------------------- */
/* Decoupled AdamW (Loshchilov & Hutter 2019), bias-corrected; step counts from 1. */
int et_adamw(et_context *ctx, float *param, const float *grad, float *m, float *v, float lr, float beta1, float beta2,
             float eps, float weight_decay, int64_t step, int64_t n);
/* The two moments of ET_MOMENTS parameters in 8 bits, each with its largest as a scale: m = m_scale * (c / 127)^4 with
 * c's sign, v = v_scale * (c / 255)^8. All zero bytes are moments of zero. */
#define ET_MOMENTS 256
struct et_moments {
    float m_scale, v_scale;
    int8_t m[ET_MOMENTS];
    uint8_t v[ET_MOMENTS];
};
/* The same step with moments in 8 bits, [ceil(n / ET_MOMENTS)]. They are rounded after the step, m to the
 * nearest code, v to one of the two beside it at random, so that it is right on average: a step changes v by less than
 * the nearest code would show. Chance is a pure function of (seed, index). v is never rounded to 0. */
int et_adamw8(et_context *ctx, float *param, const float *grad, struct et_moments *moments, float lr, float beta1,
              float beta2, float eps, float weight_decay, int64_t step, uint64_t seed, int64_t n);
/* *out = sum of x^2 in double, in an order that does not depend on the threads */
int et_sum_squares(et_context *ctx, double *out, const float *x, int64_t n);
/* x [n] *= s */
int et_scale(et_context *ctx, float *x, float s, int64_t n);

#ifdef __cplusplus
}
#endif
#endif
