/* Element by element, four values a thread at a time. They are loaded before they are stored, so the in-place uses that
 * et.h allows are safe. */
#include "block.cuh"
#include "elementwise.h"
#include "four.cuh"
#include "random.cuh"

DEVICE void scaled_copy_values(const elementwise_args &a, et_array out, et_array inp) {
    EACH_FOUR(i, a.n) {
        four x = get_four(inp, i, a.n, a.whole);
        four sum = {};
        if (a.accumulate)
            sum = get_four(out, i, a.n, a.whole);
        for (int k = 0; k < 4; k++)
            x.x[k] = a.accumulate ? sum.x[k] + x.x[k] * a.scale : x.x[k] * a.scale;
        put_four(out, i, x, a.n, a.whole);
    }
}

/* out (accumulate: +)= scale * inp */
KERNEL(scaled_copy, elementwise_args) {
    et_array out = a.out;
    et_array inp = a.inp;
    EITHER(out, EITHER(inp, scaled_copy_values(a, out, inp)));
}

DEVICE void dropout_values(const elementwise_args &a, et_array out, et_array inp) {
    EACH_FOUR(i, a.n) {
        four x = get_four(inp, i, a.n, a.whole);
        four sum = {};
        if (a.accumulate)
            sum = get_four(out, i, a.n, a.whole);
        uint64_t key = random_key(a.seed, i);
        for (int k = 0; k < 4; k++) {
            uint32_t bits = random_bits(key, (uint32_t)((i + k) % ET_KEY_VALUES));
            float kept = x.x[k] * (bits >= a.threshold ? a.scale : 0.0f);
            x.x[k] = a.accumulate ? sum.x[k] + kept : kept;
        }
        put_four(out, i, x, a.n, a.whole);
    }
}

/* out (accumulate: +)= inp * keep * scale */
KERNEL(dropout, elementwise_args) {
    et_array out = a.out;
    et_array inp = a.inp;
    EITHER(out, EITHER(inp, dropout_values(a, out, inp)));
}

/* A thread has four columns, of every gridDim.x-th row. */
DEVICE void add_bias_values(const add_bias_args &a, et_array x) {
    int64_t column = 4 * ((int64_t)blockIdx.y * blockDim.x + threadIdx.x);
    if (column >= a.N)
        return;
    four bias = get_four(floats(a.bias), column, a.N, a.whole);
    for (int64_t t = blockIdx.x; t < a.T; t += gridDim.x) {
        four v = get_four(x, t * a.N + column, (t + 1) * a.N, a.whole);
        for (int k = 0; k < 4; k++)
            v.x[k] += bias.x[k];
        put_four(x, t * a.N + column, v, (t + 1) * a.N, a.whole);
    }
}

KERNEL(add_bias, add_bias_args) {
    et_array x = a.x;
    EITHER(x, add_bias_values(a, x));
}

/* A float's square is exact in double; which thread adds which depends on n alone. */
KERNEL(sum_squares, sum_squares_args) {
    double sum = 0;
    EACH_FOUR(i, a.n) {
        four x = get_four(floats(a.x), i, a.n, a.whole);
        for (int k = 0; k < 4; k++)
            sum += (double)x.x[k] * x.x[k];
    }
    sum = block_sum(sum, shared_memory<sum_squares_shared>()->sums);
    if (threadIdx.x == 0)
        a.parts[blockIdx.x] = sum;
}
