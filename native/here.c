/* Ends with 0 if this CPU takes the kernel set with whose flags this is compiled. CMake runs it for ET_SETS=here. */
#define _GNU_SOURCE
#include "cpu.h"

int main(void) { return (ET_NEEDS & ~cpu_bits()) || cpu_is_slow_at(ET_NEEDS); }
