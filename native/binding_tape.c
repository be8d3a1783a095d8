/* Tapes: calls of ops, written down with their arguments, which run again without Python.
 *
 * A tape is written twice, for different numbers of tokens, unless it only ever runs for as many as at first. All must be
 * the same in both but sizes: one that differs must be a multiple of the number of tokens. So the tape holds for any
 * number. One whose calls differ otherwise is refused, and then never runs. */
#include "binding.h"

#include <limits.h>
#include <string.h>

#define CAPSULE "edgetune.tape"
#define PER_TOKEN 128 /* added to the letter of a size that is times the number of tokens */

/* A call. Behind it lie its words: arrays, reals, wholes, sizes. */
struct entry {
    uint16_t op;
    uint8_t precision, arrays, reals, wholes, sizes;
    uint8_t type[MAX_ARRAYS];
    int32_t format;
};

union word {
    void *array;
    double real;
    long long whole;
    struct {
        uint64_t letter : 8, size : 56;
    };
};

_Static_assert(sizeof(union word) == 8 && sizeof(struct entry) % 8 == 0, "words lie behind an entry");

struct tape {
    int tokens; /* of the first writing; 0: it was not written yet */
    int now;    /* of the writing that lasts, 0: none does */
    int is_general, is_refused;
    char *bytes;
    size_t used, room;
    size_t at;      /* how much the second writing has compared */
    PyObject *kept; /* what holds the memory of its arrays */
};

static struct tape *get_tape(PyObject *capsule, const char *function) {
    if (PyCapsule_IsValid(capsule, CAPSULE))
        return PyCapsule_GetPointer(capsule, CAPSULE);
    PyErr_Format(PyExc_TypeError, "%s needs a tape, not %.100s", function, Py_TYPE(capsule)->tp_name);
    return NULL;
}

/* *out = a number of tokens; -1 and an exception if it is none. */
static int get_tokens(PyObject *object, const char *function, int *out) {
    int overflow = 0;
    long long tokens = PyLong_Check(object) ? PyLong_AsLongLongAndOverflow(object, &overflow) : 0;
    *out = (int)tokens;
    if (PyLong_Check(object) && !overflow && tokens >= 1 && tokens <= INT_MAX)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s: tokens must be a number from 1 on, not %R", function, object);
    return -1;
}

static void refuse(struct tape *t) {
    t->is_refused = 1;
    t->used = t->room = 0;
    PyMem_Free(t->bytes);
    t->bytes = NULL;
    Py_CLEAR(t->kept);
}

static void tape_free(PyObject *capsule) {
    struct tape *t = PyCapsule_GetPointer(capsule, CAPSULE);
    refuse(t);
    PyMem_Free(t);
}

/* tape() -> capsule */
static PyObject *tape(PyObject *module, PyObject *none) {
    struct tape *t = PyMem_Calloc(1, sizeof *t);
    (void)module, (void)none;
    PyObject *capsule = t ? PyCapsule_New(t, CAPSULE, tape_free) : PyErr_NoMemory();
    if (!capsule)
        PyMem_Free(t);
    return capsule;
}

/* ---- writing ----------------------------------------------------------------------------------------------- */

static union word *words(struct entry *e) { return (union word *)(e + 1); }
static int word_count(const struct entry *e) { return e->arrays + e->reals + e->wholes + e->sizes; }
static size_t entry_bytes(const struct entry *e) { return sizeof *e + (size_t)word_count(e) * sizeof(union word); }

/* An entry and its words. */
struct written {
    struct entry e;
    union word word[2 * MAX_ARRAYS + 3 * MAX_NUMBERS + 128];
};

