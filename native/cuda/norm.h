/* RMS norms, a block a row. */
#ifndef ET_NORM_H
#define ET_NORM_H

#include "launch.h"

struct norm_args {
    et_array out, inp, dout; /* [rows, D]; dout backward alone, where out is dinp */
    float *rstd;             /* [rows], written forward */
    const float *weight;     /* [D] */
    float eps;
    int accumulate, D, whole; /* whole: fours of values are aligned */
};

struct norm_shared {
    float sums[ET_WARPS];
};

#endif
