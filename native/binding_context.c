/* Contexts as capsules, and what can be asked of them and of this CPU. */
#include "binding.h"

#include <limits.h>
#include <string.h>

#define CAPSULE "edgetune.context"

/* ---- arguments --------------------------------------------------------------------------------------------- */

/* *out = a whole number from `least` to `most`; -1 and an exception that names function and argument if it is none. */
static int get_whole(PyObject *object, const char *function, const char *name, long long least, long long most,
                     long long *out) {
    PyObject *number = PyNumber_Index(object);
    if (!number) {
        PyErr_Format(PyExc_TypeError, "%s: %s must be a whole number, not %.100s", function, name,
                     Py_TYPE(object)->tp_name);
        return -1;
    }
    int overflow;
    *out = PyLong_AsLongLongAndOverflow(number, &overflow);
    if (!overflow && *out >= least && *out <= most) {
        Py_DECREF(number);
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "%s: %s must be %lld to %lld, not %S", function, name, least, most, number);
    Py_DECREF(number);
    return -1;
}

/* *out = a name, or NULL for None. */
static int get_isa(PyObject *object, const char **out) {
    *out = NULL;
    if (object == Py_None)
        return 0;
    if (!PyUnicode_Check(object)) {
        PyErr_Format(PyExc_TypeError, "context: isa must be a name or None, not %.100s", Py_TYPE(object)->tp_name);
        return -1;
    }
    Py_ssize_t size;
    *out = PyUnicode_AsUTF8AndSize(object, &size);
    if (!*out)
        return -1;
    if ((Py_ssize_t)strlen(*out) == size)
        return 0;
    PyErr_SetString(PyExc_ValueError, "context: isa has a zero byte");
    return -1;
}

static int get_scratch(PyObject *object, const char *function, Py_buffer *out) {
    if (PyObject_GetBuffer(object, out, PyBUF_SIMPLE | PyBUF_WRITABLE) == 0)
        return 0;
    if (PyErr_ExceptionMatches(PyExc_BufferError)) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s: scratch must be C-contiguous and writable", function);
    }
    return -1;
}

static struct context *get_context(PyObject *capsule, const char *function) {
    if (PyCapsule_IsValid(capsule, CAPSULE))
        return PyCapsule_GetPointer(capsule, CAPSULE);
    PyErr_Format(PyExc_TypeError, "%s needs a context, not %.100s", function, Py_TYPE(capsule)->tp_name);
    return NULL;
}

struct context *idle_context(PyObject *capsule, const char *function) {
    struct context *c = get_context(capsule, function);
    if (!c || !c->busy)
        return c;
    PyErr_Format(PyExc_RuntimeError, "%s: the context is in use by another thread", function);
    return NULL;
}

/* ---- functions --------------------------------------------------------------------------------------------- */

static void free_context(struct context *c) {
    et_context_destroy(c->ctx);
    Py_XDECREF(c->tape);
    device_close(c->device);
    PyBuffer_Release(&c->scratch);
    PyMem_Free(c);
}

static void context_free(PyObject *capsule) {
    struct context *c = PyCapsule_GetPointer(capsule, CAPSULE);
    free_context(c);
}

/* A new context with its scratch; NULL and an exception where it cannot have them. */
static struct context *new_context(PyObject *scratch, const char *function, int precision) {
    struct context *c = PyMem_Calloc(1, sizeof *c);
    if (!c) {
        PyErr_NoMemory();
        return NULL;
    }
    c->precision = precision;
    if (get_scratch(scratch, function, &c->scratch) == 0)
        return c;
    PyMem_Free(c);
    return NULL;
}

/* The capsule of a context that was made with this code; or, of one that could not be, the code. */
static PyObject *made_context(struct context *c, int code) {
    PyObject *result = code ? PyLong_FromLong(code) : PyCapsule_New(c, CAPSULE, context_free);
    if (code || !result)
        free_context(c);
    return result;
}

