/* A call of an op: its arguments, read and checked as its spec says, then the function of et.h. */
#include "binding.h"

#include <limits.h>
#include <string.h>

#include "quant.h"

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
    struct values v;
    struct word word[MAX_ARRAYS];
    Py_buffer view[MAX_ARRAYS];
    int n_views, n_reals, n_wholes;
};

static const char *next_word(const char *spec, struct word *w) {
    spec += strspn(spec, " ");
    w->name = spec;
    w->name_length = (int)strcspn(spec, "=:^~!@?/+%&.#$");
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

/* After a conversion to a number: 0, or an exception that names the argument. */
static int check_number(const struct call *c, const struct word *w, PyObject *object) {
    if (!PyErr_Occurred())
        return 0;
    int type = PyErr_ExceptionMatches(PyExc_TypeError);
    PyErr_Clear();
    if (type)
        return fail(PyExc_TypeError, c, w, "must be a %snumber, not %.100s", w->kind == '.' ? "" : "whole ",
                    Py_TYPE(object)->tp_name);
    return wrong(c, w, "is out of its range");
}

static int get_real(struct call *c, const struct word *w, PyObject *object, double *out) {
    *out = PyFloat_AsDouble(object);
    return check_number(c, w, object);
}

/* One that fits an int, or, of the kind '$', 64 bits without a sign. */
static int get_whole(struct call *c, const struct word *w, PyObject *object, long long *out) {
    PyObject *number = PyNumber_Index(object);
    if (!number)
        return check_number(c, w, object);
    *out = w->kind == '$' ? (long long)PyLong_AsUnsignedLongLong(number) : PyLong_AsLongLong(number);
    Py_DECREF(number);
    if (check_number(c, w, object) < 0)
        return -1;
    return w->kind == '$' || (*out >= INT_MIN && *out <= INT_MAX) ? 0 : wrong(c, w, "is out of its range");
}

/* The type that a buffer must have: 'f' float32, 'i' int32. A weight is bytes, or float32 if its format is F32. */
static int check_type(struct call *c, const struct word *w, const Py_buffer *b) {
    const char *type = b->format ? b->format : "B";
    type += *type == '@' || *type == '=' || *type == '<';
    int is_float = strcmp(type, "f") == 0;
    int is_int = b->itemsize == 4 && (*type == 'i' || *type == 'l');
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
    } else if (strchr("@?+", w->kind)) {
        if (!is_int)
            return wrong(c, w, "must be int32, not of buffer type '%s'", b->format);
    } else if (w->kind == '!' ? strcmp(type, "d") != 0 : !is_float)
        return w->kind == '!' ? wrong(c, w, "must be float64, not of buffer type '%s'", b->format)
                              : wrong(c, w, "must be float32, not of buffer type '%s'", b->format);
    return 0;
}

static int get_array(struct call *c, const struct word *w, PyObject *object) {
    int i = c->n_views;
    int writes = strchr("=^!?&", w->kind) != NULL;
    if (strchr("?/+", w->kind) && object == Py_None) {
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

/* One argument, or the two of a weight. */
static int read_argument(struct call *c, const struct word *w, PyObject *const *args) {
    long long format;
    switch (w->kind) {
    case '.':
        return get_real(c, w, args[0], &c->v.real[c->n_reals++]);
    case '#':
    case '$':
        return get_whole(c, w, args[0], &c->v.whole[c->n_wholes++]);
    case '%':
        if (get_whole(c, w, args[1], &format) < 0)
            return -1;
        c->v.format = (int)format;
        return get_array(c, w, args[0]);
    default:
        return get_array(c, w, args[0]);
    }
}

/* Reads arguments into c->v and c->view; shapes come later, when all arrays are there. */
static int read_arguments(struct call *c, PyObject *const *args, Py_ssize_t n_args) {
    Py_ssize_t i = 0;
    const char *spec = c->op->spec;
    while (*spec) {
        struct word w;
        const char *rest = next_word(spec, &w);
        Py_ssize_t taken = w.kind == '%' ? 2 : 1;
        if (i + taken > n_args)
            break;
        if (read_argument(c, &w, args + i) < 0)
            return -1;
        spec = rest;
        i += taken;
    }
    if (!*spec && i == n_args)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s takes %s, not %zd arguments", c->op->name, c->op->spec, n_args);
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
    int block = format_block(c->v.format);
    int bytes = format_bytes(c->v.format);
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
            if ((turn == 0        ? bind_shape(c, w, b)
                 : turn == 1      ? bind_product(c, w, b->len / b->itemsize)
                 : w->kind == '&' ? check_moments(c, w, b)
                                  : bind_weight(c, w, b)) < 0)
                return -1;
        }
    return 0;
}

/* A device that is handed memory which it does not reach can do no more. What is written at once is the host's. */
static int check_memory(const struct context *context, const struct call *c) {
    for (int i = 0; context->device && i < c->n_views; i++)
        if (c->view[i].obj && c->word[i].kind != '!' &&
            !device_reaches(context->device, c->view[i].buf, (size_t)c->view[i].len))
            return wrong(c, &c->word[i], "is not in the device's memory");
    return 0;
}

/* ---- calls ------------------------------------------------------------------------------------------------- */

/* Any op: `self` is its place in binding_ops, the first argument the context; returns the op's code. */
static PyObject *run(PyObject *self, PyObject *const *args, Py_ssize_t n_args) {
    struct call c = {.op = &binding_ops[PyLong_AsLong(self)]};
    PyObject *result = NULL;
    struct context *context = idle_context(n_args ? args[0] : Py_None, c.op->name);
    if (!context)
        return NULL;
    if (read_arguments(&c, args + 1, n_args - 1) == 0 && bind_shapes(&c) == 0 && check_memory(context, &c) == 0) {
        int code;
        context->busy = 1;
        Py_BEGIN_ALLOW_THREADS
        code = c.op->call(context->ctx, &c.v);
        Py_END_ALLOW_THREADS
        context->busy = 0;
        result = PyLong_FromLong(code);
        if (context->tape) {
            struct call_read read = {(int)(c.op - binding_ops), c.n_views, c.n_reals, c.n_wholes, &c.v, c.view};
            tape_write(context->tape, &read, context->precision);
        }
    }
    for (int i = 0; i < c.n_views; i++)
        PyBuffer_Release(&c.view[i]);
    return result;
}

int add_ops(PyObject *module) {
    static PyMethodDef methods[64];
    for (int i = 0; binding_ops[i].name; i++) {
        methods[i] =
            (PyMethodDef){binding_ops[i].name, (PyCFunction)(void (*)(void))run, METH_FASTCALL, binding_ops[i].spec};
        PyObject *place = PyLong_FromLong(i);
        PyObject *function = place ? PyCFunction_New(&methods[i], place) : NULL;
        Py_XDECREF(place);
        if (!function || PyModule_AddObject(module, binding_ops[i].name, function) < 0) {
            Py_XDECREF(function);
            return -1;
        }
    }
    return 0;
}
