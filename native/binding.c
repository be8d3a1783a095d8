#include "binding.h"

#include <limits.h>
#include <string.h>

#include "quant.h"

/* ---- contexts ---------------------------------------------------------------------------------------------- */

struct context {
    et_context *ctx;
    Py_buffer scratch;
    int busy; /* guarded by the GIL */
};

static void context_free(PyObject *capsule) {
    struct context *c = PyCapsule_GetPointer(capsule, "edgetune.context");
    et_context_destroy(c->ctx);
    PyBuffer_Release(&c->scratch);
    PyMem_Free(c);
}

/* context(threads, isa or None, precision, scratch) -> capsule, or the code that says why not */
static PyObject *context_new(PyObject *module, PyObject *args) {
    int threads, precision;
    const char *isa;
    PyObject *scratch;
    (void)module;
    if (!PyArg_ParseTuple(args, "iziO", &threads, &isa, &precision, &scratch))
        return NULL;
    struct context *c = PyMem_Calloc(1, sizeof *c);
    if (!c)
        return PyErr_NoMemory();
    if (PyObject_GetBuffer(scratch, &c->scratch, PyBUF_SIMPLE | PyBUF_WRITABLE) < 0) {
        PyMem_Free(c);
        return NULL;
    }
    int code = et_context_create(&c->ctx, isa, (enum et_precision)precision, threads, c->scratch.buf,
                                 (size_t)c->scratch.len);
    PyObject *result = code ? PyLong_FromLong(code) : PyCapsule_New(c, "edgetune.context", context_free);
    if (code || !result) {
        et_context_destroy(c->ctx);
        PyBuffer_Release(&c->scratch);
        PyMem_Free(c);
    }
    return result;
}

/* ---- arguments --------------------------------------------------------------------------------------------- */

/* One word of a spec. */
struct word {
    const char *name;
    int name_length;
    char kind;
    int flat;
    const char *letters;
    int n_letters;
};

/* A call being read. */
struct call {
    const struct op *op;
    PyObject *const *args;
    Py_ssize_t n_args;
    struct values v;
    struct word word[MAX_ARRAYS];
    Py_buffer view[MAX_ARRAYS];
    int n_views;
};

static const char *next_word(const char *spec, struct word *w) {
    spec += strspn(spec, " ");
    w->name = spec;
    w->name_length = (int)strcspn(spec, "=:^~!@?/%&.#");
    spec += w->name_length;
    w->kind = *spec++;
    w->flat = *spec == '*';
    spec += w->flat;
    w->letters = spec;
    w->n_letters = (int)strcspn(spec, " ");
    return spec + w->n_letters;
}

/* Raises "op: name <what>". */
static int fail(PyObject *type, const struct call *c, const struct word *w, const char *format, ...) {
    char what[256], text[512];
    va_list args;
    va_start(args, format);
    PyOS_vsnprintf(what, sizeof what, format, args);
    va_end(args);
    PyOS_snprintf(text, sizeof text, "%s: %.*s %s", c->op->name, w->name_length, w->name, what);
    PyErr_SetString(type, text);
    return -1;
}

#define wrong(...) fail(PyExc_ValueError, __VA_ARGS__)

/* The type that a buffer must have: 'f' float32, 'i' int32. A weight is bytes, or float32 if its format is F32. */
static int check_type(struct call *c, const struct word *w, const Py_buffer *b) {
    const char *type = b->format ? b->format : "B";
    type += *type == '@' || *type == '=' || *type == '<';
    int is_float = strcmp(type, "f") == 0, is_int = b->itemsize == 4 && (*type == 'i' || *type == 'l');
    int is_bf16 = strcmp(type, "H") == 0;
    if (w->kind == '^' || w->kind == '~') {
        if (!is_float && !is_bf16)
            return wrong(c, w, "must be float32 or uint16 (bf16), not of buffer type '%s'", b->format);
        c->v.type[c->n_views - 1] = is_bf16 ? ET_BF16 : ET_F32;
    } else if (w->kind == '%') {
        if (strcmp(type, "B") != 0 && !(is_float && c->v.format == ET_F32))
            return wrong(c, w, "must be uint8 (or float32 for format F32), not of buffer type '%s'", b->format);
    } else if (w->kind == '&') {
        if (strcmp(type, "B") != 0 || (uintptr_t)b->buf % _Alignof(struct et_moments))
            return wrong(c, w, "must be uint8 where a float may lie");
    } else if (w->kind == '@' || w->kind == '?') {
        if (!is_int)
            return wrong(c, w, "must be int32, not of buffer type '%s'", b->format);
    } else if (w->kind == '!' ? strcmp(type, "d") != 0 : !is_float)
        return w->kind == '!' ? wrong(c, w, "must be float64, not of buffer type '%s'", b->format)
                              : wrong(c, w, "must be float32, not of buffer type '%s'", b->format);
    return 0;
}

