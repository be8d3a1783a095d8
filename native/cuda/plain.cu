/* The kernels that know no weight formats. */
#include "cached.cuh"
#include "norm.cuh"
#include "rope.cuh"
