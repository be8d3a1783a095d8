/* Products with a frozen weight, forward and backward: out [T, outer] (+)= scale * sum over `inner` of inp and w, and
 * of LoRA's x and y, which are one more such product with weights in F32. */
#ifndef ET_PRODUCT_H
#define ET_PRODUCT_H

#include "../et.h"

struct product_part {
    et_array inp;      /* [T, inner] */
    const void *w;     /* [rows, columns]: outer, inner forward; inner, outer backward */
    int rows, columns; /* 0 where there is no such part */
    int inp_aligned;   /* rows of whole 8 values, at multiples of 16 bytes */
    int w_aligned;     /* as unpack.cuh says */
};

struct product_args {
    struct product_part part[2]; /* the weight's, and LoRA's */
    et_array out;                /* [T, outer] */
    float scale;
    int accumulate, T, outer;
    int paired; /* pairs of columns of out may be written at once */
};

/* What a block of ET_BLOCK threads computes by tensor cores, PRODUCT_SHAPE(name, T, outer, inner, warps along each): a
 * tile of out, for `inner` more at a time. A tile of weights has 4096, a run a thread. Large tiles unpack weights least
 * often; where T is so small that there are only a few of them, small ones keep a card busy, with the warps one behind
 * the other along what is summed. */
#define PRODUCT_SHAPES                                                                                                 \
    PRODUCT_SHAPE(large, 128, 128, 32, 2, 4, 1)                                                                        \
    PRODUCT_SHAPE(medium, 64, 128, 32, 2, 4, 1)                                                                        \
    PRODUCT_SHAPE(small, 32, 32, 128, 1, 1, 8)

/* Rows of tiles are longer by 16 bytes than what they hold, so that load_matrix finds 8 of them in different banks. Two
 * of each, as one is filled while the other is multiplied. */
#define PRODUCT_PAD 8
#define PRODUCT_SHAPE(name, T, outer, inner, ...)                                                                      \
    struct product_##name {                                                                                            \
        uint16_t inp[2][(T) * ((inner) + PRODUCT_PAD)];                                                                \
        uint16_t w[2][(outer) * (inner) + ((outer) > (inner) ? (outer) : (inner)) * PRODUCT_PAD];                      \
    };
PRODUCT_SHAPES
#undef PRODUCT_SHAPE

/* The same in float without tensor cores: 4 x 4 of out a thread. */
#define EXACT_TILE 64
#define EXACT_INNER 32
struct product_exact {
    float inp[EXACT_INNER][EXACT_TILE + 4];
    float w[EXACT_INNER][EXACT_TILE + 4];
};

#endif
