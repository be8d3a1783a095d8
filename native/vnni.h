/* dot4 of int8.h where AVX-512 has dot products of unsigned with signed bytes: rows of A are moved up by 128, and sums
 * begin with what that adds, negated. Included by such rows before generic.h. */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ET_DOT4
typedef __m512i sums;

static inline void dot4(sums s[4], const int8_t *a, const int8_t *b) {
    __m512i columns = _mm512_loadu_si512(b);
    int rows[4];
    memcpy(rows, a, sizeof rows);
    for (int i = 0; i < 4; i++)
        s[i] = _mm512_dpbusd_epi32(s[i], _mm512_set1_epi32(rows[i] ^ (int)0x80808080u), columns);
}

static inline sums first_sums(const int8_t *b, ptrdiff_t stride) {
    sums added = _mm512_setzero_si512();
    for (int k = 0; k < 8; k++)
        added = _mm512_dpbusd_epi32(added, _mm512_set1_epi8(-128), _mm512_loadu_si512(b + k * stride));
    return _mm512_sub_epi32(_mm512_setzero_si512(), added);
}

static inline __m512 sums_to_floats(sums s) { return _mm512_cvtepi32_ps(s); }