static void write_call(struct written *out, const struct call_read *c, int precision) {
    const struct values *v = c->values;
    out->e = (struct entry){.op = (uint16_t)c->op,
                            .precision = (uint8_t)precision,
                            .arrays = (uint8_t)c->arrays,
                            .reals = (uint8_t)c->reals,
                            .wholes = (uint8_t)c->wholes,
                            .format = v->format};
    union word *w = out->word;
    for (int i = 0; i < MAX_ARRAYS; i++)
        out->e.type[i] = (uint8_t)v->type[i];
    for (int i = 0; i < c->arrays; i++)
        (w++)->array = v->array[i];
    for (int i = 0; i < c->reals; i++)
        (w++)->real = v->real[i];
    for (int i = 0; i < c->wholes; i++)
        (w++)->whole = v->whole[i];
    for (int letter = 0; letter < 128; letter++)
        if (v->size[letter]) {
            w->letter = (uint8_t)letter;
            (w++)->size = (uint64_t)v->size[letter];
            out->e.sizes++;
        }
}

/* 0, or -1 where there is no memory. */
static int append(struct tape *t, const struct written *call) {
    size_t bytes = entry_bytes(&call->e);
    if (t->used + bytes > t->room) {
        size_t room = 2 * t->room + bytes;
        char *grown = PyMem_Realloc(t->bytes, room);
        if (!grown)
            return -1;
        t->bytes = grown;
        t->room = room;
    }
    memcpy(t->bytes + t->used, &call->e, sizeof call->e);
    memcpy(t->bytes + t->used + sizeof call->e, call->word, bytes - sizeof call->e);
    t->used += bytes;
    return 0;
}

/* Whether the next entry is this call but for the number of tokens. Its sizes are told by that from now on. */
static int matches(struct tape *t, const struct written *call) {
    struct entry *e = (struct entry *)(t->bytes + t->at);
    if (t->at == t->used || memcmp(e, &call->e, sizeof *e) != 0)
        return 0;
    int others = word_count(e) - e->sizes;
    union word *w = words(e);
    if (memcmp(w, call->word, (size_t)others * sizeof *w) != 0)
        return 0;
    for (int i = others; i < word_count(e); i++) {
        const uint64_t first = w[i].size;
        const uint64_t size = call->word[i].size;
        if (w[i].letter != call->word[i].letter)
            return 0;
        if (first == size)
            continue;
        w[i].size = first / (uint64_t)t->tokens;
        w[i].letter += PER_TOKEN;
        if (w[i].size * (uint64_t)t->tokens != first || w[i].size * (uint64_t)t->now != size)
            return 0;
    }
    t->at += entry_bytes(e);
    return 1;
}

void tape_write(PyObject *capsule, const struct call_read *c, int precision) {
    struct tape *t = PyCapsule_GetPointer(capsule, CAPSULE);
    struct written call;
    if (t->is_refused)
        return;
    write_call(&call, c, precision);
    int is_good = t->now != t->tokens ? matches(t, &call) : append(t, &call) == 0;
    for (int i = 0; is_good && t->now == t->tokens && i < c->arrays; i++)
        is_good = !c->views[i].obj || PyList_Append(t->kept, c->views[i].obj) == 0;
    if (is_good)
        return;
    PyErr_Clear(); /* the op itself has run */
    refuse(t);
}

/* tape_begin(context, tape, tokens): the ops that follow are written on it, and run */
static PyObject *tape_begin(PyObject *module, PyObject *args) {
    PyObject *context, *capsule, *number;
    int tokens;
    (void)module;
    if (!PyArg_UnpackTuple(args, "tape_begin", 3, 3, &context, &capsule, &number))
        return NULL;
    struct context *c = idle_context(context, "tape_begin");
    struct tape *t = c ? get_tape(capsule, "tape_begin") : NULL;
    if (!t || get_tokens(number, "tape_begin", &tokens) < 0)
        return NULL;
    if (c->tape || t->now) {
        PyErr_SetString(PyExc_ValueError, "tape_begin: a tape is being written");
        return NULL;
    }
    if (!t->tokens) {
        t->kept = PyList_New(0);
        if (!t->kept)
            return NULL;
        t->tokens = tokens;
    } else if (t->tokens == tokens || t->is_general)
        refuse(t); /* it would have run: it was given up halfway */
    t->now = tokens;
    t->at = 0;
    c->tape = Py_NewRef(capsule);
    Py_RETURN_NONE;
}