static int get_array(struct call *c, const struct word *w, PyObject *object) {
    int i = c->n_views, writes = strchr("=^!?&", w->kind) != NULL;
    if (strchr("?/", w->kind) && object == Py_None) {
        c->v.array[i] = NULL;
        c->view[i] = (Py_buffer){0};
    } else if (PyObject_GetBuffer(object, &c->view[i], PyBUF_ND | PyBUF_FORMAT | (writes ? PyBUF_WRITABLE : 0)) < 0) {
        int no_buffer = PyErr_ExceptionMatches(PyExc_TypeError);
        PyErr_Clear();
        if (no_buffer)
            return fail(PyExc_TypeError, c, w, "must be an array, not %s", Py_TYPE(object)->tp_name);
        return wrong(c, w, "must be C-contiguous%s", writes ? " and writable" : "");
    }
    c->word[i] = *w;
    c->v.array[i] = c->view[i].buf;
    c->n_views++;
    return c->view[i].obj ? check_type(c, w, &c->view[i]) : 0;
}

/* Reads arguments into c->v and c->view; shapes come later, when all arrays are there. */
static int read_arguments(struct call *c) {
    int reals = 0, wholes = 0;
    Py_ssize_t i = 0;
    const char *spec = c->op->spec;
    while (*spec) {
        struct word w;
        const char *rest = next_word(spec, &w);
        if (i + (w.kind == '%') >= c->n_args)
            break;
        if (w.kind == '.') {
            c->v.real[reals++] = PyFloat_AsDouble(c->args[i]);
        } else if (w.kind == '#') {
            c->v.whole[wholes++] = (long long)PyLong_AsUnsignedLongLongMask(c->args[i]);
        } else if (w.kind == '%') {
            c->v.format = (int)PyLong_AsLong(c->args[i + 1]);
            if (!PyErr_Occurred() && get_array(c, &w, c->args[i++]) < 0)
                return -1;
        } else if (get_array(c, &w, c->args[i]) < 0)
            return -1;
        if (PyErr_Occurred())
            return -1;
        spec = rest;
        i++;
    }
    if (!*spec && i == c->n_args)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s takes %s, not %zd arguments", c->op->name, c->op->spec, c->n_args);
    return -1;
}

/* ---- shapes ------------------------------------------------------------------------------------------------ */

/* Tells or checks the size that a letter stands for. */
static int bind_size(struct call *c, const struct word *w, char letter, int64_t size) {
    int64_t *known = &c->v.size[(int)letter];
    if (size <= 0 || (size > INT_MAX && letter <= 'Z'))
        return wrong(c, w, "has size %lld for %c", (long long)size, letter);
    if (*known && *known != size)
        return wrong(c, w, "has %c = %lld, but %c is %lld", letter, (long long)size, letter, (long long)*known);
    *known = size;
    return 0;
}

static int bind_shape(struct call *c, const struct word *w, const Py_buffer *b) {
    if (b->ndim != w->n_letters)
        return wrong(c, w, "must have %d dimensions [%.*s], not %d", w->n_letters, w->n_letters, w->letters, b->ndim);
    for (int i = 0; i < b->ndim; i++)
        if (bind_size(c, w, w->letters[i], b->shape[i]) < 0)
            return -1;
    return 0;
}

/* `count` values are the product of w's letters: tells the one that is not known yet, or checks. */
static int bind_product(struct call *c, const struct word *w, int64_t count) {
    int64_t known = 1;
    char unknown = 0;
    for (int i = 0; i < w->n_letters; i++) {
        int64_t size = c->v.size[(int)w->letters[i]];
        if (size)
            known *= size;
        else
            unknown = w->letters[i];
    }
    if (count <= 0 || count % known || (!unknown && count != known))
        return wrong(c, w, "has %lld values, expected %s%lld", (long long)count, unknown ? "a multiple of " : "",
                     (long long)known);
    return unknown ? bind_size(c, w, unknown, count / known) : 0;
}