/* context(threads, isa or None, precision, scratch) -> capsule, or the code that says why not */
static PyObject *context(PyObject *module, PyObject *args) {
    PyObject *threads, *isa, *precision, *scratch;
    long long n_threads, number;
    const char *name;
    (void)module;
    if (!PyArg_UnpackTuple(args, "context", 4, 4, &threads, &isa, &precision, &scratch) ||
        get_whole(threads, "context", "threads", 1, INT_MAX, &n_threads) < 0 || get_isa(isa, &name) < 0 ||
        get_whole(precision, "context", "precision", ET_EXACT, ET_INT8, &number) < 0)
        return NULL;
    struct context *c = new_context(scratch, "context", (int)number);
    return c ? made_context(c, et_context_create(&c->ctx, name, (enum et_precision)number, (int)n_threads,
                                                 c->scratch.buf, (size_t)c->scratch.len))
             : NULL;
}

/* device_context(find, launch, query, stream, patience, precision, scratch) -> capsule, or the code that says why not.
 * The first four are addresses: of functions as struct et_device has them, find's owner is NULL, and of the stream;
 * patience is in milliseconds. */
static PyObject *device_context(PyObject *module, PyObject *args) {
    static const char *const names[] = {"find", "launch", "query", "stream", "patience"};
    PyObject *given[5], *precision, *scratch;
    long long address[5], number;
    (void)module;
    if (!PyArg_UnpackTuple(args, "device_context", 7, 7, &given[0], &given[1], &given[2], &given[3], &given[4],
                           &precision, &scratch))
        return NULL;
    for (int i = 0; i < 5; i++) /* the stream 0 is the device's own */
        if (get_whole(given[i], "device_context", names[i], i < 3, LLONG_MAX, &address[i]) < 0)
            return NULL;
    if (get_whole(precision, "device_context", "precision", ET_EXACT, ET_INT8, &number) < 0)
        return NULL;
    struct et_device device = {.stream = (void *)(uintptr_t)address[3], .patience = (double)address[4] / 1e3};
    uintptr_t find = (uintptr_t)address[0];
    uintptr_t launch = (uintptr_t)address[1];
    uintptr_t query = (uintptr_t)address[2];
    memcpy(&device.find, &find, sizeof device.find); /* C has no conversion between the two that all compilers take */
    memcpy(&device.launch, &launch, sizeof device.launch);
    memcpy(&device.query, &query, sizeof device.query);
    struct context *c = new_context(scratch, "device_context", (int)number);
    if (!c)
        return NULL;
    c->device = device_open(&device);
    return made_context(c, !c->device ? ET_NO_MEMORY
                                      : et_context_create_on(&c->ctx, device_of(c->device), (enum et_precision)number,
                                                             c->scratch.buf, (size_t)c->scratch.len));
}

