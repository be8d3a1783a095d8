/* Tokens drawn and the highest logits, over a block of the vocabulary at a time, as native/sample.h tells: a block of
 * threads a row of logits. */
#include "block.cuh"
#include "random.cuh"
#include "sample.h"

/* -log(-log(u)) of u = 1 - rest, uniform between 0 and 1 by random bits. */
DEVICE float gumbel(uint32_t bits) {
    float rest = ((float)(int)(bits >> 1) + 0.5f) * (1.0f / 2147483648.0f);
    return -logf(-log1pf(-fminf(rest, 1.0f - 1.0f / 16777216.0f)));
}

/* A row's state before a block of logits, its sums already under the maximum with the block's `most`. */
DEVICE sample_state state_under(const sample_args &a, float most) {
    sample_state s = {-INFINITY, 0, 0, -INFINITY, -INFINITY};
    if (a.first)
        s = a.state[blockIdx.x];
    float max = fmaxf(s.max, most);
    if (s.max != -INFINITY) {
        s.sum *= expf(s.max - max);
        s.hot *= expf((s.max - max) * a.heat);
    }
    s.max = max;
    return s;
}

/* What is subtracted from logits before they are exponentiated. */
DEVICE float base_of(const sample_state &s) { return s.max == -INFINITY ? 0.0f : s.max; }

/* The highest of z / temperature + noise is a draw from the softmax (Gumbel 1954; Maddison et al. 2014). The noise is
 * at most -log(rest), and this above best - z / temperature just where rest < exp(z / temperature - best): nearly
 * never, so that nearly no noise is made. above: exp(base / temperature - best), and a little more for rounding. */
KERNEL(sample_rows, sample_args) {
    sample_shared *shared = shared_memory<sample_shared>();
    const int row = (int)blockIdx.x;
    const float *z = a.logits + (int64_t)row * a.n;
    float most = -INFINITY;
    for (int i = (int)threadIdx.x; i < a.n; i += (int)blockDim.x)
        most = fmaxf(most, z[i]);
    sample_state s = state_under(a, block_max(most, shared->sums));
    const float base = base_of(s);
    const float limit = a.limit && a.heat ? a.limit[row] : -INFINITY;
    const uint64_t key = (uint32_t)a.key[2 * row] | (uint64_t)(uint32_t)a.key[2 * row + 1] << 32;
    float above = expf(base * a.heat - s.best) * 1.001f;
    float best = s.best;
    uint64_t found = 0;
    float sum = 0;
    float hot = 0;
    for (int i = (int)threadIdx.x; i < a.n; i += (int)blockDim.x) {
        float x = z[i];
        float e = expf(x - base);
        float noisy = x;
        sum += e;
        if (!(x >= limit))
            continue;
        if (a.heat) {
            float e_hot = a.heat == 1.0f ? e : expf((x - base) * a.heat);
            uint32_t bits = random_bits(key, (uint32_t)(a.first + i));
            hot += e_hot;
            if (!((float)(int)(bits >> 1) * (1.0f / 2147483648.0f) < e_hot * above))
                continue;
            noisy = x * a.heat + gumbel(bits);
        }
        if (noisy > best) {
            best = noisy;
            above = expf(base * a.heat - best) * 1.001f;
            found = ranked(noisy, i);
        }
    }
    sum = block_sum(sum, shared->sums);
    hot = block_sum(hot, shared->sums);
    found = block_highest(found, shared->ranks);
    if (threadIdx.x)
        return;
    s.sum += sum;
    s.hot += hot;
    if (a.first == 0)
        a.token[row] = 0; /* should all be NaN */
    if (found) {
        a.token[row] = a.first + ranked_place(found);
        s.best = ranked_value(found);
        s.logit = z[ranked_place(found)];
    }
    a.state[row] = s;
    if (!a.logp)
        return;
    a.logp[row] = s.logit - s.max - logf(s.sum);
    a.drawn[row] = a.heat ? (s.logit - s.max) * a.heat - logf(s.hot) : 0.0f;
}

/* ---- the highest logits ---- */

/* Counts, in this thread's column, its values below the limit whose key has the prefix above `shift` + 4 bits, by the
 * digit at `shift`. */
DEVICE void count_digits(int counts[ET_DIGITS][ET_BLOCK], const float *z, int n, float limit, uint32_t prefix,
                         int shift) {
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) {
        uint32_t key = ordered(z[i]);
        if (z[i] < limit && key >> shift >> 4 == prefix)
            counts[key >> shift & (ET_DIGITS - 1)][threadIdx.x]++;
    }
}

/* The sum of each digit's counts over the threads of the block. */
DEVICE void sum_digits(top_shared *shared) {
    __syncthreads();
    for (int d = (int)threadIdx.x / ET_WARP; d < ET_DIGITS; d += (int)blockDim.x / ET_WARP) {
        int sum = 0;
        for (int i = (int)threadIdx.x % ET_WARP; i < (int)blockDim.x; i += ET_WARP)
            sum += shared->counts[d][i];
        sum = warp_sum(sum);
        if (threadIdx.x % ET_WARP == 0)
            shared->totals[d] = sum;
    }
    __syncthreads();
}

