/* Vectors beyond load and store: parts at the end of an array, selection, reductions in a fixed order, e^x; and how ops
 * are cut into tasks. */

typedef int32_t ivec __attribute__((vector_size(4 * VL)));
typedef uint32_t uvec __attribute__((vector_size(4 * VL)));

static inline vec splat(float x) { return x - (vec){0}; }

/* The n <= VL floats at p; missing lanes are 0. */
static inline vec vload_part(const float *p, int64_t n) {
    vec x = {0};
    if (n >= VL)
        return vload(p);
    memcpy(&x, p, (size_t)n * sizeof *p);
    return x;
}

static inline void vstore_part(float *p, vec x, int64_t n) {
    if (n >= VL)
        vstore(p, x);
    else
        memcpy(p, &x, (size_t)n * sizeof *p);
}

/* x in the first n lanes, 0 in the others. */
static inline vec first_lanes(vec x, int64_t n) {
    float lanes[VL];
    if (n >= VL)
        return x;
    vstore(lanes, x);
    return vload_part(lanes, n);
}

/* a where the mask is set, else b */
static inline vec blend(ivec mask, vec a, vec b) { return (vec)(((ivec)a & mask) | ((ivec)b & ~mask)); }

/* By halves, as the chain of additions would cost more than the vectors that it ends. */
static inline float lanes_sum(vec x) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)x); /* by halves too */
#else
    float lanes[VL];
    vstore(lanes, x);
    for (int half = VL / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            lanes[i] += lanes[i + half];
    return lanes[0];
#endif
}

static inline float lanes_max(vec x) {
    float lanes[VL];
    vstore(lanes, x);
    for (int half = VL / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            lanes[i] = lanes[i + half] > lanes[i] ? lanes[i + half] : lanes[i];
    return lanes[0];
}

/* Whether a mask is set anywhere. */
static inline int lanes_any(ivec mask) {
#ifdef __AVX512F__
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#else
    int32_t set = 0;
    for (int i = 0; i < VL; i++)
        set |= mask[i];
    return set != 0;
#endif
}

/* sum of a * b over n values */
static inline float dot(const float *a, const float *b, int64_t n) {
    vec sum = {0};
    for (int64_t i = 0; i < n; i += VL)
        sum += vload_part(a + i, n - i) * vload_part(b + i, n - i);
    return lanes_sum(sum);
}

/* The smaller, or the larger, of x and limit; NaN if x is: x86 takes the second if they do not compare. */
static inline vec vec_min(vec x, vec limit) {
#if defined __AVX512F__
    return (vec)_mm512_min_ps((__m512)limit, (__m512)x);
#elif defined __AVX2__
    return (vec)_mm256_min_ps((__m256)limit, (__m256)x);
#else
    return blend(limit < x, limit, x);
#endif
}

static inline vec vec_max(vec x, vec limit) {
#if defined __AVX512F__
    return (vec)_mm512_max_ps((__m512)limit, (__m512)x);
#elif defined __AVX2__
    return (vec)_mm256_max_ps((__m256)limit, (__m256)x);
#else
    return blend(limit > x, limit, x);
#endif
}

/* 1 / x for x from 1 to 2^126. */
static inline vec reciprocal(vec x) {
#ifdef __AVX512F__ /* its division takes as long as all of vec_exp; one step of Newton's gives 28 bits from 14 */
    vec r = (vec)_mm512_rcp14_ps((__m512)x);
    return r + r * (1.0f - x * r);
#else
    return 1.0f / x;
#endif
}

/* vec_exp of what is at most 88, or NaN.
 * x = n ln 2 + r, |r| <= ln 2 / 2: a minimax polynomial for e^r, doubled, times 2^(n-1), which is 0 for n = -126. */
static inline vec exp_below_88(vec x) {
    const float round = 12582912.0f + 126.0f; /* 1.5 * 2^23: the low bits of a sum are the nearest integer, + 126 */
    x = vec_max(x, splat(-87.0f));
    vec shifted = x * 1.44269504f + round;
    vec n = shifted - round;
    vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = 1.3814467238e-3f * r + 8.3687808368e-3f;
    p = p * r + 4.1668392718e-2f;
    p = p * r + 1.6666519642e-1f;
    p = p * r + 4.9999994040e-1f;
    p = p * (r * r) + r + 1.0f;
    return (p + p) * (vec)((ivec)shifted << 23);
}

/* e^x within 1.1 ulp; -inf -> 0, what overflows -> inf, NaN -> NaN. Results below 1.42 * 2^-126 are 0: denormals add
 * nothing to a softmax or a sigmoid, and each costs some CPUs a hundred cycles. */
static inline vec vec_exp(vec x) { return exp_below_88(vec_min(x, splat(89.0f))); }

/* ln x for normal x > 0, within 2 ulp but near 1, where the error is 1e-7 of x - 1: x = 2^e m, m from sqrt(1/2) to
 * sqrt(2), and the series of 2 atanh((m - 1) / (m + 1)). */
static inline vec vec_log(vec x) {
    ivec e = ((ivec)x - 0x3f3504f3) >> 23;
    vec m = (vec)((ivec)x - (e << 23));
    vec s = (m - 1.0f) / (m + 1.0f);
    vec q = s * s;
    vec p = q * (1.0f / 9.0f) + 1.0f / 7.0f;
    p = p * q + 1.0f / 5.0f;
    p = p * q + 1.0f / 3.0f;
    return __builtin_convertvector(e, vec) * 0.69314718f + (s + s) * (p * q + 1.0f);
}

/* ---- tasks --------------------------------------------------------------------------------------------------- */
enum { TASK_VALUES = 1 << 14 }; /* 64 KB: waking a thread costs little beside it */

struct range {
    int64_t begin, end;
};

static inline int value_tasks(int64_t n) { return (int)((n + TASK_VALUES - 1) / TASK_VALUES); }

static inline struct range task_values(int task, int64_t n) {
    int64_t begin = (int64_t)task * TASK_VALUES;
    return (struct range){begin, n - begin < TASK_VALUES ? n : begin + TASK_VALUES};
}

/* Whole rows of D values, at least one a task. */
static inline int64_t rows_per_task(int64_t D) { return D < TASK_VALUES ? TASK_VALUES / D : 1; }

static inline int row_tasks(int64_t rows, int64_t D) { return (int)((rows + rows_per_task(D) - 1) / rows_per_task(D)); }

static inline struct range task_rows(int task, int64_t rows, int64_t D) {
    int64_t begin = task * rows_per_task(D);
    return (struct range){begin, rows - begin < rows_per_task(D) ? rows : begin + rows_per_task(D)};
}
