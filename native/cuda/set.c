/* The kernel set of a device: what all its ops share, and the table of them. */
#include "set.h"

#include <stdio.h>

static const struct {
    const char *name, *unit;
    int for_weights;
} kernels[] = {
#define KERNEL_OF(unit, name) {#name, #unit, 0},
#define WEIGHT_KERNEL_OF(unit, name) {#name, #unit, 1},
#include "kernels.def"
#undef KERNEL_OF
#undef WEIGHT_KERNEL_OF
};

int et_kernel_at(int i, const char **name, const char **unit, int *for_weights) {
    if (i < 0 || i >= ET_KERNELS)
        return 0;
    *name = kernels[i].name;
    *unit = kernels[i].unit;
    *for_weights = kernels[i].for_weights;
    return 1;
}

static const char *format_name(int format) {
    switch (format) {
#define FORMAT(name, number, ...)                                                                                      \
    case number:                                                                                                       \
        return #name;
#include "../formats.def"
#undef FORMAT
    }
    return "";
}

const char *et_kernel_name(int kernel, int format) {
    static _Thread_local char name[64];
    int for_weights = kernels[kernel].for_weights;
    snprintf(name, sizeof name, "%s%s%s", kernels[kernel].name, for_weights ? "_" : "",
             for_weights ? format_name(format) : "");
    return name;
}

void et_launch(et_context *ctx, enum et_kernel kernel, int format, struct et_grid grid, unsigned threads,
               unsigned shared, const void *args) {
    const struct et_device *device = et_device_of(ctx);
    if (et_failure(ctx))
        return;
    void *function = device->find(device->owner, (int)kernel, format);
    void *params[] = {(void *)args};
    int code = !function ? -1
                         : device->launch(function, grid.x, grid.y, grid.z, threads, 1, 1, shared, device->stream,
                                          params, NULL);
    et_fail(ctx, code ? ET_DEVICE : ET_OK);
}

/* What is multiplied: floats, or bf16 by tensor cores, which take no bytes with a scale each 32. */
static const char *product_numbers(enum et_precision precision, int backward) {
    (void)backward;
    return precision == ET_EXACT ? "float" : "bf16";
}

/* A driver knows what its card could reach better than a loop; nothing is measured here. */
static double no_peak(enum et_precision precision, int backward, int64_t n) {
    (void)precision, (void)backward, (void)n;
    return 0;
}

const struct et_kernel_set et_kernel_set_cuda = {.name = "cuda",
                                                 .product = product_numbers,
                                                 .peak = no_peak,
#define OP(name, args) .name = cuda_##name,
                                                 ET_OPS(OP)
#undef OP
};
