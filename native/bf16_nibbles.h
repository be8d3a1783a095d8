/* Weights of four bits, packed for products in bf16 by tables, where vectors have 16 floats.
 *
 * 16 bytes of a row hold two runs of 16 codes, in their low and in their high halves. Read as they lie (backward), two
 * rows' 32 values, already rounded, are one table of 16-bit numbers, and pairs of codes look up pairs of weights. Read
 * transposed (forward), rows are lanes: codes look up what they stand for, and scales and offsets are vectors. The values
 * are those of unpack.h, rounded alike. */

#define NIBBLES 256 /* weights of a row at a time, at most */

/* How 16 bytes lie in a row's next NIBBLES weights: where, of which weights, and which of the scales of 32 are theirs. */
struct nibble_place {
    int byte, low, high, low_scale, high_scale;
};

/* What its codes stand for; NULL: it is no such format. */
static inline const int8_t *nibble_values(int format) {
    static const int8_t plain[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    static const int8_t centred[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    return format == ET_Q4_1 || format == ET_Q4_K ? plain : format == ET_Q4_0 ? centred : NULL;
}

INLINE struct nibble_place nibble_place(const int format, int i) {
    if (format == ET_Q4_K)
        return (struct nibble_place){16 + 16 * i, i / 2 * 64 + i % 2 * 16, i / 2 * 64 + i % 2 * 16 + 32, i / 2 * 2,
                                     i / 2 * 2 + 1};
    int bytes = format_bytes(format);
    return (struct nibble_place){i * bytes + bytes - 16, 32 * i, 32 * i + 16, i, i};
}

/* The scales and offsets in turn of `n` times 32 weights, at most NIBBLES. */
INLINE void nibble_scales(float out[16], const uint8_t *w, const int format, int n) {
    if (format != ET_Q4_K) {
        headers(out, w, format_bytes(format), n);
        return;
    }
    const block_Q4_K *b = (const block_Q4_K *)w;
    const __m512i turn = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
    const __m512 by =
        _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(half_to_float(b->d)), _mm512_set1_ps(-half_to_float(b->dmin)));
    const __m512 codes = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)scales_mins_K(b->scales)));
    _mm512_storeu_ps(out, _mm512_permutexvar_ps(turn, _mm512_fmadd_ps(by, codes, _mm512_setzero_ps())));
}

INLINE __m512 nibble_offset(const int format, float offset) {
    return format == ET_Q4_0 ? _mm512_setzero_ps() : _mm512_set1_ps(offset);
}

INLINE __m512 nibble_floats(const int format) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)nibble_values(format))));
}

/* The values of 32 weights of two rows, by their codes. */
INLINE __m512i nibble_table(const int format, __m512 values, const float *even, const float *odd, int scale) {
    __m512 x = _mm512_fmadd_ps(_mm512_set1_ps(even[2 * scale]), values, nibble_offset(format, even[2 * scale + 1]));
    __m512 y = _mm512_fmadd_ps(_mm512_set1_ps(odd[2 * scale]), values, nibble_offset(format, odd[2 * scale + 1]));
    return (__m512i)_mm512_cvtne2ps_pbh(y, x);
}

/* The pairs that the lowest four bits of each half of 32 name in a table. */
INLINE __m512i nibble_pairs(__m512i codes, __m512i table) {
    __m512i index =
        _mm512_ternarylogic_epi32(codes, _mm512_set1_epi32(0x000f000f), _mm512_set1_epi32(0x00100000), 0xea);
    return _mm512_permutexvar_epi16(index, table);
}

/* The pairs that 16 bytes of a row and of the next one hold, two inner elements, in panels that are `apart`. */
INLINE void nibble_row_pairs(float *panels, ptrdiff_t apart, const struct nibble_place at, const uint8_t *w,
                             ptrdiff_t ld, __m512i low, __m512i high) {
    __m512i even = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(w + at.byte)));
    __m512i odd = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(w + ld + at.byte)));
    __m512i codes = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
    float *lows = panels + at.low / 32 * apart + at.low % 32;
    float *highs = panels + at.high / 32 * apart + at.high % 32;
    _mm512_storeu_si512(lows, nibble_pairs(codes, low));
    _mm512_storeu_si512(highs, nibble_pairs(_mm512_srli_epi32(codes, 4), high));
}

/* Columns n to n + count - 1, from a whole block on, of BF16_RUN rows from row r on, which are inner elements k on. */
INLINE void nibbles_straight(const struct segment *s, const int format, int r, int k, int n, int column, int count) {
    const ptrdiff_t ld = s->ldw / format_block(format) * format_bytes(format);
    const uint8_t *w = (const uint8_t *)s->w + r * ld + column / format_block(format) * format_bytes(format);
    const __m512 values = nibble_floats(format);
    const ptrdiff_t size = count / format_block(format) * format_bytes(format);
    const int together = format == ET_Q4_K ? 2 : 1; /* times 16 bytes of the same scales */
    const ptrdiff_t apart = 32 * panel_floats(s, s->packed);
    float *panels = b_panel(s, n) + k * 16;
    for (int i = 0; i < BF16_RUN; i += 2, w += 2 * ld, panels += 32) {
        float even[16], odd[16];
        fetch(w + BF16_AHEAD * ld, size);
        fetch(w + (BF16_AHEAD + 1) * ld, size);
        nibble_scales(even, w, format, count / 32);
        nibble_scales(odd, w + ld, format, count / 32);
        for (int j = 0; j < count / 32; j += together) {
            const struct nibble_place first = nibble_place(format, j);
            const __m512i low = nibble_table(format, values, even, odd, first.low_scale);
            const __m512i high = together == 1 ? low : nibble_table(format, values, even, odd, first.high_scale);
            UNROLL for (int i = 0; i < together; i++)
                nibble_row_pairs(panels, apart, nibble_place(format, j + i), w, ld, low, high);
        }
    }
}

