/* The tiles of AMX in plain C, for the harness on a CPU that has none: Intel's reference of each instruction, with sizes
 * as they were set up. A tile reads and writes memory as C does, so the address sanitizer sees it. */

#define EMULATED_TILES 8
#define EMULATED_ROWS 16
#define EMULATED_ROW_BYTES 64

static _Thread_local struct {
    struct tile_config config;
    float tiles[EMULATED_TILES][EMULATED_ROWS * EMULATED_ROW_BYTES / 4];
} emulated;

/* A tile that was not set up is an invalid instruction. */
static inline void emulated_need(int tile) {
    if (emulated.config.palette != 1 || !emulated.config.rows[tile] || emulated.config.row_bytes[tile] % 4)
        __builtin_trap();
}

static inline float *emulated_row(int tile, int row) { return emulated.tiles[tile] + row * EMULATED_ROW_BYTES / 4; }

static inline void emulated_zero(int tile) {
    emulated_need(tile);
    memset(emulated.tiles[tile], 0, sizeof emulated.tiles[tile]);
}

static inline void emulated_load(int tile, const void *from, size_t stride) {
    emulated_zero(tile);
    for (int i = 0; i < emulated.config.rows[tile]; i++)
        memcpy(emulated_row(tile, i), (const char *)from + (size_t)i * stride, emulated.config.row_bytes[tile]);
}

static inline void emulated_store(int tile, void *to, size_t stride) {
    emulated_need(tile);
    for (int i = 0; i < emulated.config.rows[tile]; i++)
        memcpy((char *)to + (size_t)i * stride, emulated_row(tile, i), emulated.config.row_bytes[tile]);
}

/* Not inline: GCC would find callers that set up on the same condition twice, and warn. */
static __attribute__((noinline)) void emulated_set_up(const void *config) {
    memcpy(&emulated.config, config, sizeof emulated.config);
    memset(emulated.tiles, 0, sizeof emulated.tiles);
}

/* Denormal numbers count as zero, on either side. */
static inline float emulated_flush(float x) { return __builtin_fabsf(x) < 0x1p-126f ? 0 : x; }

/* halves [2, 16] of a row of 16 pairs of bf16: the first of each, then the second. */
static inline void emulated_halves(float halves[2][16], const float *row) {
    for (int k = 0; k < 16; k++) {
        uint32_t pair;
        memcpy(&pair, row + k, sizeof pair);
        uint32_t bits[2] = {pair << 16, pair & 0xffff0000};
        for (int half = 0; half < 2; half++) {
            memcpy(&halves[half][k], &bits[half], sizeof bits[half]);
            halves[half][k] = emulated_flush(halves[half][k]);
        }
    }
}

/* sums [rows, columns] += a [rows, pairs] . b [pairs, columns]: the first and the second of the pairs apart. What a
 * tile has no rows or columns for is zero in it. */
static void emulated_products(int sums, int a, int b) {
    const struct tile_config *config = &emulated.config;
    float left[2][16], right[16][2][16];
    emulated_need(sums), emulated_need(a), emulated_need(b);
    if (config->rows[a] != config->rows[sums] || config->row_bytes[b] != config->row_bytes[sums] ||
        config->rows[b] * 4 != config->row_bytes[a])
        __builtin_trap();
    for (int k = 0; k < 16; k++)
        emulated_halves(right[k], emulated_row(b, k));
    for (int i = 0; i < config->rows[sums]; i++) {
        float part[2][16] = {{0}};
        float *sum = emulated_row(sums, i);
        emulated_halves(left, emulated_row(a, i));
        for (int k = 0; k < 16; k++)
            for (int half = 0; half < 2; half++)
                for (int j = 0; j < 16; j++)
                    part[half][j] = emulated_flush(__builtin_fmaf(left[half][k], right[k][half][j], part[half][j]));
        for (int j = 0; j < 16; j++)
            sum[j] = emulated_flush(emulated_flush(sum[j]) + emulated_flush(part[0][j] + part[1][j]));
    }
}

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_zero emulated_zero
#define _tile_loadd emulated_load
#define _tile_stored emulated_store
#define _tile_dpbf16ps emulated_products
#define _tile_loadconfig emulated_set_up
#define _tile_storeconfig(to) memcpy(to, &emulated.config, sizeof emulated.config)
