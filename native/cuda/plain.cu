/* The kernels that know no weight formats. */
#include "adamw.cuh"
#include "elementwise.cuh"
#include "glu.cuh"
#include "head.cuh"
#include "norm.cuh"
#include "sample.cuh"
