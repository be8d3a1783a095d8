/* Rotary embedding (Su et al. 2021) in place; a thread reads and writes its pair alone. */
#include "kernel.h"
#include "rope.h"

KERNEL(rope, rope_args) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.n)
        return;
    int64_t row = i / a.pairs; /* of [T * H, C] */
    int pair = (int)(i % a.pairs);
    int64_t angle = (int64_t)a.positions[row / a.H] * a.pairs + pair;
    int64_t first = row * a.C + (a.neox ? pair : 2 * pair);
    int64_t second = first + (a.neox ? a.pairs : 1);
    float c = a.cos[angle];
    float s = a.sin[angle] * a.sign;
    float x = array_get(a.x, first);
    float y = array_get(a.x, second);
    array_put(a.x, first, x * c - y * s);
    array_put(a.x, second, x * s + y * c);
}
