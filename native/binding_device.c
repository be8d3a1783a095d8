/* A context on a device: the functions of its kernels, each found once, and the memory that the device reaches. */
#include "binding.h"

#include <stdlib.h>
#include <string.h>

#define FORMATS 64 /* above the number of every format */

struct range {
    uintptr_t begin, end;
};

struct device {
    struct et_device given, cached; /* as Python gave it; what the context is made on */
    void **functions;               /* [kernels, FORMATS], NULL until one is found */
    struct range *reached;          /* in ascending order */
    size_t n_reached;
};

static int count_kernels(void) {
    const char *name, *unit;
    int n = 0, for_weights;
    while (et_kernel_at(n, &name, &unit, &for_weights))
        n++;
    return n;
}

/* An op may launch a kernel thousands of times a step, and Python's function takes longer than the launch. */
static void *find_once(void *owner, int kernel, int format) {
    struct device *d = owner;
    void **function = &d->functions[kernel * FORMATS + format];
    if (!*function)
        *function = d->given.find(d->given.owner, kernel, format);
    return *function;
}

struct device *device_open(const struct et_device *given) {
    struct device *d = calloc(1, sizeof *d);
    void **functions = calloc((size_t)count_kernels() * FORMATS, sizeof *functions);
    if (!d || !functions) {
        free(d);
        free(functions);
        return NULL;
    }
    d->given = *given;
    d->cached = *given;
    d->cached.find = find_once;
    d->cached.owner = d;
    d->functions = functions;
    return d;
}

const struct et_device *device_of(const struct device *d) { return &d->cached; }

void device_close(struct device *d) {
    if (!d)
        return;
    free(d->functions);
    free(d->reached);
    free(d);
}

int device_add_memory(struct device *d, uintptr_t begin, size_t bytes) {
    struct range *ranges = realloc(d->reached, (d->n_reached + 1) * sizeof *ranges);
    if (!ranges)
        return -1;
    d->reached = ranges;
    size_t i = d->n_reached++;
    for (; i && ranges[i - 1].begin > begin; i--)
        ranges[i] = ranges[i - 1];
    ranges[i] = (struct range){begin, begin + bytes};
    return 0;
}

int device_reaches(const struct device *d, const void *array, size_t bytes) {
    uintptr_t begin = (uintptr_t)array;
    size_t low = 0; /* becomes the first range that begins behind the array */
    size_t high = d->n_reached;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (d->reached[middle].begin <= begin)
            low = middle + 1;
        else
            high = middle;
    }
    if (!low)
        return 0;
    for (; begin + bytes > d->reached[low - 1].end; low++) /* what is adjacent was told in parts */
        if (low == d->n_reached || d->reached[low].begin != d->reached[low - 1].end)
            return 0;
    return 1;
}

/* KERNELS: (unit, name, whether there is one for each format), by number */
static PyObject *kernels(void) {
    int n = count_kernels();
    PyObject *all = PyTuple_New(n);
    for (int i = 0; all && i < n; i++) {
        const char *name, *unit;
        int for_weights;
        et_kernel_at(i, &name, &unit, &for_weights);
        PyObject *kernel = Py_BuildValue("(ssO)", unit, name, for_weights ? Py_True : Py_False);
        if (kernel)
            PyTuple_SET_ITEM(all, i, kernel);
        else
            Py_CLEAR(all);
    }
    return all;
}

static int add(PyObject *module, const char *name, PyObject *object) {
    if (object && PyModule_AddObject(module, name, object) == 0)
        return 0;
    Py_XDECREF(object);
    return -1;
}

int add_devices(PyObject *module) {
#ifdef ET_EMULATED
    const struct et_device *e = &et_emulated_device;
    if (add(module, "EMULATED",
            Py_BuildValue("(NNNNNNN)", PyLong_FromVoidPtr((void *)e->find), PyLong_FromVoidPtr((void *)e->launch),
                          PyLong_FromVoidPtr((void *)e->query), PyLong_FromVoidPtr((void *)emulated_begin_recording),
                          PyLong_FromVoidPtr((void *)emulated_end_recording),
                          PyLong_FromVoidPtr((void *)emulated_begin), PyLong_FromVoidPtr((void *)emulated_forget))) < 0)
        return -1;
#endif
    return add(module, "KERNELS", kernels());
}
