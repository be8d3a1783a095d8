/* et_check [--pick | NAME]: checks every kernel set that this CPU can run (or the named one) against the truth in
 * ref.h. */
#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What does not depend on the precision. */
static void check_rest(struct check *c) {
    check_formats(c);
    check_refusals(c);
    check_ops(c);
    check_optimizer(c);
}

static et_context *make_context(const char *isa, enum et_precision precision, int threads, void **scratch) {
    et_context *ctx = NULL;
    size_t bytes = et_scratch_bytes(threads);
    *scratch = calloc(1, bytes);
    return *scratch && et_context_create(&ctx, isa, precision, threads, *scratch, bytes) == ET_OK ? ctx : NULL;
}

static void check_isa(struct check *total, const char *isa) {
    struct check c = {.isa = isa};
    for (int precision = ET_EXACT; precision <= ET_INT8; precision++) {
        void *scratch, *scratch_alone;
        c.ctx = make_context(isa, (enum et_precision)precision, CHECK_THREADS, &scratch);
        et_context *alone = make_context(isa, (enum et_precision)precision, 1, &scratch_alone);
        if (!c.ctx || !alone)
            check_true(&c, 0, "no context");
        else {
            check_products(&c, alone);
            if (precision == ET_EXACT) {
                check_rest(&c);
                check_draws(&c);
                check_cached(&c, alone);
            }
            check_attentions(&c, alone);
        }
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
    struct check total = {.isa = "all"};
    if (only && strcmp(only, "--pick") == 0) {
        void *scratch;
        et_context *ctx = make_context(NULL, ET_FAST, 1, &scratch);
        puts(ctx ? et_context_isa(ctx) : "none");
        et_context_destroy(ctx);
        free(scratch);
        return 0;
    }
    for (int i = 0; et_isa_name(i); i++) {
        if (!et_isa_usable(i))
            continue;
        if (!only || strcmp(only, et_isa_name(i)) == 0)
            check_isa(&total, et_isa_name(i));
    }
    printf("%d passed, %d failed\n", total.passed, total.failed);
    return total.failed || !total.passed;
}
