/* What int8.h wants of a row, where ARM has dot products of signed bytes with a lane of others. */

#define ET_DOT4
#define INT8_ROWS 8  /* of a tile, */
#define INT8_GROUP 4 /* computed so many at a time, with */
#define INT8_VECTORS 3
#define INT8_OFFSET 0

static inline ivec round_to_ints(vec x) { return (ivec)vcvtnq_s32_f32((float32x4_t)x); }

static inline __attribute__((always_inline)) void dot4(ivec s[INT8_GROUP][INT8_VECTORS], const int8_t *a,
                                                       const int8_t *b, const int nv) {
    int8x16_t rows = vld1q_s8(a);
    UNROLL for (int j = 0; j < nv; j++) {
        int8x16_t columns = vld1q_s8(b + j * 4 * VL);
        s[0][j] = (ivec)vdotq_laneq_s32((int32x4_t)s[0][j], columns, rows, 0);
        s[1][j] = (ivec)vdotq_laneq_s32((int32x4_t)s[1][j], columns, rows, 1);
        s[2][j] = (ivec)vdotq_laneq_s32((int32x4_t)s[2][j], columns, rows, 2);
        s[3][j] = (ivec)vdotq_laneq_s32((int32x4_t)s[3][j], columns, rows, 3);
    }
}
