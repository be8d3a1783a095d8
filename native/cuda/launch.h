/* What host and kernels share: the list of kernels, how one is launched, and memory on the device.
 *
 * A kernel set for a GPU (set.c) has the functions of table.h as any other does. They cut work into blocks and launch
 * kernels; a struct of arguments is copied with the launch. Launches of a context run in order, one after the other,
 * and are complete after et_context_synchronize alone. */
#ifndef ET_LAUNCH_H
#define ET_LAUNCH_H

#include "../et.h"

#define ET_WARP 32
#define ET_BLOCK 256 /* threads of a block at most */
#define ET_WARPS (ET_BLOCK / ET_WARP)

/* The kernels by number, ET_KERNEL_name; those for a weight are one for each format. */
enum et_kernel {
#define KERNEL_OF(unit, name) ET_KERNEL_##name,
#define WEIGHT_KERNEL_OF(unit, name) ET_KERNEL_##name,
#include "kernels.def"
#undef KERNEL_OF
#undef WEIGHT_KERNEL_OF
    ET_KERNELS
};

#ifndef __CUDACC__
struct et_grid {
    unsigned x, y, z;
};

/* Launches a kernel of the grid's blocks, each of `threads` threads and `shared` bytes; format: of the weight, or 0. */
void et_launch(et_context *ctx, enum et_kernel kernel, int format, struct et_grid grid, unsigned threads,
               unsigned shared, const void *args);
#endif

#endif
