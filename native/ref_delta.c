/* The truth of the gated delta rule: the state after every token, one after another, by the token before. */
#include "ref.h"

#include <math.h>
#include <stdlib.h>

struct rule {
    et_array qkv;
    const float *beta, *alpha, *a, *dt;
    const int32_t *before;
    double eps;
    int T, H, G, C;
};

static double vector_value(const struct rule *r, int t, int head, int i) {
    return array_get(r->qkv, ((int64_t)t * (2 * r->G + r->H) + head) * r->C + i);
}

/* 1 / the length of a query or a key. */
static double unit_of(const struct rule *r, int t, int head) {
    double square = r->eps;
    for (int i = 0; i < r->C; i++)
        square += vector_value(r, t, head, i) * vector_value(r, t, head, i);
    return 1.0 / sqrt(square);
}

static double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

/* A token of value head h: q and k [C], v - u [C], and P [C, C] of the state before it. */
struct step {
    double *q, *k, *e, *p;
    double beta, decay, q_unit, k_unit;
};

static void step_of(const struct rule *r, struct step *s, const double *state, int t, int h) {
    int g = h % r->G;
    int C = r->C;
    s->beta = sigmoid(r->beta[(int64_t)t * r->H + h]);
    s->decay = exp(r->a[h] * log1p(exp((double)r->alpha[(int64_t)t * r->H + h] + r->dt[h])));
    s->q_unit = unit_of(r, t, g);
    s->k_unit = unit_of(r, t, r->G + g);
    for (int i = 0; i < C; i++) {
        s->q[i] = vector_value(r, t, g, i) * s->q_unit / sqrt(C);
        s->k[i] = vector_value(r, t, r->G + g, i) * s->k_unit;
    }
    for (int i = 0; i < C * C; i++)
        s->p[i] = state ? s->decay * state[i] : 0.0;
    for (int j = 0; j < C; j++) {
        s->e[j] = vector_value(r, t, 2 * r->G + h, j);
        for (int i = 0; i < C; i++)
            s->e[j] -= s->p[i * C + j] * s->k[i];
    }
}

static struct step new_step(int C) {
    double *room = malloc((size_t)(3 * C + C * C) * sizeof *room);
    return (struct step){.q = room, .k = room + C, .e = room + 2 * C, .p = room + 3 * C};
}

/* The states of head h after every token, [T, C, C]. */
static double *states_of(const struct rule *r, int h) {
    size_t size = (size_t)r->C * (size_t)r->C;
    double *states = malloc((size_t)r->T * size * sizeof *states);
    struct step s = new_step(r->C);
    for (int t = 0; t < r->T; t++) {
        step_of(r, &s, r->before[t] < 0 ? NULL : states + (size_t)r->before[t] * size, t, h);
        for (int i = 0; i < r->C; i++)
            for (int j = 0; j < r->C; j++)
                states[(size_t)t * size + (size_t)(i * r->C + j)] = s.p[i * r->C + j] + s.k[i] * s.beta * s.e[j];
    }
    free(s.q);
    return states;
}

void ref_delta_forward(et_context *ctx, et_array out, float *states, et_array qkv, const float *beta,
                       const float *alpha, const float *a, const float *dt, const int32_t *before,
                       const int32_t *pieces, float eps, int64_t floats, int T, int H, int E, int C, int P) {
    (void)ctx, (void)floats;
    struct rule r = {qkv, beta, alpha, a, dt, before, eps, T, H, (E - H) / 2, C};
    for (int h = 0; h < H; h++) {
        double *known = states_of(&r, h);
        for (int t = 0; t < T; t++)
            for (int j = 0; j < C; j++) {
                double sum = 0;
                for (int i = 0; i < C; i++)
                    sum += known[((int64_t)t * C + i) * C + j] * vector_value(&r, t, h % r.G, i);
                array_put(out, ((int64_t)t * H + h) * C + j, sum * unit_of(&r, t, h % r.G) / sqrt(C));
            }
        for (int p = 0; p < P; p++)
            for (int64_t i = 0; pieces[5 * p + 4] >= 0 && i < C * C; i++)
                states[((int64_t)pieces[5 * p + 4] * H + h) * C * C + i] =
                    (float)known[(pieces[5 * p + 1] - 1) * (int64_t)C * C + i];
        free(known);
    }
}

