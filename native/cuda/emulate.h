/* A GPU's model of execution on the CPU, so that kernels can be tested without one: kernel.h for C++.
 *
 * Each thread of a block is a fiber that runs to its next barrier, in random order, so that what only a lucky order
 * gets right is found. Shared memory is NaN at first, and exactly as large as was asked for, so that the address
 * sanitizer sees what reaches beyond it. An asynchronous copy is made when it is waited for, and not before. A thread
 * that ends or waits elsewhere where others wait for it ends the program with a sentence. */
#ifndef ET_EMULATE_H
#define ET_EMULATE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define DEVICE static inline
#define UNROLL
#define ROLLED
#define MAY_ALIAS [[gnu::may_alias]]
#define KERNEL(name, type)                                                                                             \
    static void name(const type a);                                                                                    \
    static const emulated_kernel entry_##name(                                                                         \
        #name, [](const void *args) { name(*(const type *)args); }, sizeof(type));                                     \
    static void name(const type a)

#define KERNEL_TWICE KERNEL

/* Made before main, so that the device finds the kernel by its name. size: bytes of its arguments. */
struct emulated_kernel {
    emulated_kernel(const char *name, void (*run)(const void *args), size_t size);
};

struct emulated_index {
    unsigned x, y, z;
};
extern thread_local emulated_index threadIdx, blockIdx, blockDim, gridDim;

void *emulated_shared_memory(size_t bytes);
void __syncthreads();
/* Of a warp: `mine` is what a lane brings; the last lane to arrive calls together(all of them). All leave then. */
void emulated_together(void *mine, void (*together)(void *const lanes[]));
void emulated_copy_async(void *shared, const void *global, int bytes);
void emulated_commit_copies();
void emulated_wait_for_copies(int left);

template <typename type> DEVICE type *shared_memory() { return (type *)emulated_shared_memory(sizeof(type)); }

DEVICE float bits_to_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

DEVICE uint32_t float_to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

DEVICE float half_to_float(uint16_t h) {
    float rest = (float)(h & 0x3ff);
    float size = h & 0x7c00 ? ldexpf(rest + 0x400, (h >> 10 & 31) - 25) : ldexpf(rest, -24);
    if ((h & 0x7c00) == 0x7c00)
        size = bits_to_float(0x7f800000 | (uint32_t)(h & 0x3ff) << 13);
    return h & 0x8000 ? -size : size;
}

DEVICE uint32_t bf16_bits(float x) {
    uint32_t bits = float_to_bits(x);
    return isnan(x) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16; /* as the card: one NaN */
}

DEVICE uint32_t pack_bf16(float first, float second) { return bf16_bits(first) | bf16_bits(second) << 16; }

/* ---- what a warp does together ---- */

struct emulated_shuffle {
    uint64_t value, result;
    int from;
};
void emulated_shuffle_together(void *const lanes[]);

template <typename type> DEVICE type emulated_shuffled(type x, int from) {
    static_assert(sizeof(type) <= 8, "one register or two");
    emulated_shuffle mine = {0, 0, from};
    memcpy(&mine.value, &x, sizeof x);
    emulated_together(&mine, emulated_shuffle_together);
    memcpy(&x, &mine.result, sizeof x);
    return x;
}

DEVICE int emulated_lane() { return (int)(threadIdx.x % 32); }
template <typename type> DEVICE type __shfl_sync(unsigned, type x, int lane) { return emulated_shuffled(x, lane & 31); }
template <typename type> DEVICE type __shfl_xor_sync(unsigned, type x, int mask) {
    return emulated_shuffled(x, emulated_lane() ^ mask);
}
template <typename type> DEVICE type __shfl_down_sync(unsigned, type x, int step) {
    int from = emulated_lane() + step;
    return emulated_shuffled(x, from < 32 ? from : emulated_lane());
}

void emulated_nothing_together(void *const lanes[]);
DEVICE void __syncwarp() { emulated_together(nullptr, emulated_nothing_together); }

struct emulated_mma {
    float *d;
    const uint32_t *a, *b;
};
void emulated_mma_together(void *const lanes[]);
DEVICE void mma(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    emulated_mma mine = {d, a, b};
    emulated_together(&mine, emulated_mma_together);
}

struct emulated_matrices {
    uint32_t *out;
    const uint16_t *row;
};
void emulated_matrices_together(void *const lanes[]);
void emulated_transposed_together(void *const lanes[]);
DEVICE void load_matrix(uint32_t out[4], const uint16_t *row) {
    emulated_matrices mine = {out, row};
    emulated_together(&mine, emulated_matrices_together);
}
DEVICE void load_matrix_transposed(uint32_t out[4], const uint16_t *row) {
    emulated_matrices mine = {out, row};
    emulated_together(&mine, emulated_transposed_together);
}

DEVICE void copy_async(void *shared, const void *global, int bytes) { emulated_copy_async(shared, global, bytes); }
DEVICE void commit_copies() { emulated_commit_copies(); }
template <int left> DEVICE void wait_for_copies() { emulated_wait_for_copies(left); }

/* ---- the card's functions that kernels use, by their names there ---- */

#define __expf expf
#define __logf logf
DEVICE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
template <typename type> DEVICE type __ldg(const type *p) { return *p; }
DEVICE int min(int a, int b) { return a < b ? a : b; }
DEVICE int max(int a, int b) { return a > b ? a : b; }

#endif
