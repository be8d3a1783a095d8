/* Products with quantized weights in float. */
#ifndef ET_EXACT_CUH
#define ET_EXACT_CUH

#include "product.cuh"

/* sum [4, 4] of a thread += the product of one part. That of a tile is summed by itself first, so that the error grows
 * with the number of tiles rather than of elements. */
template <int format, int backward>
DEVICE void add_exact(float (&sum)[4][4], product_exact *shared, const product_args &a, const product_part &p) {
    int id = (int)threadIdx.x;
    int inner = backward ? p.rows : p.columns;
    int t0 = (int)blockIdx.y * EXACT_TILE;
    int o0 = (int)blockIdx.x * EXACT_TILE;
    for (int i0 = 0; i0 < inner; i0 += EXACT_INNER) {
        float x[8];
        fetch_chunk(x, p, t0 + id / 4, i0 + id % 4 * 8, a.T, inner);
        for (int j = 0; j < 8; j++)
            shared->inp[id % 4 * 8 + j][id / 4] = x[j];
        if (id < EXACT_TILE * EXACT_INNER / ET_RUN) {
            int row = backward ? id / 4 : id / 2;
            int column = backward ? id % 4 * ET_RUN : id % 2 * ET_RUN;
            int w_row = row + (backward ? i0 : o0);
            float w[ET_RUN];
            values(w, fetch_run<format>((const uint8_t *)p.w + w_row * row_bytes<format>(p.columns),
                                        column + (backward ? o0 : i0), w_row < p.rows ? p.columns : 0, p.w_aligned));
            for (int j = 0; j < ET_RUN; j++)
                shared->w[backward ? row : column + j][backward ? column + j : row] = w[j];
        }
        __syncthreads();
        float tile[4][4] = {};
        for (int i = 0; i < EXACT_INNER; i++) {
            words<4> A = *(const words<4> *)&shared->inp[i][id / 16 * 4];
            words<4> B = *(const words<4> *)&shared->w[i][id % 16 * 4];
            for (int r = 0; r < 4; r++)
                for (int c = 0; c < 4; c++)
                    tile[r][c] += bits_to_float(A.x[r]) * bits_to_float(B.x[c]);
        }
        for (int r = 0; r < 4; r++)
            for (int c = 0; c < 4; c++)
                sum[r][c] += tile[r][c];
        __syncthreads();
    }
}

template <int format, int backward> DEVICE void exact_product(const product_args &a) {
    product_exact *shared = shared_memory<product_exact>();
    float sum[4][4] = {};
    add_exact<format, backward>(sum, shared, a, a.part[0]);
    add_exact<ET_F32, backward>(sum, shared, a, a.part[1]);
    int t = (int)blockIdx.y * EXACT_TILE + (int)threadIdx.x / 16 * 4;
    int o = (int)blockIdx.x * EXACT_TILE + (int)threadIdx.x % 16 * 4;
    for (int r = 0; r < 4; r++)
        for (int c = 0; c < 4; c += 2)
            put_pair(a, t + r, o + c, sum[r][c], sum[r][c + 1]);
}

#endif
