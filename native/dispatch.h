/* What the doors of dispatch.c and dispatch_*.c share: their checks, and the way to the kernel set. */
#ifndef ET_DISPATCH_H
#define ET_DISPATCH_H

#include "pool.h"
#include "quant.h"

/* The kernel set's function, then what became of the device. */
#define RUN(op, ...) (et_context_kernels(ctx)->op(ctx, __VA_ARGS__), et_failure(ctx))

/* Leaves the function with `code` unless `fact`. */
#define NEED(fact, code)                                                                                               \
    do {                                                                                                               \
        if (!(fact))                                                                                                   \
            return code;                                                                                               \
    } while (0)

#define NEED_POSITIVE(a, b, c) NEED((a) > 0 && (b) > 0 && (c) > 0, ET_BAD_ARGUMENT)
#define NEED_ALL(...) NEED(all_set((const void *const[]){__VA_ARGS__, &all_set_end}), ET_BAD_ARGUMENT)

static const char all_set_end = 0;

/* 1 if no pointer of the list, which ends with &all_set_end, is NULL. */
static inline int all_set(const void *const *p) {
    for (; *p != &all_set_end; p++)
        if (!*p)
            return 0;
    return 1;
}

/* Leaves the function unless all are arrays with data, of a type that activations may have. */
#define NEED_ARRAYS(...)                                                                                               \
    NEED(all_arrays((const et_array[]){__VA_ARGS__}, sizeof((const et_array[]){__VA_ARGS__}) / sizeof(et_array)),      \
         ET_BAD_ARGUMENT)

static inline int all_arrays(const et_array *a, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!a[i].data || (a[i].type != ET_F32 && a[i].type != ET_BF16))
            return 0;
    return 1;
}

/* ET_OK if rows of `columns` weights can be in `format`. */
static inline int check_format(int format, int64_t columns) {
    int block = format_block(format);
    return block < 0 ? ET_BAD_FORMAT : columns % block ? ET_BAD_ARGUMENT : ET_OK;
}

/* 1 if 0 <= x[i] < limit for all n. */
static inline int all_below(const int32_t *x, int n, int limit) {
    for (int i = 0; i < n; i++)
        if (x[i] < 0 || x[i] >= limit)
            return 0;
    return 1;
}

#endif
