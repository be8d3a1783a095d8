#define ET_ISA scalar
#define VL 4
#define MR 4
#define NV 2
#define KC 256
#define NC 256
#define MC 256
#include "../generic.h"
