/* Head and loss: rows of logits, and what becomes of them. */
#ifndef ET_HEAD_CUDA_H
#define ET_HEAD_CUDA_H

#include "launch.h"

struct head_state { /* of a token: of all logits but the target's so far, their maximum and sum of exp(z - max) */
    float max, sum, target, best;
};

struct head_args {
    float *logp;         /* [T], after the last entries alone, else NULL */
    float *dh;           /* [T, D], or NULL: forward */
    const float *logits; /* [T, n] */
    et_array e;          /* [T, n], may be logits */
    struct head_state *state;
    int32_t *best; /* or NULL */
    const int32_t *targets;
    const float *a;
    const float *w;  /* [T, D], rows of the targets */
    int first, n, D; /* the block's first entry of the vocabulary, and its entries */
};

struct head_shared {
    uint64_t ranks[ET_WARPS];
    float sums[ET_WARPS];
};

#endif