static int bind_weight(struct call *c, const struct word *w, const Py_buffer *b) {
    int block = et_format_block(c->v.format), bytes = et_format_bytes(c->v.format);
    if (block < 0)
        return wrong(c, w, "has an unknown format, number %d", c->v.format);
    int64_t columns = c->v.size[(int)w->letters[w->n_letters - 1]];
    if (columns % block)
        return wrong(c, w, "cannot have rows of %lld: the format has blocks of %d", (long long)columns, block);
    if (b->len % bytes)
        return wrong(c, w, "has %zd bytes, not whole blocks of %d", b->len, bytes);
    return bind_product(c, w, (int64_t)(b->len / bytes) * block);
}

static int check_moments(struct call *c, const struct word *w, const Py_buffer *b) {
    int64_t blocks = (c->v.size[(int)w->letters[0]] + ET_MOMENTS - 1) / ET_MOMENTS;
    int64_t bytes = blocks * (int64_t)sizeof(struct et_moments);
    return b->len == bytes ? 0 : wrong(c, w, "has %zd bytes, expected %lld", b->len, (long long)bytes);
}

/* Exact shapes first: they tell the letters that the others need. */
static int bind_shapes(struct call *c) {
    for (int pass = 0; pass < 3; pass++)
        for (int i = 0; i < c->n_views; i++) {
            const struct word *w = &c->word[i];
            const Py_buffer *b = &c->view[i];
            int turn = w->kind == '%' || w->kind == '&' ? 2 : w->flat;
            if (turn != pass || !b->obj)
                continue;
            if ((turn == 0          ? bind_shape(c, w, b)
                 : turn == 1        ? bind_product(c, w, b->len / b->itemsize)
                 : w->kind == '&'   ? check_moments(c, w, b)
                                    : bind_weight(c, w, b)) < 0)
                return -1;
        }
    return 0;
}

/* ---- calls ------------------------------------------------------------------------------------------------- */

/* Any op: `self` is its place in binding_ops, the first argument the context; returns the op's code. */
static PyObject *run(PyObject *self, PyObject *const *args, Py_ssize_t n_args) {
    struct call c = {.op = &binding_ops[PyLong_AsLong(self)], .args = args + 1, .n_args = n_args - 1};
    PyObject *result = NULL;
    struct context *context = n_args ? PyCapsule_GetPointer(args[0], "edgetune.context") : NULL;
    if (!context) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_TypeError, "%s needs a context", c.op->name);
        return NULL;
    }
    if (context->busy) {
        PyErr_Format(PyExc_RuntimeError, "%s: the context is in use by another thread", c.op->name);
        return NULL;
    }
    if (read_arguments(&c) == 0 && bind_shapes(&c) == 0) {
        int code;
        context->busy = 1;
        Py_BEGIN_ALLOW_THREADS
        code = c.op->call(context->ctx, &c.v);
        Py_END_ALLOW_THREADS
        context->busy = 0;
        result = PyLong_FromLong(code);
    }
    for (int i = 0; i < c.n_views; i++)
        PyBuffer_Release(&c.view[i]);
    return result;
}

static PyObject *context_isa(PyObject *module, PyObject *capsule) {
    struct context *c = PyCapsule_GetPointer(capsule, "edgetune.context");
    (void)module;
    return c ? PyUnicode_FromString(et_context_isa(c->ctx)) : NULL;
}

/* set_precision(capsule, number) */
static PyObject *set_precision(PyObject *module, PyObject *args) {
    PyObject *capsule;
    int precision;
    (void)module;
    if (!PyArg_ParseTuple(args, "Oi", &capsule, &precision))
        return NULL;
    struct context *c = PyCapsule_GetPointer(capsule, "edgetune.context");
    if (!c)
        return NULL;
    et_context_set_precision(c->ctx, (enum et_precision)precision);
    Py_RETURN_NONE;
}

/* set_threads(capsule, threads) -> code */
static PyObject *set_threads(PyObject *module, PyObject *args) {
    PyObject *capsule;
    int threads;
    (void)module;
    if (!PyArg_ParseTuple(args, "Oi", &capsule, &threads))
        return NULL;
    struct context *c = PyCapsule_GetPointer(capsule, "edgetune.context");
    if (!c)
        return NULL;
    if (c->busy) {
        PyErr_SetString(PyExc_RuntimeError, "set_threads: the context is in use by another thread");
        return NULL;
    }
    return PyLong_FromLong(et_context_set_threads(c->ctx, threads));
}

