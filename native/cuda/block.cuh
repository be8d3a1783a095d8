/* What the threads of a block put together. */
#ifndef ET_BLOCK_CUH
#define ET_BLOCK_CUH

#include "kernel.h"

/* x of all threads put together by `join`, in all of them, in an order that is always the same. */
template <typename type, typename function> DEVICE type block_reduce(type x, type parts[ET_WARPS], function join) {
    x = warp_reduce(x, join);
    __syncthreads(); /* `parts` may be in use by those before */
    if (threadIdx.x % ET_WARP == 0)
        parts[threadIdx.x / ET_WARP] = x;
    __syncthreads();
    x = parts[0];
    for (int i = 1; i < (int)blockDim.x / ET_WARP; i++)
        x = join(x, parts[i]);
    return x;
}

template <typename type> DEVICE type block_sum(type x, type parts[ET_WARPS]) {
    return block_reduce(x, parts, [](type p, type q) { return p + q; });
}

/* Of what is a number. */
DEVICE float block_max(float x, float parts[ET_WARPS]) {
    return block_reduce(x, parts, [](float p, float q) { return fmaxf(p, q); });
}

/* ---- which is highest ---- */

/* Bits that are ordered as the floats are, and back; -inf becomes the lowest of a number. */
DEVICE uint32_t ordered(float x) {
    uint32_t bits = float_to_bits(x);
    return bits >> 31 ? ~bits : bits | 0x80000000;
}

DEVICE float from_ordered(uint32_t key) { return bits_to_float(key >> 31 ? key & 0x7fffffff : ~key); }

/* Value x at place i, for comparison: higher values, and of equal ones the first; NaN is below all, as 0 is. */
DEVICE uint64_t ranked(float x, int i) {
    return x == x ? (uint64_t)ordered(x + 0.0f) << 32 | ~(uint32_t)i : 0; /* -0 is 0 */
}

DEVICE float ranked_value(uint64_t rank) { return from_ordered((uint32_t)(rank >> 32)); }
DEVICE int ranked_place(uint64_t rank) { return (int)~(uint32_t)rank; }
DEVICE uint64_t higher(uint64_t p, uint64_t q) { return p > q ? p : q; }

DEVICE uint64_t block_highest(uint64_t rank, uint64_t parts[ET_WARPS]) {
    return block_reduce(rank, parts, [](uint64_t p, uint64_t q) { return higher(p, q); });
}

#endif
