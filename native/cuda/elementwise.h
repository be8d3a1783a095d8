/* Element by element: copy, add, bias, scale, dropout and the sum of squares. */
#ifndef ET_ELEMENTWISE_H
#define ET_ELEMENTWISE_H

#include "launch.h"

struct elementwise_args {
    et_array out, inp;
    float scale;
    int accumulate, whole; /* whole: fours of values are aligned */
    uint32_t threshold;    /* dropout keeps a value whose bits are at least p * 2^32 */
    uint64_t seed;
    int64_t n;
};

struct add_bias_args {
    et_array x;        /* [T, N] */
    const float *bias; /* [N] */
    int T, N, whole;
};

struct sum_squares_args {
    const float *x;
    double *parts; /* of each block */
    int64_t n;
    int whole;
};

struct sum_squares_shared {
    double sums[ET_WARPS];
};

#endif
