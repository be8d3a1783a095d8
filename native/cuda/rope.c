/* Rotary embedding: a thread a pair. */
#include "rope.h"

#include "set.h"

void cuda_rope(et_context *ctx, et_array x, const float *cos, const float *sin, const int32_t *positions, int neox,
               float sign, int T, int H, int C, int n_rot, int P) {
    (void)P; /* dispatch has checked positions against it */
    struct rope_args args = {.x = x,
                             .cos = cos,
                             .sin = sin,
                             .positions = positions,
                             .neox = neox,
                             .H = H,
                             .C = C,
                             .pairs = n_rot / 2,
                             .sign = sign,
                             .n = (int64_t)T * H * (n_rot / 2)};
    et_launch(ctx, ET_KERNEL_rope, 0, (struct et_grid){blocks_of(args.n, ET_BLOCK), 1, 1}, ET_BLOCK, 0, &args);
}
