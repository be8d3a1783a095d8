#define ET_ISA avxvnni
#define VL 8
#define MR 4
#define NV 3
#define KC 288
#define NC 768
#define MC 240
#include "../generic.h"
