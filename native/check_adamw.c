/* Checks of AdamW against ref_ops.c, with moments in float and in 8 bits. */
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double CLOSE = 2e-6;

static void check_adamw(struct check *c, int64_t n, int64_t step, float weight_decay) {
    size_t N = (size_t)n;
    float *param = check_floats(N, 1);
    float *grad = check_floats(N, 2);
    float *m = check_floats(N, 3);
    float *v = check_floats(N, 4);
    for (size_t i = 0; i < N; i++)
        v[i] = v[i] * v[i];
    grad[0] = m[0] = v[0] = 0.0f; /* eps alone stands below the line */
    float *params = check_copy(param, N);
    float *ms = check_copy(m, N);
    float *vs = check_copy(v, N);
    et_adamw(c->ctx, param, grad, m, v, 1e-2f, 0.9f, 0.999f, 1e-8f, weight_decay, step, n);
    ref_adamw(NULL, params, grad, ms, vs, 1e-2f, 0.9f, 0.999f, 1e-8f, weight_decay, step, n);
    check_close(c, param, params, N, CLOSE, "adamw param n %d step %d decay %g", (int)n, (int)step, weight_decay);
    check_close(c, m, ms, N, CLOSE, "adamw m n %d step %d", (int)n, (int)step);
    check_close(c, v, vs, N, CLOSE, "adamw v n %d step %d", (int)n, (int)step);
    check_free();
}

/* Codes of got and want that differ, in one place at most: by 1, where rounding decides it. More count as n. */
static int codes_apart(const struct et_moments *got, const struct et_moments *want, int64_t n) {
    int apart = 0;
    for (int64_t i = 0; i < n; i++) {
        const struct et_moments *g = got + i / ET_MOMENTS;
        const struct et_moments *w = want + i / ET_MOMENTS;
        int m = abs(g->m[i % ET_MOMENTS] - w->m[i % ET_MOMENTS]);
        int v = abs(g->v[i % ET_MOMENTS] - w->v[i % ET_MOMENTS]);
        apart += m > 1 || v > 1 ? (int)n : m + v;
    }
    return apart;
}

static void check_scales(struct check *c, const struct et_moments *got, const struct et_moments *want, int blocks) {
    int close = 1;
    for (int i = 0; i < blocks; i++)
        close &= fabs(got[i].m_scale - want[i].m_scale) <= CLOSE * want[i].m_scale &&
                 fabs(got[i].v_scale - want[i].v_scale) <= CLOSE * want[i].v_scale;
    check_true(c, close, "adamw8 scales, %d blocks", blocks);
}

/* Several steps from zero; before each both have the same moments, so that what rounding decides does not add up. */
static void check_adamw8(struct check *c, int64_t n, float spread) {
    size_t N = (size_t)n;
    size_t blocks = (N + ET_MOMENTS - 1) / ET_MOMENTS;
    size_t floats = blocks * sizeof(struct et_moments) / 4;
    float *bytes = check_floats(floats, 1);
    float *param = check_floats(N, 2);
    struct et_moments *moments = memset(bytes, 0, floats * 4);
    struct et_moments *want = (void *)check_floats(floats, 1);
    for (int step = 1; step <= 4; step++) {
        float *grad = check_floats(N, 2 + (uint64_t)step);
        float *params = check_copy(param, N);
        for (size_t i = 0; i < N; i++)
            grad[i] *= i % 7 == 3 ? 0.0f : expf(spread * grad[(i + 1) % N]);
        memcpy(want, moments, floats * 4);
        et_adamw8(c->ctx, param, grad, moments, 1e-2f, 0.9f, 0.999f, 1e-8f, 0.1f, step, 77, n);
        ref_adamw8(NULL, params, grad, want, 1e-2f, 0.9f, 0.999f, 1e-8f, 0.1f, step, 77, n);
        check_close(c, param, params, N, CLOSE, "adamw8 param n %d step %d", (int)n, step);
        check_scales(c, moments, want, (int)blocks);
        int apart = codes_apart(moments, want, (int64_t)blocks * ET_MOMENTS);
        check_true(c, apart <= 1 + n / 1000, "adamw8 n %d step %d: %d codes differ", (int)n, step, apart);
    }
    check_close(c, bytes, (float *)moments, 0, CLOSE, "adamw8 wrote beyond n %d", (int)n);
    check_free();
}

void check_optimizer(struct check *c) {
    static const int64_t lengths[] = {1, 7, 64, 256, 1000, 16384, 40001};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        check_adamw(c, lengths[i], 1, 0.0f);
        check_adamw(c, lengths[i], 1000, 0.1f);
        check_adamw8(c, lengths[i], 0.0f);
        check_adamw8(c, lengths[i], 6.0f);
    }
}
