#define ET_ISA amx
#define VL 16
#define MR 8
#define NV 3
#define KC 288
#define NC 768
#define MC 480
#include "../generic.h"