/* `count` weights from column `column`, of a whole block, of 16 rows from row r on: their pairs, in 16 columns of `out`. */
INLINE void nibbles_transposed(float *out, int width, const struct segment *s, const int format, int r, int column,
                               int count) {
    const ptrdiff_t ld = s->ldw / format_block(format) * format_bytes(format);
    const uint8_t *w = (const uint8_t *)s->w + r * ld + column / format_block(format) * format_bytes(format);
    const ptrdiff_t size = count / format_block(format) * format_bytes(format);
    const __m512 values = nibble_floats(format);
    const __m512i shift = _mm512_set1_epi64((int64_t)8 << 32); /* of the second of a pair, which is the next byte */
    const __m512i pair = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
    const __m512i twice[2] = {_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7),
                              _mm512_setr_epi32(8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15)};
    float rows[16][16], scales[16][16];
    for (int i = 0; i < 16; i++) {
        fetch(w + (i + BF16_AHEAD) * ld, size);
        nibble_scales(rows[i], w + i * ld, format, count / 32);
    }
    pack_transposed(scales[0], 16, rows[0], 16, 16, 16);
    for (int j = 0; j < count / 32; j++) {
        const struct nibble_place at = nibble_place(format, j);
        __m512i q[4]; /* of four rows each */
        __m512 scale[2][2], offset[2][2];
        UNROLL for (int i = 0; i < 4; i++) {
            q[i] = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(w + 4 * i * ld + at.byte)));
            UNROLL for (int lane = 1; lane < 4; lane++)
                q[i] =
                    _mm512_mask_broadcast_i32x4(q[i], (__mmask16)(15 << 4 * lane),
                                                _mm_loadu_si128((const __m128i *)(w + (4 * i + lane) * ld + at.byte)));
        }
        UNROLL for (int h = 0; h < 4; h++) {
            const float *of = scales[2 * (h < 2 ? at.low_scale : at.high_scale)];
            scale[h / 2][h % 2] = _mm512_permutexvar_ps(twice[h % 2], _mm512_loadu_ps(of));
            offset[h / 2][h % 2] =
                format == ET_Q4_0 ? _mm512_setzero_ps() : _mm512_permutexvar_ps(twice[h % 2], _mm512_loadu_ps(of + 16));
        }
        UNROLL for (int i = 0; i < 4; i++) { /* four bytes */
            const __m512i which = _mm512_add_epi32(pair, _mm512_set1_epi32(i));
            __m512i codes[2];
            UNROLL for (int h = 0; h < 2; h++)
                codes[h] = _mm512_srlv_epi32(_mm512_permutex2var_epi32(q[2 * h], which, q[2 * h + 1]), shift);
            UNROLL for (int part = 0; part < 4; part++) { /* the low halves of two bytes, of the next two, the high */
                const int high = part / 2;
                __m512 x[2];
                UNROLL for (int h = 0; h < 2; h++) {
                    __m512i code = _mm512_srli_epi32(codes[h], (unsigned)(part % 2 * 16 + high * 4));
                    x[h] = _mm512_fmadd_ps(scale[high][h], _mm512_permutexvar_ps(code, values), offset[high][h]);
                }
                int k = (high ? at.high : at.low) / 2 + 2 * i + part % 2;
                _mm512_storeu_si512(out + (ptrdiff_t)k * width, (__m512i)_mm512_cvtne2ps_pbh(x[1], x[0]));
            }
        }
    }
}

#define EACH_NIBBLES(X) X(Q4_0) X(Q4_1) X(Q4_K)

/* Packs BF16_RUN whole rows of a piece of B; 0: it has another format. */
static int pack_nibbles_straight(const struct segment *s, int r, int k, int n, int column, int count) {
    switch (s->format) {
#define X(name)                                                                                                        \
    case ET_##name:                                                                                                    \
        nibbles_straight(s, ET_##name, r, k, n, column, count);                                                        \
        return 1;
        EACH_NIBBLES(X)
#undef X
    }
    return 0;
}

/* Packs 16 whole columns of a piece of B; 0: it has another format. */
static int pack_nibbles_transposed(float *out, int width, const struct segment *s, int r, int column, int count) {
    switch (s->format) {
#define X(name)                                                                                                        \
    case ET_##name:                                                                                                    \
        nibbles_transposed(out, width, s, ET_##name, r, column, count);                                                \
        return 1;
        EACH_NIBBLES(X)
#undef X
    }
    return 0;
}
