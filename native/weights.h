/* Weights as they are: consecutive ones, and rows by token. */

#define WEIGHTS_A_TASK 8192 /* a multiple of every block */
#define TOKENS_A_TASK 16

struct dequantize {
    float *out;
    const void *w;
    int format;
    int64_t n;
};

static void dequantize_task(void *arg, int task, int thread) {
    const struct dequantize *p = arg;
    int64_t i = (int64_t)task * WEIGHTS_A_TASK;
    int64_t count = p->n - i < WEIGHTS_A_TASK ? p->n - i : WEIGHTS_A_TASK;
    (void)thread;
    unpack(p->out + i, p->w, p->format, i, count);
}

static void dequantize(et_context *ctx, float *out, const void *w, int format, int64_t n) {
    struct dequantize p = {out, w, format, n};
    et_parallel(ctx, dequantize_task, &p, (int)((n + WEIGHTS_A_TASK - 1) / WEIGHTS_A_TASK));
}

struct embed {
    float *out;
    const int32_t *tokens;
    const void *w;
    int format;
    float scale;
    int T, D;
};

static void embed_task(void *arg, int task, int thread) {
    const struct embed *p = arg;
    int end = min_int((task + 1) * TOKENS_A_TASK, p->T);
    (void)thread;
    for (int t = task * TOKENS_A_TASK; t < end; t++) {
        float *row = p->out + (ptrdiff_t)t * p->D;
        unpack(row, p->w, p->format, (int64_t)p->tokens[t] * p->D, p->D);
        if (p->scale != 1)
            for (int i = 0; i < p->D; i++)
                row[i] *= p->scale;
    }
}

static void embed(et_context *ctx, float *out, const int32_t *tokens, const void *w, int format, float scale, int T,
                  int V, int D) {
    struct embed p = {out, tokens, w, format, scale, T, D};
    (void)V;
    et_parallel(ctx, embed_task, &p, ceil_div(T, TOKENS_A_TASK));
}