/* The key of the M-th highest of top [M] and of those of z [n] below the limit, digit after digit. */
DEVICE uint32_t lowest_key(top_shared *shared, const float *top, int M, const float *z, int n, float limit) {
    uint32_t key = 0;
    int rank = M;
    for (int shift = 28; shift >= 0; shift -= 4) {
        for (int d = 0; d < ET_DIGITS; d++)
            shared->counts[d][threadIdx.x] = 0;
        count_digits(shared->counts, top, M, INFINITY, key, shift);
        count_digits(shared->counts, z, n, limit, key, shift);
        sum_digits(shared);
        int digit = ET_DIGITS - 1;
        while (digit > 0 && shared->totals[digit] < rank)
            rank -= shared->totals[digit--];
        key = key << 4 | (uint32_t)digit;
    }
    return key;
}

/* The sum of x over the threads before this one; *total: over all. */
DEVICE int block_rank(int x, int parts[ET_WARPS], int *total) {
    int warp = (int)threadIdx.x / ET_WARP;
    int lane = (int)threadIdx.x % ET_WARP;
    int sum = x; /* up to this lane */
    for (int step = 1; step < ET_WARP; step *= 2) {
        int before = __shfl_sync(ET_ALL_LANES, sum, lane - step);
        sum += lane >= step ? before : 0;
    }
    __syncthreads(); /* `parts` may be in use by those before */
    if (lane == ET_WARP - 1)
        parts[warp] = sum;
    __syncthreads();
    int rank = sum - x;
    *total = 0;
    for (int i = 0; i < (int)blockDim.x / ET_WARP; i++) {
        rank += i < warp ? parts[i] : 0;
        *total += parts[i];
    }
    return rank;
}

/* Appends those of `from` [n] that are below the limit and higher than the key to `to`, which has `kept`, and may be
 * `from`, as they are read before others take their place; returns how many it has then. */
DEVICE int keep_higher(float *to, int kept, const float *from, int n, float limit, uint32_t key, int parts[ET_WARPS]) {
    for (int begin = 0; begin < n; begin += 4 * (int)blockDim.x) {
        float x[4];
        int first = begin + 4 * (int)threadIdx.x;
        int count = 0;
        int total;
        for (int k = 0; k < 4; k++) {
            x[k] = first + k < n ? from[first + k] : -INFINITY;
            x[k] = x[k] < limit && ordered(x[k]) > key ? x[k] : -INFINITY; /* which is higher than no key */
            count += x[k] > -INFINITY;
        }
        int at = kept + block_rank(count, parts, &total);
        for (int k = 0; k < 4; k++)
            if (x[k] > -INFINITY)
                to[at++] = x[k];
        kept += total;
    }
    return kept;
}

/* top [M] of each row is what it was, and the block's logits below the limit, without the lowest. */
KERNEL(top_rows, sample_args) {
    top_shared *shared = shared_memory<top_shared>();
    const int64_t row = blockIdx.x;
    const float *z = a.logits + row * a.n;
    float *top = a.top + row * a.M;
    const float limit = a.limit[row];
    float most = -INFINITY;
    float most_below = -INFINITY;
    for (int i = (int)threadIdx.x; i < a.n; i += (int)blockDim.x) {
        most = fmaxf(most, z[i]);
        most_below = fmaxf(most_below, z[i] < limit ? z[i] : -INFINITY);
    }
    sample_state s = state_under(a, block_max(most, shared->sums));
    float sum = 0;
    for (int i = (int)threadIdx.x; i < a.n; i += (int)blockDim.x)
        sum += expf(z[i] - base_of(s));
    s.sum += block_sum(sum, shared->sums);
    float lowest = INFINITY;
    for (int i = (int)threadIdx.x; i < a.M; i += (int)blockDim.x) {
        if (a.first == 0)
            top[i] = -INFINITY;
        lowest = fminf(lowest, top[i]);
    }
    lowest = -block_max(-lowest, shared->sums);
    if (threadIdx.x == 0) {
        a.state[row] = s;
        if (a.lse)
            a.lse[row] = s.max + logf(s.sum);
    }
    if (!(block_max(most_below, shared->sums) > lowest))
        return;
    uint32_t key = lowest_key(shared, top, a.M, z, a.n, limit);
    int kept = keep_higher(top, 0, top, a.M, INFINITY, key, shared->ranks);
    kept = keep_higher(top, kept, z, a.n, limit, key, shared->ranks);
    for (int i = kept + (int)threadIdx.x; i < a.M; i += (int)blockDim.x)
        top[i] = from_ordered(key);
}
