/* RMS norms and their backward passes: a block a row. */
#include "block.cuh"
#include "norm.h"

KERNEL(rmsnorm_forward, norm_args) {
    norm_shared *shared = shared_memory<norm_shared>();
    int64_t row = (int64_t)blockIdx.x * a.D;
    float square = 0;
    for (int i = (int)threadIdx.x; i < a.D; i += (int)blockDim.x)
        square += array_get(a.inp, row + i) * array_get(a.inp, row + i);
    float rstd = 1.0f / sqrtf(block_sum(square, shared->sums) / (float)a.D + a.eps);
    for (int i = (int)threadIdx.x; i < a.D; i += (int)blockDim.x)
        array_put(a.out, row + i, array_get(a.inp, row + i) * rstd * a.weight[i]);
    if (threadIdx.x == 0)
        a.rstd[blockIdx.x] = rstd;
}

/* dinp = rstd (dout w - inp rstd^2 mean(dout w inp)) */
KERNEL(rmsnorm_backward, norm_args) {
    norm_shared *shared = shared_memory<norm_shared>();
    int64_t row = (int64_t)blockIdx.x * a.D;
    float rstd = a.rstd[blockIdx.x];
    float pull = 0;
    for (int i = (int)threadIdx.x; i < a.D; i += (int)blockDim.x)
        pull += array_get(a.dout, row + i) * a.weight[i] * array_get(a.inp, row + i);
    pull = block_sum(pull, shared->sums) * rstd * rstd / (float)a.D;
    for (int i = (int)threadIdx.x; i < a.D; i += (int)blockDim.x) {
        float d = rstd * (array_get(a.dout, row + i) * a.weight[i] - array_get(a.inp, row + i) * pull);
        array_put(a.out, row + i, a.accumulate ? array_get(a.out, row + i) + d : d);
    }
}
