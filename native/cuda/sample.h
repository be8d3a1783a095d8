/* Tokens drawn, and the highest logits, by rows of logits. */
#ifndef ET_SAMPLE_CUDA_H
#define ET_SAMPLE_CUDA_H

#include "launch.h"

struct sample_state { /* of a row, of all logits so far: maximum, sum of exp(z - max), of exp((z - max) / temperature)
                       * where drawn from; the highest noisy value, and its logit */
    float max, sum, hot, best, logit;
};

struct sample_args {
    int32_t *token;      /* [T] */
    float *logp, *drawn; /* [T], after the last entries alone, else NULL */
    float *top, *lse;    /* [T, M], [T]; lse as logp */
    const float *logits; /* [T, n] */
    struct sample_state *state;
    const int32_t *key; /* [T, 2] */
    const float *limit; /* [T], or NULL: drawn from are logits from it on; of top, logits below it */
    float heat;         /* 1 / temperature; 0: the highest logit is taken */
    int first, n, M;    /* the block's first entry and its entries; values in a row of top */
};

struct sample_shared {
    uint64_t ranks[ET_WARPS];
    float sums[ET_WARPS];
};

#define ET_DIGITS 16 /* that a key is sorted by, four bits at a time */

struct top_shared {
    float sums[ET_WARPS];
    int ranks[ET_WARPS];
    int totals[ET_DIGITS];
    int counts[ET_DIGITS][ET_BLOCK]; /* a column a thread, so that nothing is added by two */
};

#endif
