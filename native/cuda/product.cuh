/* Products with quantized weights by tensor cores. A tile of weights is unpacked once for a block, into shared memory
 * as bf16: forward reads it along the rows, whose weights are summed, backward across. */
#ifndef ET_PRODUCT_CUH
#define ET_PRODUCT_CUH

#include "product.h"
#include "unpack.cuh"

template <int T_, int outer_, int inner_, int warps_T_, int warps_outer_, int warps_inner_, typename tiles_>
struct product_shape {
    typedef tiles_ tiles;
    enum {
        T = T_,
        outer = outer_,
        inner = inner_,
        warps_T = warps_T_,
        warps_outer = warps_outer_,
        warps_inner = warps_inner_,
        rows = T / warps_T / 16, /* fragments of 16 x 8 that a warp has of out */
        columns = outer / warps_outer / 8,
        steps = inner / warps_inner / 16,  /* of mma, a tile */
        chunks = T * inner / 8 / ET_BLOCK, /* of 8 activations that a thread fetches, a tile */
        inp_stride = inner + PRODUCT_PAD,
    };
    static_assert(warps_T * warps_outer * warps_inner == ET_BLOCK / ET_WARP, "all warps");
    static_assert(outer * inner == ET_BLOCK * ET_RUN, "a run of weights a thread");
    static_assert(columns % 2 == 0, "load_matrix gives two columns");
};

/* Row t of `inp`, elements i .. i + 7, beyond its ends zeros. */
DEVICE void fetch_chunk(float (&x)[8], const product_part &p, int t, int i, int T, int inner) {
    int64_t at = (int64_t)t * inner + i;
    if (p.inp_aligned && p.inp.type == ET_F32 && t < T && i < inner) {
        const words<4> *from = (const words<4> *)((const float *)p.inp.data + at);
        words<4> half[2] = {from[0], from[1]};
        for (int j = 0; j < 8; j++)
            x[j] = bits_to_float(half[j / 4].x[j % 4]);
    } else
        for (int j = 0; j < 8; j++)
            x[j] = t < T && i + j < inner ? array_get(p.inp, at + j) : 0;
}

DEVICE void put_bf16(uint16_t *to, const float *x) {
    words<4> packed;
    for (int j = 0; j < 4; j++)
        packed.x[j] = pack_bf16(x[2 * j], x[2 * j + 1]);
    *(words<4> *)to = packed;
}

DEVICE int is_copied(const product_part &p) { return p.inp_aligned && p.inp.type == ET_BF16; }

/* Where chunk c of a thread is in the tile of activations: its row, and the first of its 8 columns. */
template <typename shape> DEVICE int chunk_row(int c) { return ((int)threadIdx.x + c * ET_BLOCK) / (shape::inner / 8); }
template <typename shape> DEVICE int chunk_column(int c) {
    return ((int)threadIdx.x + c * ET_BLOCK) % (shape::inner / 8) * 8;
}

/* Begins to copy the tile of activations whose first column is i0. */
template <typename shape> DEVICE void copy_inputs(uint16_t *tile, const product_part &p, int i0, int T, int inner) {
    for (int c = 0; c < shape::chunks; c++) {
        int t = (int)blockIdx.y * shape::T + chunk_row<shape>(c);
        int i = i0 + chunk_column<shape>(c);
        int there = t < T && i < inner;
        const uint16_t *from = (const uint16_t *)p.inp.data + (there ? (int64_t)t * inner + i : 0);
        copy_async(tile + chunk_row<shape>(c) * shape::inp_stride + chunk_column<shape>(c), from, there ? 16 : 0);
    }
}

/* The thread's run of the tile of weights at i0 along what is summed. */
template <typename shape, int format, int backward> DEVICE run<format> fetch_weights(const product_part &p, int i0) {
    constexpr int runs = (backward ? shape::outer : shape::inner) / ET_RUN; /* a row of the tile */
    int row = (int)threadIdx.x / runs + (backward ? i0 : (int)blockIdx.x * shape::outer);
    int column = (int)threadIdx.x % runs * ET_RUN + (backward ? (int)blockIdx.x * shape::outer : i0);
    const uint8_t *from = (const uint8_t *)p.w + row * row_bytes<format>(p.columns);
    return fetch_run<format>(from, column, row < p.rows ? p.columns : 0, p.w_aligned);
}

