/* Weights as floats: all of them, or rows by token. */
#ifndef ET_WEIGHTS_H
#define ET_WEIGHTS_H

#include "../et.h"

struct weights_args {
    float *out;            /* [rows, columns] */
    const int32_t *tokens; /* [rows], which row of w each is; NULL: the row of the same number */
    const void *w;
    float scale;
    int aligned; /* as unpack.cuh says */
    int64_t rows, columns;
};

#endif
