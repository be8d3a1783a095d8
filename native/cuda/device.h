/* A device that kernels run on, as the host uses it: a GPU's driver, or what emulates it. */
#ifndef ET_DEVICE_H
#define ET_DEVICE_H

#include "../et.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { ET_BUSY = 600 }; /* CUDA_ERROR_NOT_READY */

struct et_device {
    /* A kernel's function, by its number and the weight's format (0: none), compiled if need be; NULL if that fails. */
    void *(*find)(void *owner, int kernel, int format);
    /* cuLaunchKernel: function, grid, block, bytes of shared memory, stream, arguments; 0 or the driver's code. */
    int (*launch)(void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
                  unsigned shared, void *stream, void **params, void **extra);
    int (*query)(void *stream); /* cuStreamQuery: 0 when all is done, ET_BUSY before, else the driver's code */
    double patience;            /* seconds without an end after which it hangs */
    void *stream, *owner;
};

/* A context whose ops run on the device, which must outlive it. All arrays of its ops, and the scratch of
 * et_scratch_bytes(1), must be memory that the device reaches under the host's addresses. Ops return before they are
 * done; the host may read what they write after et_context_synchronize. */
int et_context_create_on(et_context **ctx, const struct et_device *device, enum et_precision precision, void *scratch,
                         size_t scratch_bytes);

/* Kernel i of the list in kernels.def: its name, the unit that it is compiled in, whether there is one for each format;
 * 0 past the end. */
int et_kernel_at(int i, const char **name, const char **unit, int *for_weights);
/* What the kernel's function is called; in a buffer of the thread. */
const char *et_kernel_name(int kernel, int format);

#ifdef ET_EMULATED
extern const struct et_device et_emulated_device;
/* Launches in between are kept, and not begun; what ends it returns them, to be begun any number of times, forgotten
 * once. */
void emulated_begin_recording(void);
void *emulated_end_recording(void);
void emulated_begin(void *recorded);
void emulated_forget(void *recorded);
#endif

#ifdef __cplusplus
}
#endif
#endif
