/* Gradients of LoRA's weights, in float: with a rank of 16 they are bound by memory, which tensor cores do not help.
 * Tokens are cut into parts, a block each, as else a small gradient would be the work of few; another kernel adds the
 * sums of the parts in their order. */
#include "dweight.h"
#include "kernel.h"

/* Tokens t .. of columns c .. of x [T, columns] up to token `end`; zeros beyond. */
template <int width>
DEVICE void load_tokens(float (&tile)[DWEIGHT_TOKENS][width], et_array x, int t, int end, int c, int columns) {
    float value[DWEIGHT_TOKENS * width / ET_BLOCK];
    UNROLL for (int j = 0; j < DWEIGHT_TOKENS * width / ET_BLOCK; j++) {
        int id = (int)threadIdx.x + j * ET_BLOCK;
        int token = t + id / width;
        int column = c + id % width;
        value[j] = token < end && column < columns ? array_get(x, (int64_t)token * columns + column) : 0;
    }
    UNROLL for (int j = 0; j < DWEIGHT_TOKENS * width / ET_BLOCK; j++) {
        int id = (int)threadIdx.x + j * ET_BLOCK;
        tile[id / width][id % width] = value[j];
    }
}

KERNEL(dweight, dweight_args) {
    dweight_shared *shared = shared_memory<dweight_shared>();
    int w0 = (int)blockIdx.x * DWEIGHT_WIDE;
    int m0 = (int)blockIdx.y * DWEIGHT_NARROW;
    int quarter = (int)threadIdx.x / (ET_BLOCK / DWEIGHT_QUARTERS);
    int w = (int)threadIdx.x % (DWEIGHT_WIDE / 4) * 4;
    int m = (int)threadIdx.x / (DWEIGHT_WIDE / 4) % (DWEIGHT_NARROW / 4) * 4;
    int first = (int)blockIdx.z * a.part;
    int end = min(a.T, first + a.part);
    float sum[4][4] = {};
    for (int t = first; t < end; t += DWEIGHT_TOKENS) {
        load_tokens(shared->wide, a.wide, t, end, w0, a.W);
        load_tokens(shared->narrow, a.narrow, t, end, m0, a.M);
        __syncthreads();
        for (int i = quarter; i < DWEIGHT_TOKENS; i += DWEIGHT_QUARTERS) {
            words<4> x = *(const words<4> *)&shared->wide[i][w];
            words<4> y = *(const words<4> *)&shared->narrow[i][m];
            for (int r = 0; r < 4; r++)
                for (int c = 0; c < 4; c++)
                    sum[r][c] += bits_to_float(x.x[r]) * bits_to_float(y.x[c]);
        }
        __syncthreads();
    }
    for (int r = 0; r < 4; r++)
        for (int c = 0; c < 4; c++)
            shared->sums[quarter][w + r][m + c] = sum[r][c];
    __syncthreads();
    for (int id = (int)threadIdx.x; id < DWEIGHT_WIDE * DWEIGHT_NARROW; id += ET_BLOCK) {
        int r = a.wide_step == 1 ? id % DWEIGHT_WIDE : id / DWEIGHT_NARROW; /* so that neighbours write to neighbours */
        int c = a.wide_step == 1 ? id / DWEIGHT_WIDE : id % DWEIGHT_NARROW;
        float total = 0;
        for (int q = 0; q < DWEIGHT_QUARTERS; q++)
            total += shared->sums[q][r][c];
        int64_t at = (w0 + r) * a.wide_step + (m0 + c) * a.narrow_step;
        if (w0 + r < a.W && m0 + c < a.M) {
            if (a.parts == 1)
                a.dw[at] += a.scale * total;
            else
                a.partial[blockIdx.z * (int64_t)a.W * a.M + at] = total;
        }
    }
}

/* A thread an element of dw: the sum of the parts. */
KERNEL(dweight_parts, dweight_args) {
    int64_t i = (int64_t)blockIdx.x * ET_BLOCK + threadIdx.x;
    int64_t n = (int64_t)a.W * a.M;
    float total = 0;
    if (i >= n)
        return;
    for (int p = 0; p < a.parts; p++)
        total += a.partial[p * n + i];
    a.dw[i] += a.scale * total;
}
