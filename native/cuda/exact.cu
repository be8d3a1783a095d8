/* Products in float. */
#include "exact.cuh"

#define KERNELS(format)                                                                                                \
    KERNEL(exact_forward_##format, product_args) { exact_product<ET_##format, 0>(a); }                                 \
    KERNEL(exact_backward_##format, product_args) { exact_product<ET_##format, 1>(a); }

#include "each_format.cuh"
