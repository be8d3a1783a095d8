/* What kernels are written with: CUDA C++ for the compilers of a GPU, which need no header but ours, or the same text
 * as C++ for the CPU (emulate.h), where tests run it. Blocks have one dimension of at most ET_BLOCK threads, a multiple
 * of ET_WARP; grids have up to three.
 *
 * KERNEL(name, type) { body } is a kernel whose only argument is `a`, a struct of that type; DEVICE is what it calls.
 * Of a KERNEL_TWICE two blocks fit on a multiprocessor, as it has at most 128 registers a thread, so that one works
 * while the other waits. All shared memory is one struct of a block, shared_memory<type>(), not initialised. What
 * belongs to one card alone stands here, behind a function: mma, load_matrix, copy_async, and conversions. */
#ifndef ET_KERNEL_H
#define ET_KERNEL_H

#include "launch.h"

#ifdef ET_EMULATED
#include "emulate.h"
#else

#define DEVICE static __device__ __forceinline__
#define MAY_ALIAS
#define UNROLL _Pragma("unroll") /* before a loop whose index names registers */
#define KERNEL(name, type) extern "C" __global__ void __launch_bounds__(ET_BLOCK, 1) name(const type a)
#define ROLLED _Pragma("unroll 1") /* the loop that follows as it is, where more registers would not pay */
#define KERNEL_TWICE(name, type) extern "C" __global__ void __launch_bounds__(ET_BLOCK, 2) name(const type a)
#ifndef INFINITY /* which NVRTC has not */
#define INFINITY __int_as_float(0x7f800000)
#endif

template <typename type> DEVICE type *shared_memory() {
    extern __shared__ __align__(16) unsigned char all_shared_memory[];
    return (type *)all_shared_memory;
}

DEVICE float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
DEVICE uint32_t float_to_bits(float x) { return __float_as_uint(x); }

DEVICE float half_to_float(uint16_t h) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
}

/* Two floats as bf16, to nearest and even; the first in the low half. */
DEVICE uint32_t pack_bf16(float first, float second) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
    return packed;
}

/* d [16, 8] += a [16, 16] . b [16, 8] by a warp: bf16 with sums in float (PTX: mma.m16n8k16). With g = lane / 4 and
 * c = 2 * (lane % 4), a lane has d[0..1] = row g, columns c, c + 1; d[2..3] = row g + 8. a[0] = row g, columns c,
 * c + 1; a[1] = row g + 8; a[2], a[3] = the same 8 columns on. b[0] = column g, rows c, c + 1; b[1] = rows c + 8,
 * c + 9. */
DEVICE void mma(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four matrices of 8 x 8 bf16 from shared memory, by a warp (PTX: ldmatrix.x4): lane i names the first of the 8 values,
 * aligned to 16 bytes, of row i % 8 of matrix i / 8; out[m] has row lane / 4, columns c, c + 1 of matrix m, where
 * c = 2 * (lane % 4). Transposed: of the transposed matrix. */
DEVICE void load_matrix(uint32_t out[4], const uint16_t *row) {
    uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
}

DEVICE void load_matrix_transposed(uint32_t out[4], const uint16_t *row) {
    uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
}

/* 16 bytes to shared from global memory, both aligned to 16, of which `bytes` are read and the rest is zero. They are
 * there once the thread has waited for their group, and for other threads after __syncthreads (PTX: cp.async). */
DEVICE void copy_async(void *shared, const void *global, int bytes) {
    uint32_t address = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(address), "l"(global), "r"(bytes) : "memory");
}

/* Ends a group of copies. */
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" : : : "memory"); }

/* Waits until at most the last `left` groups of this thread are under way. */
template <int left> DEVICE void wait_for_copies() { asm volatile("cp.async.wait_group %0;" : : "n"(left) : "memory"); }

#endif

/* ---- the same for both ---- */

#define ET_ALL_LANES 0xffffffffu

DEVICE float bf16_to_float(uint16_t x) { return bits_to_float((uint32_t)x << 16); }
DEVICE uint16_t float_to_bf16(float x) { return (uint16_t)pack_bf16(x, x); }

/* Registers that are loaded or stored at once, at a multiple of their size. */
template <int n> struct alignas(4 * n) MAY_ALIAS words {
    uint32_t x[n];
};

/* Element i of an array of activations. */
DEVICE float array_get(et_array a, int64_t i) {
    return a.type == ET_F32 ? ((const float *)a.data)[i] : bf16_to_float(((const uint16_t *)a.data)[i]);
}

DEVICE void array_put(et_array a, int64_t i, float x) {
    if (a.type == ET_F32)
        ((float *)a.data)[i] = x;
    else
        ((uint16_t *)a.data)[i] = float_to_bf16(x);
}

/* x of each `lanes` lanes of a warp that follow one another, put together by `join`, in all of them, in an order that
 * is always the same. */
template <int lanes = ET_WARP, typename type, typename function> DEVICE type warp_reduce(type x, function join) {
    for (int step = lanes / 2; step; step /= 2)
        x = join(x, __shfl_xor_sync(ET_ALL_LANES, x, step));
    return x;
}

template <int lanes = ET_WARP, typename type> DEVICE type warp_sum(type x) {
    return warp_reduce<lanes>(x, [](type p, type q) { return p + q; });
}

template <int lanes = ET_WARP> DEVICE float warp_max(float x) {
    return warp_reduce<lanes>(x, [](float p, float q) { return fmaxf(p, q); });
}

#endif
