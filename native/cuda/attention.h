/* Attention: what host and kernels share. Tiles of queries or keys are a block's own, others pass by. */
#ifndef ET_ATTENTION_H
#define ET_ATTENTION_H

#include "../et.h"

/* Rows of heads. whole: they are bf16, and each begins and ends at a multiple of 16 bytes. */
struct attention_rows {
    et_array x;
    int whole;
};

struct attention_args {
    struct attention_rows q, k, v, dout;
    et_array out, dq, dk, dv; /* in backward, out is an input, and so is lse */
    float *lse, *delta;       /* [H, Q] */
    const int32_t *begin, *end, *position;
    float scale;
    int window, first, T, H, G, C; /* queries are tokens first .. T - 1 */
    int rounds;                    /* what is multiplied is bf16 */
};

/* In float: one size for all C. Rows are an odd number of words, so that threads read a column without conflicts. */
enum { FLOAT_OWN = 8, FLOAT_PASSING = 16, FLOAT_THREADS = FLOAT_OWN * FLOAT_PASSING };
struct attention_float_shared {
    float own[2][FLOAT_OWN][ET_NARROW_HEAD + 1], passing[FLOAT_PASSING][ET_NARROW_HEAD + 1];
    float p[FLOAT_OWN][FLOAT_PASSING], ds[FLOAT_OWN][FLOAT_PASSING];
};

/* In bf16, C is padded to one of these widths. WIDTH(width, queries and keys at a time forward; rows of a block's own
 * and rows that pass by backward, buffers for these, parts of dk's and dv's width, each a warp's). A warp has 16 rows.
 * What bounds them are 48 KiB and, for the sums of a warp, 255 registers a thread: heads of 256 make the scores of dk
 * and dv twice, and load what passes by into one buffer. */
#define ATTENTION_WIDTHS(WIDTH)                                                                                        \
    WIDTH(64, 64, 64, 64, 32, 2, 1)                                                                                    \
    WIDTH(128, 64, 32, 64, 16, 2, 1)                                                                                   \
    WIDTH(256, 48, 16, 32, 16, 1, 2)

/* Rows are 16 bytes longer than their values, so that load_matrix reads eight of them without conflicts. */
#define ATTENTION_SHARED(C, QUERIES, KEYS, OWN, PASSING, BUFFERS, PARTS)                                               \
    struct attention_forward_shared_##C {                                                                              \
        uint16_t q[QUERIES][C + 8], k[KEYS][C + 8], v[KEYS][C + 8];                                                    \
    };                                                                                                                 \
    struct attention_backward_shared_##C {                                                                             \
        uint16_t own[2][OWN][C + 8], passing[BUFFERS][PASSING][C + 8];                                                 \
        float base[PASSING], delta[PASSING];                                                                           \
    };
ATTENTION_WIDTHS(ATTENTION_SHARED)
#undef ATTENTION_SHARED

#endif
