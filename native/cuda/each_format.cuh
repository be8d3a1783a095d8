/* KERNELS(format), which a unit of kernels for weights defines: for the format ET_ONLY alone, as a card's compiler is
 * told at its first use, or without it for every format. */
#ifdef ET_ONLY
#define KERNELS_OF(format) KERNELS(format)
KERNELS_OF(ET_ONLY)
#else
#define FORMAT(name, ...) KERNELS(name)
#include "../formats.def"
#undef FORMAT
#endif
