/* The module edgetune._native: functions on contexts, an op a line of binding_ops.def, and what et.h fixes. */
#include "binding.h"

#include "quant.h"

/* (number, weights a block, bytes a block, what scales it, where in it halves begin) */
static PyObject *format_facts(int number, int block, int bytes, const char *scales, int where, int halves) {
    PyObject *places = PyTuple_New(halves);
    for (int i = 0; places && i < halves; i++) {
        PyObject *place = PyLong_FromLong(where + 2 * i);
        if (place)
            PyTuple_SET_ITEM(places, i, place);
        else
            Py_CLEAR(places);
    }
    return places ? Py_BuildValue("(iiisN)", number, block, bytes, scales, places) : NULL;
}

/* FORMATS: name -> format_facts */
static int add_formats(PyObject *module) {
    PyObject *formats = PyDict_New();
#define FORMAT(name, number, block, bytes, scales, where, halves)                                                      \
    {                                                                                                                  \
        PyObject *facts = format_facts(number, block, bytes, #scales, where, halves);                                  \
        if (!formats || !facts || PyDict_SetItemString(formats, #name, facts) < 0)                                     \
            Py_CLEAR(formats);                                                                                         \
        Py_XDECREF(facts);                                                                                             \
    }
#include "formats.def"
#undef FORMAT
    if (formats && PyModule_AddObject(module, "FORMATS", formats) == 0)
        return 0;
    Py_XDECREF(formats);
    return -1;
}

static int add_sizes(PyObject *module) {
    if (PyModule_AddIntConstant(module, "CACHE", ET_CACHE) < 0 ||
        PyModule_AddIntConstant(module, "HEAD_STATE", ET_HEAD_STATE) < 0 ||
        PyModule_AddIntConstant(module, "SAMPLE_STATE", ET_SAMPLE_STATE) < 0 ||
        PyModule_AddIntConstant(module, "MOMENTS", ET_MOMENTS) < 0)
        return -1;
    return PyModule_AddIntConstant(module, "MOMENT_BYTES", (long)sizeof(struct et_moments));
}

PyMODINIT_FUNC PyInit__native(void) {
    static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, NULL, NULL, NULL, NULL, NULL};
    definition.m_methods = context_functions;
    PyObject *module = PyModule_Create(&definition);
    if (module && (add_ops(module) < 0 || add_formats(module) < 0 || add_sizes(module) < 0 || add_devices(module) < 0 ||
                   add_tapes(module) < 0))
        Py_CLEAR(module);
    return module;
}
