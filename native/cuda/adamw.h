/* AdamW, with moments in float or in 8 bits. */
#ifndef ET_ADAMW_CUDA_H
#define ET_ADAMW_CUDA_H

#include "../et.h"

struct adamw_args {
    float *param; /* [n] */
    const float *grad;
    float *m, *v;
    struct et_moments *moments; /* instead of m and v */
    float beta1, beta2, eps;
    float shrink; /* 1 - lr * weight_decay */
    float rate;   /* lr / (1 - beta1^step) */
    float unbias; /* 1 / sqrt(1 - beta2^step) */
    int whole;    /* fours of values are aligned */
    uint64_t seed;
    int64_t n;
};

#endif
