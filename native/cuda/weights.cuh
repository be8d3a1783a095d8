/* Weights as floats: a thread a run. */
#include "unpack.cuh"
#include "weights.h"

template <int format> DEVICE void weights_to_floats(const weights_args &a) {
    constexpr int block = format_size<format>::block;
    constexpr int bytes = format_size<format>::bytes;
    int64_t runs = (a.columns + ET_RUN - 1) / ET_RUN;
    int64_t i = (int64_t)blockIdx.x * ET_BLOCK + threadIdx.x;
    int64_t row = i / runs;
    int64_t column = i % runs * ET_RUN;
    if (row >= a.rows)
        return;
    int64_t blocks = (a.tokens ? a.tokens[row] : row) * (a.columns / block) + column / block;
    int count = (int)(a.columns - column < ET_RUN ? a.columns - column : ET_RUN);
    run<format> r = {};
    float x[ET_RUN];
    fetch(r, (const uint8_t *)a.w + blocks * bytes, (int)(column % block), count, a.aligned);
    values(x, r);
    float *out = a.out + row * a.columns + column;
    for (int j = 0; j < ET_RUN; j++)
        if (j < count)
            out[j] = a.scale * x[j];
}
