/* GELU without a gate, element by element. */
#ifndef ET_GELU_H
#define ET_GELU_H

#include "launch.h"

struct gelu_args {
    et_array out, inp, dout, dinp; /* the last two backward alone */
    int64_t n;
    int whole; /* fours of values are aligned */
};

#endif
