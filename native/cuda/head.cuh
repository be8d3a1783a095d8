/* Head and loss over a block of the vocabulary at a time, as native/head.h tells: a block of threads a row. */
#include "block.cuh"
#include "head.h"

/* How far the target's logit is ahead of all others together; no others: infinitely. */
DEVICE float head_lead(const head_state &s) { return s.target - s.max - logf(s.sum); }

/* Takes the target's logit out of a row, and brings maximum and sum on; where dh is wanted, makes e = exp(z - max) of
 * the row, and brings what dh has summed up under the same maximum. */
KERNEL(head_rows, head_args) {
    head_shared *shared = shared_memory<head_shared>();
    const int64_t row = blockIdx.x;
    const int thread = (int)threadIdx.x;
    const int threads = (int)blockDim.x;
    const float *z = a.logits + row * a.n;
    const int target = a.targets[row] - a.first;
    head_state s = {-INFINITY, 0, 0, -INFINITY};
    if (a.first)
        s = a.state[row];
    if (target >= 0 && target < a.n)
        s.target = z[target]; /* e may take its place after the barriers below */
    float most = -INFINITY;
    uint64_t best = 0;
    for (int i = thread; i < a.n; i += threads) {
        if (i != target)
            most = fmaxf(most, z[i]);
        if (a.best)
            best = higher(best, ranked(z[i], i));
    }
    if (a.best)
        best = block_highest(best, shared->ranks);
    float max = fmaxf(s.max, block_max(most, shared->sums));
    float base = max == -INFINITY ? 0.0f : max;
    float factor = s.max == -INFINITY ? 0.0f : expf(s.max - base);
    float sum = 0;
    for (int i = thread; i < a.n; i += threads) {
        float x = i == target ? 0.0f : expf(z[i] - base);
        if (a.dh)
            array_put(a.e, row * a.n + i, x);
        sum += x;
    }
    sum = block_sum(sum, shared->sums);
    if (a.dh && a.first && factor != 1.0f)
        for (int i = thread; i < a.D; i += threads)
            a.dh[row * a.D + i] *= factor;
    if (thread)
        return;
    if (a.best && (a.first == 0 || ranked_value(best) > s.best)) { /* 0 where none is a number */
        a.best[row] = best ? a.first + ranked_place(best) : 0;
        s.best = best ? ranked_value(best) : -INFINITY;
    }
    s.sum = s.sum * factor + sum;
    s.max = max;
    a.state[row] = s;
    float lead = head_lead(s);
    if (a.logp)
        a.logp[row] = lead > 0 ? -log1pf(expf(-lead)) : lead - log1pf(expf(lead));
}

/* dh = a (1 - p) (dh / sum - w_target), p the probability of the target: of a row that has summed up e . w. */
KERNEL(head_gradient, head_args) {
    const int64_t row = blockIdx.x;
    const head_state s = a.state[row];
    float scale = a.a[row] / (1.0f + expf(head_lead(s)));
    float each = s.sum != 0 ? scale / s.sum : 0.0f;
    for (int64_t i = row * a.D + threadIdx.x; i < (row + 1) * a.D; i += blockDim.x)
        a.dh[i] = a.dh[i] * each - a.w[i] * scale;
}
