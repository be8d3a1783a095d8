/* Tiles of bf16.h that AMX computes: two by two of the CPU's, each 16 x 16. */

#define BF16_ROWS 32
#define BF16_TILES_PER_TASK 4
#define BF16_K_PART 288 /* a part of a panel of B, one of A and four tiles' sums fit 48 KB */

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
_Static_assert(sizeof(struct tile_config) == TILE_STATE, "as the CPU has it");

#ifdef ET_EMULATED_TILES
#include "tiles_emulated.h"
#endif

/* Two by two tiles of 16 x 16: 0 to 3 the sums, 4 and 5 of A, 6 and 7 of B. What the thread had before is restored by
 * end: llama.cpp sets its tiles up once a thread and relies on finding them so. */
static void bf16_begin(void *before) {
    static const struct tile_config config = {
        1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_storeconfig(before);
    _tile_loadconfig(&config);
}

static void bf16_end(const void *before) { _tile_loadconfig(before); }

/* The sums of a whole tile in the CPU's tiles 0 to 3, from what these hold; left and top alone where the others have no
 * columns or rows. Both are constants where this is inlined. C's lines are fetched on the way, a few at a time, as
 * there are more than the CPU can wait for at once. */
static inline __attribute__((always_inline)) void bf16_sums(const struct tile *t, const int right, const int low) {
    const char *c = t->c.data;
    const ptrdiff_t line = t->c_rs * (t->c.type == ET_F32 ? 4 : 2);
    int row = t->c_cs == 1 && !t->to_come ? 0 : t->rows;
    for (int s = 0; s < SEGMENTS; s++) {
        const bf16 *a = (const bf16 *)t->s[s].a.p;
        const float *b = t->s[s].b.p;
        const size_t a_stride = (size_t)t->s[s].a.rs * 2;
        const size_t b_stride = right ? 128 : 64;
        for (int k = t->s[s].K; k > 0; k -= BF16_RUN, a += t->s[s].a.ks, b += b_stride * 4) {
            _tile_loadd(4, a, a_stride);
            _tile_loadd(6, b, b_stride);
            _tile_dpbf16ps(0, 4, 6);
            for (int i = 0; i < 4 && row < t->rows; i++, row++) {
                __builtin_prefetch(c + row * line, 1);
                if (t->c.type == ET_F32)
                    __builtin_prefetch(c + row * line + 64, 1);
            }
            if (right) {
                _tile_loadd(7, b + 16, b_stride);
                _tile_dpbf16ps(1, 4, 7);
            }
            if (low) {
                _tile_loadd(5, a + 16 * t->s[s].a.rs, a_stride);
                _tile_dpbf16ps(2, 5, 6);
                if (right)
                    _tile_dpbf16ps(3, 5, 7);
            }
        }
    }
}

static inline void bf16_zero(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

static inline void bf16_store(float *c, size_t stride) {
    _tile_stored(0, c, stride * 4);
    _tile_stored(1, c + 16, stride * 4);
    _tile_stored(2, c + 16 * stride, stride * 4);
    _tile_stored(3, c + 16 * stride + 16, stride * 4);
}

static inline void bf16_load(const float *c, size_t stride) {
    _tile_loadd(0, c, stride * 4);
    _tile_loadd(1, c + 16, stride * 4);
    _tile_loadd(2, c + 16 * stride, stride * 4);
    _tile_loadd(3, c + 16 * stride + 16, stride * 4);
}

/* C from the sums of a tile. */
static void bf16_finish(const struct tile *t, int whole) {
    if (whole && t->c.type == ET_BF16 && !t->accumulate)
        for (int i = 0; i < 32; i++)
            round_row((bf16 *)t->c.data + i * t->c_rs, t->sums + i * 32, 32, 32);
    else
        for (int i = 0; i < t->rows; i++)
            store_row(t, i, t->sums + i * 32);
}

/* Where C is as the CPU's tiles want it, they begin and end with it. */
static void tile_bf16(struct tile *t) {
    int whole = t->rows == 32 && t->columns == 32 && t->c_cs == 1 && t->alpha == 1;
    int in_place = whole && t->c.type == ET_F32;
    if (t->resumed)
        bf16_load(t->sums, 32);
    else if (in_place && t->accumulate)
        bf16_load(t->c.data, (size_t)t->c_rs);
    else
        bf16_zero();
    if (t->columns > 16)
        bf16_sums(t, 1, t->rows > 16);
    else
        bf16_sums(t, 0, t->rows > 16);
    if (in_place && !t->to_come) {
        bf16_store(t->c.data, (size_t)t->c_rs);
        return;
    }
    bf16_store(t->sums, 32);
    if (!t->to_come)
        bf16_finish(t, whole);
}

static void strip_product(float *c, ptrdiff_t ldc, const bf16 *a, ptrdiff_t lda, const float *b, ptrdiff_t ldb,
                          int rows, int N, int K, int accumulate) {
    const size_t a_stride = (size_t)lda * 2;
    const size_t b_stride = (size_t)ldb * 4;
    float part[32 * 32];
    int in_place = rows == 32;
    for (int n = 0; n < N; n += 32, c += 32, b += 32) {
        if (accumulate && !in_place)
            copy_rows(part, 32, c, ldc, rows, 32);
        if (accumulate)
            bf16_load(in_place ? c : part, (size_t)(in_place ? ldc : 32));
        else
            bf16_zero();
        for (int k = 0; k < K; k += 32) {
            _tile_loadd(4, a + k, a_stride);
            _tile_loadd(6, b + k / 2 * ldb, b_stride);
            _tile_loadd(7, b + k / 2 * ldb + 16, b_stride);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            if (rows > 16) {
                _tile_loadd(5, a + 16 * lda + k, a_stride);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        bf16_store(in_place ? c : part, (size_t)(in_place ? ldc : 32));
        if (!in_place)
            copy_rows(c, ldc, part, 32, rows, 32);
    }
}

/* The CPU's tiles read A as rows alone. */
static void strip_product_down(float *c, ptrdiff_t ldc, const float *a, ptrdiff_t lda, const float *b, ptrdiff_t ldb,
                               int rows, int N, int K) {
    float across[32 * 16];
    for (int k = 0; k < K; k += 32, a += 16 * lda, b += 16 * ldb) {
        const bf16 *from[16];
        for (int i = 0; i < 16; i++)
            from[i] = (const bf16 *)(a + i * lda);
        for (int i = 0; i < rows; i += 16)
            transpose_pairs(across + i * 16, 16, from, i);
        strip_product(c, ldc, (const bf16 *)across, 32, b, ldb, rows, N, 32, 1);
    }
}

static double bf16_peak(int64_t n) {
    uint8_t before[TILE_STATE];
    bf16_begin(before);
    _tile_zero(4);
    _tile_zero(6);
    bf16_zero();
    for (int64_t i = 0; i < n; i++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 6);
        _tile_dpbf16ps(2, 4, 6);
        _tile_dpbf16ps(3, 4, 6);
    }
    bf16_end(before);
    return 2.0 * 16 * 16 * 32 * 4 * (double)n;
}
