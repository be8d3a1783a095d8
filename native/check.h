/* The harness' library (check.c), and what its program (check_main.c) runs on each kernel set. */
#ifndef ET_CHECK_H
#define ET_CHECK_H

#include "ref.h"

#define COUNT(a) ((int)(sizeof(a) / sizeof(a)[0]))
#define CHECK_THREADS 3 /* of the context under test */

/* One kernel set under test and its tally. */
struct check {
    et_context *ctx;
    const char *isa;
    enum et_precision precision; /* of ctx */
    int passed, failed;
    double worst; /* the largest error / tolerance seen */
};

/* 64 bits of noise, a pure function of (seed, i): splitmix64. */
uint64_t check_noise(uint64_t seed, uint64_t i);
/* n floats of noise in [-1, 1), a pure function of seed, with canaries at both ends. Freed by check_free. */
float *check_floats(size_t n, uint64_t seed);
/* A copy of x (from check_floats) with its own canaries, for the truth of an op that works in place. */
float *check_copy(const float *x, size_t n);
/* The same as activations of a type; and a copy with its own canaries. */
et_array check_array(size_t n, int type, uint64_t seed);
et_array check_array_copy(et_array a, size_t n);
/* Such a copy as another type. */
et_array check_array_as(et_array a, size_t n, int type);
/* 1 if the canaries around x, which the above gave, are whole. */
int check_guards(const void *x);
/* The values of an array as floats, with canaries. */
float *check_values(et_array a, size_t n);
/* n integers in [0, limit), a pure function of seed. */
int32_t *check_ints(size_t n, int limit, uint64_t seed);
/* Tokens in depth-first order: most continue the one before, others an earlier one of its document, or begin another. */
void check_forest(int32_t *before, int T, int branches);
/* As edgetune/data/packing.py, with at most `longest` tokens in one; the number of pieces. kept, ahead: [T]. */
int check_pieces(int32_t *pieces, const int32_t *before, int32_t *kept, int32_t *ahead, int T, int longest);
/* Frees all that the above gave. */
void check_free(void);

/* One check: got [n] against want [n]; the error is max |got - want| / max |want|, and both must be finite or equal in
 * kind. Also looks at the canaries around got, which must come from check_floats or check_copy. `what` is printf. */
__attribute__((format(printf, 6, 7))) void check_close(struct check *c, const float *got, const float *want, size_t n,
                                                       double tolerance, const char *what, ...);
/* The same for activations; bf16 may also be off by its rounding, 2^-8 of each value. */
__attribute__((format(printf, 6, 7))) void check_array_close(struct check *c, et_array got, const float *want, size_t n,
                                                             double tolerance, const char *what, ...);
/* One check: a fact. */
__attribute__((format(printf, 3, 4))) void check_true(struct check *c, int fact, const char *what, ...);

/* What a context multiplies a quantized weight in, forward or backward: as et_context_product, and "int8 of 128" where
 * runs are long; and what it multiplies in elsewhere, "float" or "bf16". */
enum factor { CHECK_FORWARD, CHECK_BACKWARD, CHECK_NO_WEIGHT };
const char *check_numbers(et_context *ctx, enum factor factor);
/* 1 if c multiplies in what it multiplies in at a lower precision, too: numbers alone choose a kernel, which was checked
 * there. */
int check_is_repeated(struct check *c, enum factor factor);

/* check_products.c: products at c's precision, and that `alone`, a context of one thread, gives the same bits. */
void check_products(struct check *c, et_context *alone);
/* check_products.c: weights of every format as floats, and rows of them by token. */
void check_formats(struct check *c);
/* check_attention.c: attention at c's precision, and that `alone`, a context of one thread, gives the same bits. */
void check_attentions(struct check *c, et_context *alone);
/* check_answers.c: attention over a cache, with which `alone`, a context of one thread, gives the same bits; and tokens
 * that are drawn. */
void check_cached(struct check *c, et_context *alone);
void check_draws(struct check *c);
/* check_ops.c: all ops but those of the other files. */
void check_ops(struct check *c);
/* check_mixers.c: what blocks have in place of attention. */
void check_mixers(struct check *c);
/* check_delta.c: the gated delta rule at c's precision. */
void check_delta(struct check *c);
/* check_ssm.c: the scan of Mamba 2 at c's precision, and that `alone`, a context of one thread, gives the same bits. */
void check_ssm(struct check *c, et_context *alone);
/* check_adamw.c: the optimizer. */
void check_optimizer(struct check *c);
/* check_refusals.c: arguments that are out of range, missing, or of another type. */
void check_refusals(struct check *c);

#endif
