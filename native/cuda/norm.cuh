/* RMS norms, layer norms and their backward passes: a block a row, four values a thread at a time. */
#include "block.cuh"
#include "four.cuh"
#include "norm.h"

KERNEL(rmsnorm_forward, norm_args) {
    norm_shared *shared = shared_memory<norm_shared>();
    const int64_t row = (int64_t)blockIdx.x * a.D;
    float square = 0;
    for (int i = 4 * (int)threadIdx.x; i < a.D; i += 4 * (int)blockDim.x) {
        four x = get_four(a.inp, row + i, row + a.D, a.whole);
        for (int k = 0; k < 4; k++)
            square += x.x[k] * x.x[k];
    }
    float rstd = 1.0f / sqrtf(block_sum(square, shared->sums) / (float)a.D + a.eps);
    for (int i = 4 * (int)threadIdx.x; i < a.D; i += 4 * (int)blockDim.x) {
        four x = get_four(a.inp, row + i, row + a.D, a.whole);
        four weight = get_four(floats(a.weight), i, a.D, a.whole);
        for (int k = 0; k < 4; k++)
            x.x[k] = x.x[k] * rstd * weight.x[k];
        put_four(a.out, row + i, x, row + a.D, a.whole);
    }
    if (threadIdx.x == 0)
        a.rstd[blockIdx.x] = rstd;
}

/* dinp = rstd (dout w - inp rstd^2 mean(dout w inp)) */
KERNEL(rmsnorm_backward, norm_args) {
    norm_shared *shared = shared_memory<norm_shared>();
    const int64_t row = (int64_t)blockIdx.x * a.D;
    float rstd = a.rstd[blockIdx.x];
    float pull = 0;
    for (int i = 4 * (int)threadIdx.x; i < a.D; i += 4 * (int)blockDim.x) {
        four d = get_four(a.dout, row + i, row + a.D, a.whole);
        four x = get_four(a.inp, row + i, row + a.D, a.whole);
        four weight = get_four(floats(a.weight), i, a.D, a.whole);
        for (int k = 0; k < 4; k++)
            pull += d.x[k] * weight.x[k] * x.x[k];
    }
    pull = block_sum(pull, shared->sums) * rstd * rstd / (float)a.D;
    for (int i = 4 * (int)threadIdx.x; i < a.D; i += 4 * (int)blockDim.x) {
        four d = get_four(a.dout, row + i, row + a.D, a.whole);
        four x = get_four(a.inp, row + i, row + a.D, a.whole);
        four weight = get_four(floats(a.weight), i, a.D, a.whole);
        four sum = {};
        if (a.accumulate)
            sum = get_four(a.out, row + i, row + a.D, a.whole);
        for (int k = 0; k < 4; k++)
            sum.x[k] += rstd * (d.x[k] * weight.x[k] - x.x[k] * pull);
        put_four(a.out, row + i, sum, row + a.D, a.whole);
    }
}

KERNEL(layernorm_forward, norm_args) {
    norm_shared *shared = shared_memory<norm_shared>();
    const int64_t row = (int64_t)blockIdx.x * a.D;
    float sum = 0;
    float square = 0;
    for (int i = 4 * (int)threadIdx.x; i < a.D; i += 4 * (int)blockDim.x) {
        four x = get_four(a.inp, row + i, row + a.D, a.whole);
        for (int k = 0; k < 4; k++)
            sum += x.x[k];
    }
    float mean = block_sum(sum, shared->sums) / (float)a.D;
    for (int i = 4 * (int)threadIdx.x; i < a.D; i += 4 * (int)blockDim.x) {
        four x = get_four(a.inp, row + i, row + a.D, a.whole);
        for (int k = 0; k < 4 && i + k < a.D; k++)
            square += (x.x[k] - mean) * (x.x[k] - mean);
    }
    float rstd = 1.0f / sqrtf(block_sum(square, shared->sums) / (float)a.D + a.eps);
    for (int i = 4 * (int)threadIdx.x; i < a.D; i += 4 * (int)blockDim.x) {
        four x = get_four(a.inp, row + i, row + a.D, a.whole);
        four weight = get_four(floats(a.weight), i, a.D, a.whole);
        four bias = {};
        if (a.bias)
            bias = get_four(floats(a.bias), i, a.D, a.whole);
        for (int k = 0; k < 4; k++)
            x.x[k] = (x.x[k] - mean) * rstd * weight.x[k] + bias.x[k];
        put_four(a.out, row + i, x, row + a.D, a.whole);
    }
    if (threadIdx.x == 0) {
        a.mean[blockIdx.x] = mean;
        a.rstd[blockIdx.x] = rstd;
    }
}

/* dinp = rstd (d - mean(d) - x rstd^2 mean(d x)), d = dout w, x = inp - mean */
KERNEL(layernorm_backward, norm_args) {
    norm_shared *shared = shared_memory<norm_shared>();
    const int64_t row = (int64_t)blockIdx.x * a.D;
    float mean = a.mean[blockIdx.x];
    float rstd = a.rstd[blockIdx.x];
    float sum = 0;
    float pull = 0;
    for (int i = 4 * (int)threadIdx.x; i < a.D; i += 4 * (int)blockDim.x) {
        four d = get_four(a.dout, row + i, row + a.D, a.whole);
        four x = get_four(a.inp, row + i, row + a.D, a.whole);
        four weight = get_four(floats(a.weight), i, a.D, a.whole);
        for (int k = 0; k < 4; k++) {
            sum += d.x[k] * weight.x[k];
            pull += d.x[k] * weight.x[k] * (x.x[k] - mean);
        }
    }
    sum = block_sum(sum, shared->sums) / (float)a.D;
    pull = block_sum(pull, shared->sums) * rstd * rstd / (float)a.D;
    for (int i = 4 * (int)threadIdx.x; i < a.D; i += 4 * (int)blockDim.x) {
        four d = get_four(a.dout, row + i, row + a.D, a.whole);
        four x = get_four(a.inp, row + i, row + a.D, a.whole);
        four weight = get_four(floats(a.weight), i, a.D, a.whole);
        four total = {};
        if (a.accumulate)
            total = get_four(a.out, row + i, row + a.D, a.whole);
        for (int k = 0; k < 4; k++)
            total.x[k] += rstd * (d.x[k] * weight.x[k] - sum - (x.x[k] - mean) * pull);
        put_four(a.out, row + i, total, row + a.D, a.whole);
    }
}