/* tape_end(context, whole): whole: whether all ops were called that are to be on it */
static PyObject *tape_end(PyObject *module, PyObject *args) {
    PyObject *context;
    int is_whole;
    (void)module;
    if (!PyArg_ParseTuple(args, "Op", &context, &is_whole))
        return NULL;
    struct context *c = idle_context(context, "tape_end");
    if (!c)
        return NULL;
    if (!c->tape) {
        PyErr_SetString(PyExc_ValueError, "tape_end: no tape is being written");
        return NULL;
    }
    struct tape *t = PyCapsule_GetPointer(c->tape, CAPSULE);
    int is_second = t->now != t->tokens;
    t->is_general = is_second;
    t->now = 0;
    if (!is_whole || (is_second && t->at != t->used))
        refuse(t);
    Py_CLEAR(c->tape);
    Py_RETURN_NONE;
}

/* ---- running ----------------------------------------------------------------------------------------------- */

/* Runs an entry; the sizes of v are 0 before and after. */
static int run_entry(struct entry *e, et_context *ctx, struct values *v, int tokens) {
    const union word *w = words(e);
    for (int i = 0; i < e->arrays; i++) {
        v->type[i] = e->type[i];
        v->array[i] = (w++)->array;
    }
    for (int i = 0; i < e->reals; i++)
        v->real[i] = (w++)->real;
    for (int i = 0; i < e->wholes; i++)
        v->whole[i] = (w++)->whole;
    v->format = e->format;
    for (int i = 0; i < e->sizes; i++)
        v->size[w[i].letter % PER_TOKEN] = (int64_t)w[i].size * (w[i].letter >= PER_TOKEN ? tokens : 1);
    int code = binding_ops[e->op].call(ctx, v);
    for (int i = 0; i < e->sizes; i++)
        v->size[w[i].letter % PER_TOKEN] = 0;
    return code;
}

static int run_tape(const struct tape *t, et_context *ctx, int precision, int tokens) {
    struct values v = {0};
    int now = precision;
    int code = ET_OK;
    for (size_t at = 0; at < t->used && code == ET_OK;) {
        struct entry *e = (struct entry *)(t->bytes + at);
        if (e->precision != now)
            et_context_set_precision(ctx, (enum et_precision)e->precision);
        now = e->precision;
        code = run_entry(e, ctx, &v, tokens);
        at += entry_bytes(e);
    }
    et_context_set_precision(ctx, (enum et_precision)precision);
    return code;
}

/* tape_run(context, tape, tokens) -> the code of its ops, or None where it does not hold for as many tokens */
static PyObject *tape_run(PyObject *module, PyObject *args) {
    PyObject *context, *capsule, *number;
    int tokens, code;
    (void)module;
    if (!PyArg_UnpackTuple(args, "tape_run", 3, 3, &context, &capsule, &number))
        return NULL;
    struct context *c = idle_context(context, "tape_run");
    struct tape *t = c ? get_tape(capsule, "tape_run") : NULL;
    if (!t || get_tokens(number, "tape_run", &tokens) < 0)
        return NULL;
    if (t->is_refused || t->now || !(t->is_general || tokens == t->tokens))
        Py_RETURN_NONE;
    c->busy = 1;
    Py_INCREF(capsule);
    Py_BEGIN_ALLOW_THREADS
    code = run_tape(t, c->ctx, c->precision, tokens);
    Py_END_ALLOW_THREADS
    Py_DECREF(capsule);
    c->busy = 0;
    return PyLong_FromLong(code);
}

static PyMethodDef functions[] = {
    {"tape", tape, METH_NOARGS, NULL},
    {"tape_begin", tape_begin, METH_VARARGS, NULL},
    {"tape_end", tape_end, METH_VARARGS, NULL},
    {"tape_run", tape_run, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int add_tapes(PyObject *module) { return PyModule_AddFunctions(module, functions); }
