/* The kernels that know no weight formats. */
#include "norm.cuh"
