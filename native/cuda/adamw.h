/* AdamW, with moments in float or in 8 bits. */
#ifndef ET_ADAMW_CUDA_H
#define ET_ADAMW_CUDA_H

#include "../adamw_rates.h"

struct adamw_args {
    struct adamw_rates rates;
    float *param; /* [n] */
    const float *grad;
    float *m, *v;
    struct et_moments *moments; /* instead of m and v */
    int whole;                  /* fours of values are aligned */
    uint64_t seed;
    int64_t n;
};

#endif
