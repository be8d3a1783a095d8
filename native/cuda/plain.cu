/* The kernels that know no weight formats. */
#include "dweight.cuh"
#include "norm.cuh"
