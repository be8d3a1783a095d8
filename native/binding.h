/* The thin CPython extension: binding_call.c reads and checks arguments as a spec says, binding_ops.def lists the
 * specs, binding_context.c has contexts, binding_tape.c calls that run again, binding_device.c what contexts on a device
 * need, binding.c the module. */
#ifndef ET_BINDING_H
#define ET_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "cuda/device.h"
#include "et.h"

#define MAX_ARRAYS 13
#define MAX_NUMBERS 8

/* The arguments of a call: arrays, real and whole numbers in order, and sizes by their letter. */
struct values {
    void *array[MAX_ARRAYS];
    int type[MAX_ARRAYS]; /* of activations: ET_F32 or ET_BF16 */
    double real[MAX_NUMBERS];
    long long whole[MAX_NUMBERS];
    int64_t size[128]; /* 0: not known */
    int format;
};

/* An op and its spec: a word an argument, its name, a sign for its kind, and its shape as letters.
 *
 *   out=TN       float32 [T, N], written          inp:TN    float32 [T, N]
 *   out^TN       float32 or bf16 (as uint16) [T, N], written          inp~TN    the same, read
 *   out!u        float64 [u], written
 *   tokens@T     int32 [T]                        best?T    int32 [T], written, or None
 *   x/TR         float32 [T, R], or None          begin+T   int32 [T], or None
 *   w%NK         a weight [N, K] in a format, in two arguments: the bytes (or float32), the format's number
 *   moments&n    struct et_moments of n values, as uint8, written
 *   lr.          a real number                    kind#     a whole number that fits an int
 *   seed$        a whole number from 0 to 2^64 - 1
 *
 * `*` before the letters: any shape of that many values in all. A letter stands for one size everywhere; the first
 * array that has it tells it. Small letters may pass 2^31. */
struct op {
    const char *name, *spec;
    int (*call)(et_context *ctx, const struct values *v);
};

extern const struct op binding_ops[]; /* ends with a nameless one */

struct device;

struct context {
    et_context *ctx;
    Py_buffer scratch;
    struct device *device; /* NULL: the CPU */
    int precision;
    int busy;       /* guarded by the GIL, */
    PyObject *tape; /* like the tape that ops are written on, or NULL */
};

/* A call that was read: the op's place in binding_ops, its arguments, and how many of them there are. */
struct call_read {
    int op, arrays, reals, wholes;
    const struct values *values;
    const Py_buffer *views; /* of the arrays */
};

void tape_write(PyObject *tape, const struct call_read *call, int precision);

/* The context in a capsule; NULL and an exception if it is none, or at work on another thread. */
struct context *idle_context(PyObject *capsule, const char *function);

struct device *device_open(const struct et_device *given); /* NULL where there is no memory for it */
void device_close(struct device *device);
/* What a context is made on: the device that was given, with a table of the functions that it has found. */
const struct et_device *device_of(const struct device *device);
int device_add_memory(struct device *device, uintptr_t begin, size_t bytes); /* that it reaches; -1: no memory */
int device_reaches(const struct device *device, const void *array, size_t bytes);

extern PyMethodDef context_functions[];
int add_ops(PyObject *module); /* 0, or -1 and an exception */
int add_devices(PyObject *module);
int add_tapes(PyObject *module);

#endif
