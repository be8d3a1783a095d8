/* Gradients of LoRA's weights: dw [N, K] += scale * dout [T, N]^T . inp [T, K], where N or K is the rank. */
#ifndef ET_DWEIGHT_H
#define ET_DWEIGHT_H

#include "../et.h"

/* The larger of the two is called wide, the smaller narrow. */
struct dweight_args {
    et_array wide, narrow; /* [T, W], [T, M] */
    float *dw;             /* element (w, m) at w * wide_step + m * narrow_step */
    float *partial;        /* [parts, as dw], where there are several parts */
    float scale;
    int T, W, M, parts;
    int part; /* tokens of one, but the last */
    int64_t wide_step, narrow_step;
};

/* A block has a tile of dw, 4 x 4 a thread; quarters of its threads take tokens in turn. */
#define DWEIGHT_WIDE 64
#define DWEIGHT_NARROW 16
#define DWEIGHT_TOKENS 32 /* at a time */
#define DWEIGHT_QUARTERS 4

struct dweight_shared {
    float wide[DWEIGHT_TOKENS][DWEIGHT_WIDE];
    float narrow[DWEIGHT_TOKENS][DWEIGHT_NARROW];
    float sums[DWEIGHT_QUARTERS][DWEIGHT_WIDE][DWEIGHT_NARROW + 1];
};

#endif
