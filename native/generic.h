/* Every op, once, compiled once an ISA. isa/NAME.c sets the constants and includes this; all functions are static,
 * so that nothing compiled for a wider ISA can be linked into a narrower set.
 *
 * ET_ISA name of the kernel set; VL floats a vector; a tile is MR rows x NV vectors (NR columns); a block of the
 * product is at most MC rows, NC columns and KC inner elements (matmul.h). All were chosen by measuring.
 */
#include <math.h>
#include <string.h>

#include "table.h"
#include "needs.h"
#include "pool.h"
#include "quant.h"

#define NR (NV * VL)

/* A vector of VL floats. Arithmetic is plain C on vectors; loads and stores need no alignment. */
typedef float vec __attribute__((vector_size(4 * VL)));
typedef float vec_unaligned __attribute__((vector_size(4 * VL), aligned(4), may_alias));

static inline vec vload(const float *p) { return *(const vec_unaligned *)p; }
static inline void vstore(float *p, vec v) { *(vec_unaligned *)p = v; }

static inline int min_int(int a, int b) { return a < b ? a : b; }
static inline int max_int(int a, int b) { return a > b ? a : b; }
static inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

/* For loops that do nothing but multiply and add (peak.h). Sums are made opaque to the compiler, before the loop, as it
 * would make one of all that are equal, and behind it, as it would leave the loop out; and so is a factor in it, for
 * the product not to be taken out of the loop. */
#if defined __x86_64__ || defined __i386__
#define OPAQUE(x) __asm__ volatile("" : "+v"(x))
#elif defined __aarch64__
#define OPAQUE(x) __asm__ volatile("" : "+w"(x))
#else
#define OPAQUE(x) __asm__ volatile("" : "+m"(x))
#endif

enum { PEAK_SUMS = 12 }; /* enough to hide an addition's latency on two units, and few enough for 16 registers */

#define OP(name, args) static void name args;
ET_OPS(OP)
#undef OP

#include "vmath.h"
#include "array.h"
#include "pack.h"
#include "gemm.h"
#include "product.h"
#include "float32.h"
#include "int8.h"
#include "bf16.h"
#include "matmul.h"
#include "peak.h"
#include "weights.h"
#include "norm.h"
#include "rope.h"
#include "attention.h"
#include "cached.h"
#include "gelu.h"
#include "glu.h"
#include "conv.h"
#include "ssm.h"
#include "delta.h"
#include "delta_backward.h"
#include "delta_bf16.h"
#include "delta_bf16_backward.h"
#include "head.h"
#include "elementwise.h"
#include "sample.h"
#include "adamw.h"

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define STRING_(a) #a
#define STRING(a) STRING_(a)

const struct et_kernel_set PASTE(et_kernel_set_, ET_ISA) = {.name = STRING(ET_ISA),
                                                            .needs = ET_NEEDS,
                                                            .product = product_numbers,
                                                            .peak = product_peak,
#define OP(name, args) .name = name,
                                                            ET_OPS(OP)
#undef OP
};
