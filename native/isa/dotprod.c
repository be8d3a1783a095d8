#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>

#define ET_ISA dotprod
#define VL 4
#define MR 8
#define NV 3
#define KC 256
#define NC 768
#define MC 256

#define ET_DOT4
typedef int32x4_t sums;

static inline void dot4(sums s[4], const int8_t *a, const int8_t *b) {
    int8x16_t rows = vld1q_s8(a), columns = vld1q_s8(b);
    s[0] = vdotq_laneq_s32(s[0], columns, rows, 0);
    s[1] = vdotq_laneq_s32(s[1], columns, rows, 1);
    s[2] = vdotq_laneq_s32(s[2], columns, rows, 2);
    s[3] = vdotq_laneq_s32(s[3], columns, rows, 3);
}

static inline sums first_sums(const int8_t *b, ptrdiff_t stride) {
    (void)b, (void)stride;
    return vdupq_n_s32(0);
}

static inline float32x4_t sums_to_floats(sums s) { return vcvtq_f32_s32(s); }

#include "../generic.h"
