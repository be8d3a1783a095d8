/* RMS norms and layer norms, a block a row. */
#ifndef ET_NORM_H
#define ET_NORM_H

#include "launch.h"

struct norm_args {
    et_array out, inp, dout; /* [rows, D]; dout backward alone, where out is dinp */
    float *mean, *rstd;      /* [rows], written forward; mean of layer norms alone */
    const float *weight;     /* [D] */
    const float *bias;       /* [D], of layer norms, or NULL */
    float eps;
    int accumulate, D, whole; /* whole: fours of values are aligned */
};

struct norm_shared {
    float sums[ET_WARPS];
};

#endif
