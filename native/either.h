/* For ops on arrays of either type, on a CPU and on a GPU: runs the statement with the array's type a constant, so that
 * what is called in it is compiled for both types. */
#ifndef ET_EITHER_H
#define ET_EITHER_H

#define EITHER(array, ...)                                                                                             \
    do {                                                                                                               \
        if ((array).type == ET_F32) {                                                                                  \
            (array).type = ET_F32;                                                                                     \
            __VA_ARGS__;                                                                                               \
        } else {                                                                                                       \
            (array).type = ET_BF16;                                                                                    \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
    } while (0)

#endif