template <typename shape, int format, int backward> DEVICE void put_weights(uint16_t *tile, const run<format> &w) {
    constexpr int columns = backward ? shape::outer : shape::inner;
    constexpr int runs = columns / ET_RUN;
    float x[ET_RUN];
    values(x, w);
    uint16_t *to = tile + (int)threadIdx.x / runs * (columns + PRODUCT_PAD) + (int)threadIdx.x % runs * ET_RUN;
    put_bf16(to, x);
    put_bf16(to + 8, x + 8);
}

/* sum += the product of 16 of what is summed */
template <typename shape, int backward>
DEVICE void multiply_step(float (&sum)[shape::rows][shape::columns][4], const uint16_t *inp, const uint16_t *w, int s) {
    int lane = (int)threadIdx.x % ET_WARP;
    int warp = (int)threadIdx.x / ET_WARP;
    int t = warp % shape::warps_T * (shape::rows * 16) + lane % 16;
    int o = warp / shape::warps_T % shape::warps_outer * (shape::columns * 8) + lane / 16 * 8;
    int i = (warp / (shape::warps_T * shape::warps_outer) * shape::steps + s) * 16;
    constexpr int stride = (backward ? shape::outer : shape::inner) + PRODUCT_PAD;
    const uint16_t *inp_at = inp + t * shape::inp_stride + i + lane / 16 * 8;
    const uint16_t *w_at =
        w + (backward ? (i + lane % 16) * stride + o : (o + lane % 8) * stride + i + lane % 16 / 8 * 8);
    uint32_t A[shape::rows][4];
    for (int r = 0; r < shape::rows; r++)
        load_matrix(A[r], inp_at + r * 16 * shape::inp_stride);
    for (int c = 0; c < shape::columns; c += 2) {
        uint32_t B[4]; /* of columns c and c + 1 */
        if (backward)
            load_matrix_transposed(B, w_at + c * 8);
        else
            load_matrix(B, w_at + c * 8 * stride);
        for (int r = 0; r < shape::rows; r++) {
            mma(sum[r][c], A[r], B);
            mma(sum[r][c + 1], A[r], B + 2);
        }
    }
}

/* sum += the product of one part. While one tile of either side is multiplied, the next is on its way: activations in
 * bf16 as asynchronous copies, those that must be converted a chunk a step, so that few registers hold them, and
 * weights in registers as they are, to be unpacked behind the multiplication. */
template <typename shape, int format, int backward>
DEVICE void add_part(float (&sum)[shape::rows][shape::columns][4], typename shape::tiles *shared, const product_args &a,
                     const product_part &p) {
    int inner = backward ? p.rows : p.columns;
    int copied = is_copied(p);
    run<format> w;
    int full = 1; /* which of the two tiles is */
    for (int next = 0; next < inner + shape::inner; next += shape::inner) {
        uint16_t *inp = shared->inp[!full];
        if (next < inner) {
            w = fetch_weights<shape, format, backward>(p, next);
            if (copied)
                copy_inputs<shape>(inp, p, next, a.T, inner);
        }
        commit_copies();
        UNROLL for (int s = 0; s < shape::steps || s < shape::chunks; s++) {
            int converts = s < shape::chunks && !copied && next < inner;
            float x[8];
            if (converts)
                fetch_chunk(x, p, (int)blockIdx.y * shape::T + chunk_row<shape>(s), next + chunk_column<shape>(s), a.T,
                            inner);
            if (s < shape::steps && next > 0)
                multiply_step<shape, backward>(sum, shared->inp[full], shared->w[full], s);
            if (converts)
                put_bf16(inp + chunk_row<shape>(s) * shape::inp_stride + chunk_column<shape>(s), x);
        }
        full = !full;
        if (next < inner)
            put_weights<shape, format, backward>(shared->w[full], w);
        wait_for_copies<0>();
        __syncthreads();
    }
}

