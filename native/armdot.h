/* What int8.h wants of a kernel set, where ARM has dot products of signed bytes: of four with a lane of others, or, as
 * a product of matrices, of eight of two rows with two columns. */

#define ET_DOT
#define INT8_ROWS 8  /* of a tile */
#define INT8_GROUP 4 /* rows computed at a time */
#define INT8_VECTORS 3
#define INT8_OFFSET 0

#define INT8_RUN INT8_STEP

static inline ivec round_to_ints(vec x) { return (ivec)vcvtnq_s32_f32((float32x4_t)x); }
static inline ivec max_ints(ivec x, ivec y) { return (ivec)vmaxq_s32((int32x4_t)x, (int32x4_t)y); }
static inline void store_bytes(int8_t out[32], const ivec codes[8]) {
    UNROLL for (int i = 0; i < 8; i += 4) {
        int16x8_t low = vcombine_s16(vmovn_s32((int32x4_t)codes[i]), vmovn_s32((int32x4_t)codes[i + 1]));
        int16x8_t high = vcombine_s16(vmovn_s32((int32x4_t)codes[i + 2]), vmovn_s32((int32x4_t)codes[i + 3]));
        vst1q_s8(out + 4 * i, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    }
}

#ifdef __ARM_FEATURE_MATMUL_INT8
#define INT8_STEP 8

/* s[r][j] holds rows r / 2 * 2 and the next times columns j * 4 + r % 2 * 2 and the next, */
static inline __attribute__((always_inline)) void dot_step(ivec s[INT8_GROUP][INT8_VECTORS], const int8_t *a,
                                                           const int8_t *b, const int nv) {
    int8x16_t rows[INT8_GROUP / 2];
    UNROLL for (int i = 0; i < INT8_GROUP / 2; i++)
        rows[i] = vld1q_s8(a + i * 16);
    UNROLL for (int j = 0; j < 2 * nv; j++) {
        int8x16_t columns = vld1q_s8(b + j * 16);
        UNROLL for (int i = 0; i < INT8_GROUP / 2; i++)
            s[2 * i + j % 2][j / 2] = (ivec)vmmlaq_s32((int32x4_t)s[2 * i + j % 2][j / 2], rows[i], columns);
    }
}

/* until a block ends. */
static inline __attribute__((always_inline)) void dot_end(ivec s[INT8_GROUP][INT8_VECTORS], const int nv) {
    UNROLL for (int i = 0; i < INT8_GROUP; i += 2) {
        UNROLL for (int j = 0; j < nv; j++) {
            ivec left = s[i][j];
            ivec right = s[i + 1][j];
            s[i][j] = SHUFFLE(left, right, 0, 1, 4, 5);
            s[i + 1][j] = SHUFFLE(left, right, 2, 3, 6, 7);
        }
    }
}

#else
#define INT8_STEP 4

static inline __attribute__((always_inline)) void dot_step(ivec s[INT8_GROUP][INT8_VECTORS], const int8_t *a,
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

static inline void dot_end(ivec s[INT8_GROUP][INT8_VECTORS], int nv) { (void)s, (void)nv; }
#endif