/* Adds what token t of head h does to dq, dk [C] and the rest; grad is dL/dS after it, and becomes dL/dS before it. */
static void step_backward(const struct rule *r, const struct step *s, double *grad, const double *dout, double *dq,
                          double *dk, double *dv, double *dbeta, double *dg) {
    int C = r->C;
    *dbeta = *dg = 0;
    for (int i = 0; i < C; i++)
        for (int j = 0; j < C; j++) {
            dq[i] += (s->p[i * C + j] + s->k[i] * s->beta * s->e[j]) * dout[j];
            grad[i * C + j] += s->q[i] * dout[j];
        }
    for (int j = 0; j < C; j++) {
        double dd = 0;
        for (int i = 0; i < C; i++)
            dd += grad[i * C + j] * s->k[i];
        for (int i = 0; i < C; i++) {
            dk[i] += grad[i * C + j] * s->beta * s->e[j] - s->p[i * C + j] * s->beta * dd;
            grad[i * C + j] -= s->k[i] * s->beta * dd;
            *dg += grad[i * C + j] * s->p[i * C + j];
            grad[i * C + j] *= s->decay;
        }
        *dbeta += dd * s->e[j];
        dv[j] = s->beta * dd;
    }
}

/* The gradient of a row before it had length `length`. */
static void put_unit(const struct rule *r, et_array to, int t, int head, const double *grad, double unit,
                     double length) {
    double along = 0;
    for (int i = 0; i < r->C; i++)
        along += vector_value(r, t, head, i) * unit * grad[i];
    for (int i = 0; i < r->C; i++)
        array_put(to, ((int64_t)t * (2 * r->G + r->H) + head) * r->C + i,
                  unit * length * (grad[i] - vector_value(r, t, head, i) * unit * along));
}

void ref_delta_backward(et_context *ctx, et_array dqkv, float *dbeta, float *dalpha, float *dstates, et_array dout,
                        et_array qkv, const float *beta, const float *alpha, const float *a, const float *dt,
                        const float *states, const int32_t *before, const int32_t *pieces, float eps, int64_t floats,
                        int T, int H, int E, int C, int P) {
    (void)ctx, (void)dstates, (void)states, (void)pieces, (void)floats, (void)P;
    struct rule r = {qkv, beta, alpha, a, dt, before, eps, T, H, (E - H) / 2, C};
    size_t size = (size_t)C * (size_t)C;
    struct step s = new_step(C);
    double *dq = calloc((size_t)T * (size_t)(2 * r.G * C), sizeof *dq);
    double *rows = malloc((size_t)(2 * C) * sizeof *rows);
    for (int h = 0; h < H; h++) {
        double *known = states_of(&r, h);
        double *grads = calloc((size_t)T * size, sizeof *grads);
        for (int t = T - 1; t >= 0; t--) {
            double *grad = grads + (size_t)t * size;
            double db, dg;
            int64_t at = (int64_t)t * H + h;
            step_of(&r, &s, before[t] < 0 ? NULL : known + (size_t)before[t] * size, t, h);
            for (int j = 0; j < C; j++)
                rows[j] = array_get(dout, at * C + j);
            double *to = dq + (int64_t)t * 2 * r.G * C;
            step_backward(&r, &s, grad, rows, to + h % r.G * C, to + (r.G + h % r.G) * C, rows + C, &db, &dg);
            for (int j = 0; j < C; j++)
                array_put(dqkv, ((int64_t)t * E + 2 * r.G + h) * C + j, rows[C + j]);
            dbeta[at] = (float)(db * s.beta * (1 - s.beta));
            dalpha[at] = (float)(dg * a[h] * sigmoid((double)alpha[at] + dt[h]));
            for (size_t i = 0; before[t] >= 0 && i < size; i++)
                grads[(size_t)before[t] * size + i] += grad[i];
        }
        free(known);
        free(grads);
    }
    for (int t = 0; t < T; t++)
        for (int head = 0; head < 2 * r.G; head++)
            put_unit(&r, dqkv, t, head, dq + ((int64_t)t * 2 * r.G + head) * C, unit_of(&r, t, head),
                     head < r.G ? 1.0 / sqrt(C) : 1.0);
    free(dq);
    free(rows);
    free(s.q);
}