/* context_products(capsule) -> (forward, backward) */
static PyObject *context_products(PyObject *module, PyObject *capsule) {
    struct context *c = PyCapsule_GetPointer(capsule, "edgetune.context");
    (void)module;
    return c ? Py_BuildValue("(ss)", et_context_product(c->ctx, 0), et_context_product(c->ctx, 1)) : NULL;
}

/* register_loop(capsule, backward, n) -> operations */
static PyObject *register_loop(PyObject *module, PyObject *args) {
    PyObject *capsule;
    int backward;
    long long n;
    double operations;
    (void)module;
    if (!PyArg_ParseTuple(args, "OiL", &capsule, &backward, &n))
        return NULL;
    struct context *c = PyCapsule_GetPointer(capsule, "edgetune.context");
    if (!c)
        return NULL;
    if (c->busy) {
        PyErr_SetString(PyExc_RuntimeError, "register_loop: the context is in use by another thread");
        return NULL;
    }
    c->busy = 1;
    Py_BEGIN_ALLOW_THREADS
    operations = et_register_loop(c->ctx, backward, n);
    Py_END_ALLOW_THREADS
    c->busy = 0;
    return PyFloat_FromDouble(operations);
}

static PyObject *scratch_bytes(PyObject *module, PyObject *threads) {
    (void)module;
    return PyLong_FromSize_t(et_scratch_bytes((int)PyLong_AsLong(threads)));
}

static PyObject *cpu_features(PyObject *module, PyObject *none) {
    (void)module, (void)none;
    return PyUnicode_FromString(et_cpu_features());
}

/* rows() -> [(name, usable)], best first */
static PyObject *rows(PyObject *module, PyObject *none) {
    PyObject *list = PyList_New(0);
    (void)module, (void)none;
    for (int i = 0; list && et_isa_name(i); i++) {
        PyObject *row = Py_BuildValue("(sO)", et_isa_name(i), et_isa_usable(i) ? Py_True : Py_False);
        if (!row || PyList_Append(list, row) < 0)
            Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

/* ---- the module -------------------------------------------------------------------------------------------- */

static PyMethodDef functions[] = {
    {"context", context_new, METH_VARARGS, NULL},
    {"context_isa", context_isa, METH_O, NULL},
    {"context_products", context_products, METH_O, NULL},
    {"set_precision", set_precision, METH_VARARGS, NULL},
    {"set_threads", set_threads, METH_VARARGS, NULL},
    {"register_loop", register_loop, METH_VARARGS, NULL},
    {"scratch_bytes", scratch_bytes, METH_O, NULL},
    {"cpu_features", cpu_features, METH_NOARGS, NULL},
    {"rows", rows, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static int add_ops(PyObject *module) {
    static PyMethodDef methods[64];
    for (int i = 0; binding_ops[i].name; i++) {
        methods[i] = (PyMethodDef){binding_ops[i].name, (PyCFunction)(void (*)(void))run, METH_FASTCALL,
                                   binding_ops[i].spec};
        PyObject *place = PyLong_FromLong(i), *function = place ? PyCFunction_New(&methods[i], place) : NULL;
        Py_XDECREF(place);
        if (!function || PyModule_AddObject(module, binding_ops[i].name, function) < 0) {
            Py_XDECREF(function);
            return -1;
        }
    }
    return 0;
}

/* FORMATS: name -> (number, weights a block, bytes a block) */
static int add_formats(PyObject *module) {
    PyObject *formats = PyDict_New();
#define FORMAT(name, block, bytes)                                                                                     \
    {                                                                                                                  \
        PyObject *row = Py_BuildValue("(iii)", ET_##name, block, bytes);                                               \
        if (!formats || !row || PyDict_SetItemString(formats, #name, row) < 0)                                         \
            Py_CLEAR(formats);                                                                                         \
        Py_XDECREF(row);                                                                                               \
    }
    ET_FORMATS(FORMAT)
#undef FORMAT
    if (formats && PyModule_AddObject(module, "FORMATS", formats) == 0)
        return 0;
    Py_XDECREF(formats);
    return -1;
}

static struct PyModuleDef module_def = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *module = PyModule_Create(&module_def);
    if (module && (add_ops(module) < 0 || add_formats(module) < 0))
        Py_CLEAR(module);
    return module;
}
