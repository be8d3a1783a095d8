/* et_check [--pick | NAME [SUBJECT]]: checks kernel sets against the truth in ref.h, in all subjects or one: the named
 * set, all that this CPU can run ("cpu"), or without a name these and, in a build that emulates it, a GPU's, "cuda". */
#include "check.h"
#ifdef ET_EMULATED
#include "cuda/device.h"
#endif

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Checks without a second context. */
static void formats(struct check *c, et_context *alone) { (void)alone, check_formats(c); }
static void refusals(struct check *c, et_context *alone) { (void)alone, check_refusals(c); }
static void ops(struct check *c, et_context *alone) { (void)alone, check_ops(c); }
static void mixers(struct check *c, et_context *alone) { (void)alone, check_mixers(c); }
static void delta(struct check *c, et_context *alone) { (void)alone, check_delta(c); }
static void optimizer(struct check *c, et_context *alone) { (void)alone, check_optimizer(c); }
static void draws(struct check *c, et_context *alone) { (void)alone, check_draws(c); }

static const struct subject {
    const char *name;
    void (*check)(struct check *c, et_context *alone);
    int by_precision; /* else in ET_EXACT alone */
} subjects[] = {
    {"products", check_products, 1}, {"formats", formats, 0},
    {"refusals", refusals, 0},       {"ops", ops, 0},
    {"optimizer", optimizer, 0},     {"draws", draws, 0},
    {"cached", check_cached, 0},     {"attention", check_attentions, 1},
    {"mixers", mixers, 0},           {"delta", delta, 1},
    {"ssm", check_ssm, 1},
};

static et_context *make_context(const char *isa, enum et_precision precision, int threads, void **scratch) {
    et_context *ctx = NULL;
    size_t bytes = et_scratch_bytes(threads);
    *scratch = calloc(1, bytes);
#ifdef ET_EMULATED
    if (isa && strcmp(isa, "cuda") == 0) {
        int code = et_context_create_on(&ctx, &et_emulated_device, precision, *scratch, bytes);
        return code == ET_OK ? ctx : NULL;
    }
#endif
    return *scratch && et_context_create(&ctx, isa, precision, threads, *scratch, bytes) == ET_OK ? ctx : NULL;
}

static void check_isa(struct check *total, const char *isa, const char *only) {
    struct check c = {.isa = isa};
    for (int precision = ET_EXACT; precision <= ET_INT8; precision++) {
        c.precision = (enum et_precision)precision;
        void *scratch, *scratch_alone;
        c.ctx = make_context(isa, c.precision, CHECK_THREADS, &scratch);
        et_context *alone = make_context(isa, c.precision, 1, &scratch_alone);
        if (!c.ctx || !alone)
            check_true(&c, 0, "no context");
        else
            for (int i = 0; i < COUNT(subjects); i++)
                if ((precision == ET_EXACT || subjects[i].by_precision) && (!only || !strcmp(only, subjects[i].name)))
                    subjects[i].check(&c, alone);
        et_context_destroy(c.ctx);
        et_context_destroy(alone);
        free(scratch);
        free(scratch_alone);
    }
    printf("%-12s %6d checks, %d failed, worst error %.2f of the tolerance\n", isa, c.passed + c.failed, c.failed,
           c.worst);
    total->passed += c.passed;
    total->failed += c.failed;
}

int main(int argc, char **argv) {
    const char *only = argc > 1 ? argv[1] : NULL;
    const char *subject = argc > 2 ? argv[2] : NULL;
    struct check total = {.isa = "all"};
    setvbuf(stdout, NULL, _IOLBF, 0); /* a failure is read as soon as it is there */
    if (only && strcmp(only, "--pick") == 0) {
        void *scratch;
        et_context *ctx = make_context(NULL, ET_FAST, 1, &scratch);
        puts(ctx ? et_context_isa(ctx) : "none");
        et_context_destroy(ctx);
        free(scratch);
        return 0;
    }
#ifdef ET_EMULATED
    if (!only || strcmp(only, "cuda") == 0)
        check_isa(&total, "cuda", subject);
#endif
    for (int i = 0; et_isa_name(i); i++) {
        if (!et_isa_usable(i))
            continue;
        if (!only || strcmp(only, "cpu") == 0 || strcmp(only, et_isa_name(i)) == 0)
            check_isa(&total, et_isa_name(i), subject);
    }
    printf("%d passed, %d failed\n", total.passed, total.failed);
    return total.failed || !total.passed;
}