/* add_memory(capsule, address, bytes): the device reaches these bytes, and arrays of ops may be there */
static PyObject *add_memory(PyObject *module, PyObject *args) {
    PyObject *capsule, *begin, *size;
    long long address, bytes;
    (void)module;
    if (!PyArg_UnpackTuple(args, "add_memory", 3, 3, &capsule, &begin, &size))
        return NULL;
    struct context *c = idle_context(capsule, "add_memory");
    if (!c || get_whole(begin, "add_memory", "address", 1, LLONG_MAX, &address) < 0 ||
        get_whole(size, "add_memory", "bytes", 1, LLONG_MAX - address, &bytes) < 0)
        return NULL;
    if (!c->device) {
        PyErr_SetString(PyExc_ValueError, "add_memory: the context is the CPU's, which reaches all memory");
        return NULL;
    }
    if (device_add_memory(c->device, (uintptr_t)address, (size_t)bytes) < 0)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* synchronize(capsule) -> code, when all ops so far are done */
static PyObject *synchronize(PyObject *module, PyObject *capsule) {
    struct context *c = idle_context(capsule, "synchronize");
    int code;
    (void)module;
    if (!c)
        return NULL;
    c->busy = 1;
    Py_BEGIN_ALLOW_THREADS
    code = et_context_synchronize(c->ctx);
    Py_END_ALLOW_THREADS
    c->busy = 0;
    return PyLong_FromLong(code);
}

static PyObject *context_isa(PyObject *module, PyObject *capsule) {
    struct context *c = get_context(capsule, "context_isa");
    (void)module;
    return c ? PyUnicode_FromString(et_context_isa(c->ctx)) : NULL;
}

/* context_products(capsule) -> (forward, backward) */
static PyObject *context_products(PyObject *module, PyObject *capsule) {
    struct context *c = get_context(capsule, "context_products");
    (void)module;
    return c ? Py_BuildValue("(ss)", et_context_product(c->ctx, 0), et_context_product(c->ctx, 1)) : NULL;
}

/* set_precision(capsule, number) */
static PyObject *set_precision(PyObject *module, PyObject *args) {
    PyObject *capsule, *precision;
    long long number;
    (void)module;
    if (!PyArg_UnpackTuple(args, "set_precision", 2, 2, &capsule, &precision))
        return NULL;
    struct context *c = idle_context(capsule, "set_precision");
    if (!c || get_whole(precision, "set_precision", "precision", ET_EXACT, ET_INT8, &number) < 0)
        return NULL;
    et_context_set_precision(c->ctx, (enum et_precision)number);
    c->precision = (int)number;
    Py_RETURN_NONE;
}

/* set_threads(capsule, threads) -> code */
static PyObject *set_threads(PyObject *module, PyObject *args) {
    PyObject *capsule, *threads;
    long long n;
    (void)module;
    if (!PyArg_UnpackTuple(args, "set_threads", 2, 2, &capsule, &threads))
        return NULL;
    struct context *c = idle_context(capsule, "set_threads");
    if (!c || get_whole(threads, "set_threads", "threads", INT_MIN, INT_MAX, &n) < 0)
        return NULL;
    return PyLong_FromLong(et_context_set_threads(c->ctx, (int)n));
}

/* register_loop(capsule, backward, n) -> operations */
static PyObject *register_loop(PyObject *module, PyObject *args) {
    PyObject *capsule, *backward, *times;
    long long is_backward, n;
    double operations;
    (void)module;
    if (!PyArg_UnpackTuple(args, "register_loop", 3, 3, &capsule, &backward, &times))
        return NULL;
    struct context *c = idle_context(capsule, "register_loop");
    if (!c || get_whole(backward, "register_loop", "backward", 0, 1, &is_backward) < 0 ||
        get_whole(times, "register_loop", "n", 0, LLONG_MAX, &n) < 0)
        return NULL;
    c->busy = 1;
    Py_BEGIN_ALLOW_THREADS
    operations = et_register_loop(c->ctx, (int)is_backward, n);
    Py_END_ALLOW_THREADS
    c->busy = 0;
    return PyFloat_FromDouble(operations);
}

/* scratch_bytes(threads) -> bytes, 0 for more threads than a context can have, or none */
static PyObject *scratch_bytes(PyObject *module, PyObject *threads) {
    long long n;
    (void)module;
    if (get_whole(threads, "scratch_bytes", "threads", INT_MIN, INT_MAX, &n) < 0)
        return NULL;
    return PyLong_FromSize_t(et_scratch_bytes((int)n));
}

static PyObject *cpu_features(PyObject *module, PyObject *none) {
    (void)module, (void)none;
    return PyUnicode_FromString(et_cpu_features());
}

/* kernel_sets() -> [(name, usable)], best first */
static PyObject *kernel_sets(PyObject *module, PyObject *none) {
    PyObject *list = PyList_New(0);
    (void)module, (void)none;
    for (int i = 0; list && et_isa_name(i); i++) {
        PyObject *set = Py_BuildValue("(sO)", et_isa_name(i), et_isa_usable(i) ? Py_True : Py_False);
        if (!set || PyList_Append(list, set) < 0)
            Py_CLEAR(list);
        Py_XDECREF(set);
    }
    return list;
}

PyMethodDef context_functions[] = {
    {"context", context, METH_VARARGS, NULL},
    {"device_context", device_context, METH_VARARGS, NULL},
    {"add_memory", add_memory, METH_VARARGS, NULL},
    {"synchronize", synchronize, METH_O, NULL},
    {"context_isa", context_isa, METH_O, NULL},
    {"context_products", context_products, METH_O, NULL},
    {"set_precision", set_precision, METH_VARARGS, NULL},
    {"set_threads", set_threads, METH_VARARGS, NULL},
    {"register_loop", register_loop, METH_VARARGS, NULL},
    {"scratch_bytes", scratch_bytes, METH_O, NULL},
    {"cpu_features", cpu_features, METH_NOARGS, NULL},
    {"kernel_sets", kernel_sets, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
