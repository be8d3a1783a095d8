/* What int8.h wants of a kernel set, where x86 has dot products of unsigned with signed bytes: codes of A are moved up
 * by 128, and sums begin with what that adds, negated. */

#define ET_DOT
#define INT8_ROWS 12 /* of a tile */
#define INT8_GROUP 6 /* rows computed at a time */
#define INT8_VECTORS 2
#define INT8_OFFSET 128
#define INT8_STEP 4
#define INT8_RUN 32

#if VL == 16
#define DPBUSD(sum, a, b) (ivec) _mm512_dpbusd_epi32((__m512i)(sum), (__m512i)(a), (__m512i)(b))
static inline ivec round_to_ints(vec x) { return (ivec)_mm512_cvtps_epi32((__m512)x); }
static inline ivec max_ints(ivec x, ivec y) { return (ivec)_mm512_max_epi32((__m512i)x, (__m512i)y); }
static inline void store_bytes(int8_t out[32], const ivec codes[2]) {
    UNROLL for (int i = 0; i < 2; i++)
        _mm_storeu_si128((__m128i *)(out + 16 * i), _mm512_cvtepi32_epi8((__m512i)(codes[i] + INT8_OFFSET)));
}
#else
#define DPBUSD(sum, a, b) (ivec) _mm256_dpbusd_avx_epi32((__m256i)(sum), (__m256i)(a), (__m256i)(b))
static inline ivec round_to_ints(vec x) { return (ivec)_mm256_cvtps_epi32((__m256)x); }
static inline ivec max_ints(ivec x, ivec y) { return (ivec)_mm256_max_epi32((__m256i)x, (__m256i)y); }
static inline void store_bytes(int8_t out[32], const ivec codes[4]) {
    __m256i low = _mm256_packs_epi32((__m256i)codes[0], (__m256i)codes[1]);
    __m256i high = _mm256_packs_epi32((__m256i)codes[2], (__m256i)codes[3]);
    __m256i bytes = _mm256_xor_si256(_mm256_packs_epi16(low, high), _mm256_set1_epi8((char)INT8_OFFSET));
    _mm256_storeu_si256((__m256i *)out, _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}
#endif

static inline __attribute__((always_inline)) void dot_step(ivec s[INT8_GROUP][INT8_VECTORS], const int8_t *a,
                                                           const int8_t *b, const int nv) {
    ivec columns[INT8_VECTORS];
    UNROLL for (int j = 0; j < nv; j++)
        columns[j] = load_ints(b + j * 4 * VL);
    UNROLL for (int i = 0; i < INT8_GROUP; i++) {
        int32_t row;
        memcpy(&row, a + INT8_RUN * i, 4);
        ivec rows = row - (ivec){0};
        UNROLL for (int j = 0; j < nv; j++)
            s[i][j] = DPBUSD(s[i][j], rows, columns[j]);
    }
}

/* The sums of 32 codes of each of VL columns, of `width` that lie side by side. */
static inline ivec column_sums(const int8_t *codes, int width) {
    const ivec ones = (ivec){0} + 0x01010101;
    ivec sum = {0};
    UNROLL for (int k = 0; k < 32; k += INT8_STEP)
        sum = DPBUSD(sum, ones, load_ints(codes + k * width));
    return sum;
}

static inline void dot_end(ivec s[INT8_GROUP][INT8_VECTORS], int nv) { (void)s, (void)nv; }
