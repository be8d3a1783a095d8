/* Attention, a unit of its own as it takes longest to compile. */
#include "attention.cuh"
