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

static int get_scratch(PyObject *object, Py_buffer *out) {
    if (PyObject_GetBuffer(object, out, PyBUF_SIMPLE | PyBUF_WRITABLE) == 0)
        return 0;
    if (PyErr_ExceptionMatches(PyExc_BufferError)) {
        PyErr_Clear();
        PyErr_SetString(PyExc_ValueError, "context: scratch must be C-contiguous and writable");
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

static void context_free(PyObject *capsule) {
    struct context *c = PyCapsule_GetPointer(capsule, CAPSULE);
    et_context_destroy(c->ctx);
    PyBuffer_Release(&c->scratch);
    PyMem_Free(c);
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
    struct context *c = PyMem_Calloc(1, sizeof *c);
    if (!c)
        return PyErr_NoMemory();
    if (get_scratch(scratch, &c->scratch) < 0) {
        PyMem_Free(c);
        return NULL;
    }
    int code = et_context_create(&c->ctx, name, (enum et_precision)number, (int)n_threads, c->scratch.buf,
                                 (size_t)c->scratch.len);
    PyObject *result = code ? PyLong_FromLong(code) : PyCapsule_New(c, CAPSULE, context_free);
    if (code || !result) {
        et_context_destroy(c->ctx);
        PyBuffer_Release(&c->scratch);
        PyMem_Free(c);
    }
    return result;
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
