/* What a step of AdamW (Loshchilov & Hutter 2019) computes with, on a CPU and on a GPU. */
#ifndef ET_ADAMW_RATES_H
#define ET_ADAMW_RATES_H

#include "et.h"

struct adamw_rates {
    float beta1, beta2, eps;
    float shrink; /* 1 - lr * weight_decay */
    float rate;   /* lr / (1 - beta1^step) */
    float unbias; /* 1 / sqrt(1 - beta2^step) */
};

#ifndef __CUDACC__ /* the host's part */
#include <math.h>

static inline struct adamw_rates adamw_rates_of(float lr, float beta1, float beta2, float eps, float weight_decay,
                                                int64_t step) {
    return (struct adamw_rates){
        .beta1 = beta1,
        .beta2 = beta2,
        .eps = eps,
        .shrink = (float)(1.0 - (double)lr * weight_decay),
        .rate = (float)(lr / (1.0 - pow(beta1, (double)step))),
        .unbias = (float)(1.0 / sqrt(1.0 - pow(beta2, (double)step))),
    };
}
#endif

#endif
