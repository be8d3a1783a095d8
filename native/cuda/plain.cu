/* The kernels that know no weight formats. */
#include "adamw.cuh"
#include "cached.cuh"
#include "elementwise.cuh"
#include "glu.cuh"
#include "head.cuh"
#include "norm.cuh"
#include "rope.cuh"
#include "sample.cuh"