/* Two columns of out, scaled. */
DEVICE void put_pair(const product_args &a, int t, int o, float first, float second) {
    int64_t at = (int64_t)t * a.outer + o;
    if (t >= a.T || o >= a.outer)
        return;
    first *= a.scale;
    second *= a.scale;
    if (!a.paired || o + 1 >= a.outer) {
        array_put(a.out, at, a.accumulate ? array_get(a.out, at) + first : first);
        if (o + 1 < a.outer)
            array_put(a.out, at + 1, a.accumulate ? array_get(a.out, at + 1) + second : second);
    } else if (a.out.type == ET_BF16) {
        ((uint32_t *)a.out.data)[at / 2] = pack_bf16(first, second);
    } else {
        words<2> *to = (words<2> *)((float *)a.out.data + at);
        words<2> old = {};
        if (a.accumulate)
            old = *to;
        *to = {{float_to_bits(bits_to_float(old.x[0]) + first), float_to_bits(bits_to_float(old.x[1]) + second)}};
    }
}

DEVICE void put_fragment(const product_args &a, int t, int o, const float d[4]) {
    int lane = (int)threadIdx.x % ET_WARP;
    put_pair(a, t + lane / 4, o + lane % 4 * 2, d[0], d[1]);
    put_pair(a, t + lane / 4 + 8, o + lane % 4 * 2, d[2], d[3]);
}

/* Sums of several warps for the same fragments, one behind the other along what is summed: a warp finishes one of them,
 * in the order of the warps. */
template <typename shape>
DEVICE void put_sum_of_warps(const product_args &a, float (&sum)[shape::rows][shape::columns][4], float *partial) {
    constexpr int each = shape::rows * shape::columns * 4 * ET_WARP; /* values a warp */
    static_assert(shape::rows * shape::columns == shape::warps_inner, "a fragment a warp");
    static_assert(sizeof(typename shape::tiles) >= shape::warps_inner * each * sizeof(float), "they fit");
    int lane = (int)threadIdx.x % ET_WARP;
    int warp = (int)threadIdx.x / ET_WARP;
    for (int r = 0; r < shape::rows; r++)
        for (int c = 0; c < shape::columns; c++)
            for (int j = 0; j < 4; j++)
                partial[warp * each + ((r * shape::columns + c) * 4 + j) * ET_WARP + lane] = sum[r][c][j];
    __syncthreads();
    float total[4] = {};
    for (int other = 0; other < shape::warps_inner; other++)
        for (int j = 0; j < 4; j++)
            total[j] += partial[other * each + (warp * 4 + j) * ET_WARP + lane];
    put_fragment(a, (int)blockIdx.y * shape::T + warp / shape::columns * 16,
                 (int)blockIdx.x * shape::outer + warp % shape::columns * 8, total);
}

template <typename shape, int format, int backward> DEVICE void product(const product_args &a) {
    typename shape::tiles *shared = shared_memory<typename shape::tiles>();
    float sum[shape::rows][shape::columns][4] = {};
    add_part<shape, format, backward>(sum, shared, a, a.part[0]);
    add_part<shape, ET_F32, backward>(sum, shared, a, a.part[1]);
    if constexpr (shape::warps_inner > 1) {
        put_sum_of_warps<shape>(a, sum, (float *)shared);
    } else {
        int warp = (int)threadIdx.x / ET_WARP;
        int t = (int)blockIdx.y * shape::T + warp % shape::warps_T * (shape::rows * 16);
        int o = (int)blockIdx.x * shape::outer + warp / shape::warps_T * (shape::columns * 8);
        UNROLL for (int r = 0; r < shape::rows; r++) {
            UNROLL for (int c = 0; c < shape::columns; c++)
                put_fragment(a, t + r * 16, o + c * 8, sum[r][c]);
        }
    }
}

#define PRODUCT_SHAPE(name, ...) typedef product_shape<__VA_ARGS__, product_##name> shape_##name;
PRODUCT_SHAPES
#undef PRODUCT_SHAPE

#endif
