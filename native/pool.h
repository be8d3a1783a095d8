/* The context: a kernel set, its threads, its scratch.
 *
 * An op runs et_parallel one or more times. Tasks must write disjoint outputs and must not depend on which thread runs
 * them: then results do not depend on the number of threads. */
#ifndef ET_POOL_H
#define ET_POOL_H

#include "table.h"

/* Scratch, in floats: one block that all threads share, and one for each thread. A kernel set asserts that it fits. */
#define ET_SHARED_FLOATS (400 * 1024)
#define ET_THREAD_FLOATS (104 * 1024)

/* Runs task(arg, 0 .. n_tasks-1, thread) on the context's threads, the caller among them, in any order, and returns
 * when all are done; 0 <= thread < threads. One task runs on the caller alone, so small work should be one task. */
void et_parallel(et_context *ctx, void (*task)(void *arg, int task, int thread), void *arg, int n_tasks);

/* A context with its workers, scratch being et_scratch_bytes(threads) big and aligned: ET_OK or ET_NO_MEMORY. */
int et_pool_create(et_context **ctx, const struct et_kernel_set *kernels, enum et_precision precision, int threads,
                   float *scratch);

int64_t et_now_ns(void); /* of a clock that only goes up */

int et_threads(const et_context *ctx);          /* those that work */
float *et_shared(et_context *ctx);              /* ET_SHARED_FLOATS, 64-byte aligned; used by matmul_* */
float *et_scratch(et_context *ctx, int thread); /* ET_THREAD_FLOATS, 64-byte aligned; used by matmul_* while it runs */
/* The device that the context's ops run on, or NULL; and what became of it, ET_OK until it fails. */
struct et_device;
void et_set_device(et_context *ctx, const struct et_device *device);
const struct et_device *et_device_of(const et_context *ctx);
int et_failure(const et_context *ctx);
void et_fail(et_context *ctx, int code);
const struct et_kernel_set *et_context_kernels(const et_context *ctx);
enum et_precision et_precision(const et_context *ctx);

#endif
