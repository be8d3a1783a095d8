/* Gated activations. */
#ifndef ET_GLU_H
#define ET_GLU_H

#include "../et.h"

struct glu_args {
    et_array out, gate, up;    /* [n]; backward, out is act */
    et_array dout, dgate, dup; /* backward alone */
    int kind, whole;           /* whole: fours of values are aligned */
    int64_t n;
};

#endif
