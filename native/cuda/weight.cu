/* The kernels that read weights: all of them for one format, ET_ONLY, or without it for every one. */
#include "exact.cuh"
#include "product.cuh"
#include "weights.cuh"

#define PRODUCTS(format, shape)                                                                                        \
    KERNEL_TWICE(shape##_forward_##format, product_args) { product<shape_##shape, ET_##format, 0>(a); }                \
    KERNEL_TWICE(shape##_backward_##format, product_args) { product<shape_##shape, ET_##format, 1>(a); }

#define KERNELS(format)                                                                                                \
    KERNEL(weights_##format, weights_args) { weights_to_floats<ET_##format>(a); }                                      \
    KERNEL(exact_forward_##format, product_args) { exact_product<ET_##format, 0>(a); }                                 \
    KERNEL(exact_backward_##format, product_args) { exact_product<ET_##format, 1>(a); }                                \
    PRODUCTS(format, large)                                                                                            \
    PRODUCTS(format, medium)                                                                                           \
    PRODUCTS(format, small)

#ifdef ET_ONLY
#define KERNELS_OF(format) KERNELS(format)
KERNELS_OF(ET_ONLY)
#else
#define FORMAT(name, ...) KERNELS(name)
#include "../formats.def"
#undef FORMAT
#endif
