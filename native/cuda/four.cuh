/* Arrays four values at a time, where they are aligned to four. */
#ifndef ET_FOUR_CUH
#define ET_FOUR_CUH

#include "../either.h"
#include "kernel.h"

/* For the first of each four of n values that are this thread's of the grid. */
#define EACH_FOUR(i, n)                                                                                                \
    for (int64_t i = 4 * ((int64_t)blockIdx.x * blockDim.x + threadIdx.x); i < (n);                                    \
         i += 4 * (int64_t)gridDim.x * blockDim.x)

struct alignas(16) four {
    float x[4];
};

struct alignas(8) four_halves {
    uint16_t x[4];
};

/* Values i .. i + 3 below n, and 0 for the others. whole: value i is aligned to four, as the host has found. */
DEVICE four get_four(et_array a, int64_t i, int64_t n, int whole) {
    four v = {};
    if (!whole || i + 4 > n) {
        for (int k = 0; k < 4; k++)
            if (i + k < n)
                v.x[k] = array_get(a, i + k);
    } else if (a.type == ET_F32)
        v = *(const four *)((const float *)a.data + i);
    else {
        four_halves halves = *(const four_halves *)((const uint16_t *)a.data + i);
        for (int k = 0; k < 4; k++)
            v.x[k] = bf16_to_float(halves.x[k]);
    }
    return v;
}

DEVICE void put_four(et_array a, int64_t i, four v, int64_t n, int whole) {
    if (!whole || i + 4 > n) {
        for (int k = 0; k < 4; k++)
            if (i + k < n)
                array_put(a, i + k, v.x[k]);
    } else if (a.type == ET_F32)
        *(four *)((float *)a.data + i) = v;
    else {
        four_halves halves;
        for (int k = 0; k < 4; k++)
            halves.x[k] = float_to_bf16(v.x[k]);
        *(four_halves *)((uint16_t *)a.data + i) = halves;
    }
}

DEVICE et_array floats(const float *x) { return {(void *)x, ET_F32}; }

#endif
