/* Rotary embedding, a thread a pair. */
#ifndef ET_ROPE_H
#define ET_ROPE_H

#include "../et.h"

struct rope_args {
    et_array x;             /* [T, H, C] */
    const float *cos, *sin; /* [P, pairs] */
    const int32_t *positions;
    int neox, H, C, pairs;
    float sign;
    int64_t n; /* T * H * pairs */
};

#endif
