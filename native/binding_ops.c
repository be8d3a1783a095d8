#include "binding.h"

#define P(i) v->array[i]
#define A(i) ((et_array){v->array[i], v->type[i]})
#define F(i) (float)v->real[i]
#define I(i) (int)v->whole[i]
#define L(i) v->whole[i]
#define N(letter) (int)v->size[(int)#letter[0]]
#define END(i, letter) (I(i) < 0 ? N(letter) : I(i)) /* negative: the size */
#define LONG(letter) v->size[(int)#letter[0]]

#define OP(name, spec, ...)                                                                                            \
    static int call_##name(et_context *ctx, const struct values *v) { return et_##name(ctx, __VA_ARGS__); }
#include "binding_ops.def"
#undef OP

#define OP(name, spec, ...) {#name, spec, call_##name},
const struct op binding_ops[] = {
#include "binding_ops.def"
    {NULL, NULL, NULL},
};
