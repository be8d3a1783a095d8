/* Products by tensor cores, and weights as floats. */
#include "product.cuh"
#include "weights.cuh"

#define PRODUCTS(format, shape)                                                                                        \
    KERNEL_TWICE(shape##_forward_##format, product_args) { product<shape_##shape, ET_##format, 0>(a); }                \
    KERNEL_TWICE(shape##_backward_##format, product_args) { product<shape_##shape, ET_##format, 1>(a); }

#define KERNELS(format)                                                                                                \
    KERNEL(weights_##format, weights_args) { weights_to_floats<ET_##format>(a); }                                      \
    PRODUCTS(format, large)                                                                                            \
    PRODUCTS(format, medium)                                                                                           \
    PRODUCTS(format, small)

#include "each_format.cuh"
