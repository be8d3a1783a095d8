#define ET_ISA i8mm
#define VL 4
#define MR 8
#define NV 3
#define KC 256
#define NC 768
#define MC 256
#include "../generic.h"
