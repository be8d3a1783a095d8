/* The emulated device: fibers, the scheduler of a block, what warps do together, and the device that contexts open. */
#include "emulate.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <algorithm>
#include <string>
#include <vector>

#include "device.h"
#include "launch.h"

#if !defined __x86_64__
#error "the emulated GPU switches fibers on x86-64 alone"
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

thread_local emulated_index threadIdx, blockIdx, blockDim, gridDim;

namespace {

/* ---- fibers ---- */

enum { STACK = 256 * 1024 };
enum waiting { READY, FOR_WARP, FOR_BLOCK, ENDED };

struct copy {
    void *to;
    const void *from;
    int bytes, group;
};

struct fiber {
    void *stack, *pointer, *fake_stack; /* the last is the sanitizer's */
    waiting state;
    std::vector<copy> copies;
    int groups; /* of copies that were begun and ended */
};

struct warp {
    void *lanes[ET_WARP];
    void (*together)(void *const lanes[]);
    int arrived;
};

struct block {
    std::vector<fiber> fibers;
    std::vector<warp> warps;
    unsigned char *shared;
    size_t shared_bytes;
    const char *kernel;
    void (*run)(const void *args);
    const void *args;
    void *scheduler;
    uint64_t chance;
};
thread_local block now;

[[noreturn]] void refuse(const char *why) {
    fprintf(stderr, "%s, block %u %u %u, thread %u: %s\n", now.kernel, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x,
            why);
    abort();
}

} // namespace

/* Saves the registers that a call keeps on the stack, whose pointer goes to *from, and goes on where `to` was left. */
extern "C" void emulated_switch(void **from, void *to);
__asm__(".text\n.globl emulated_switch\n.type emulated_switch, @function\nemulated_switch:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
        ".size emulated_switch, . - emulated_switch\n");

namespace {

/* The sanitizer wants to know whose stack is used. */
#ifdef __SANITIZE_ADDRESS__
thread_local const void *scheduler_stack;
thread_local size_t scheduler_size;
void before_switch(void **fake, const void *stack, size_t size) { __sanitizer_start_switch_fiber(fake, stack, size); }
void arrived_in_fiber(void *fake) { __sanitizer_finish_switch_fiber(fake, &scheduler_stack, &scheduler_size); }
void arrived_in_scheduler(void *fake) { __sanitizer_finish_switch_fiber(fake, nullptr, nullptr); }
#else
const void *scheduler_stack;
size_t scheduler_size;
void before_switch(void **, const void *, size_t) {}
void arrived_in_fiber(void *) {}
void arrived_in_scheduler(void *) {}
#endif

void leave(fiber &f, waiting state) {
    unsigned self = threadIdx.x;
    f.state = state;
    before_switch(state == ENDED ? nullptr : &f.fake_stack, scheduler_stack, scheduler_size);
    emulated_switch(&f.pointer, now.scheduler);
    arrived_in_fiber(f.fake_stack);
    threadIdx.x = self;
}

void fiber_main() {
    fiber &f = now.fibers[threadIdx.x];
    arrived_in_fiber(nullptr);
    now.run(now.args);
    if (!f.copies.empty())
        refuse("ends with asynchronous copies that it did not wait for");
    leave(f, ENDED);
}

/* Where a new fiber begins: as emulated_switch leaves it, and the stack as a call does. */
void start(fiber &f) {
    void **top = (void **)((char *)f.stack + STACK);
    *--top = nullptr;
    *--top = (void *)fiber_main;
    for (int i = 0; i < 6; i++)
        *--top = nullptr;
    f.pointer = top;
    f.state = READY;
    f.groups = 0;
}

void resume(unsigned thread) {
    fiber &f = now.fibers[thread];
    void *fake = nullptr;
    threadIdx.x = thread;
    before_switch(&fake, f.stack, STACK);
    emulated_switch(&now.scheduler, f.pointer);
    arrived_in_scheduler(fake);
}

uint64_t random_number() {
    now.chance = now.chance * 6364136223846793005u + 1442695040888963407u;
    return now.chance >> 33;
}

void run_block() {
    std::vector<unsigned> order(now.fibers.size());
    for (unsigned i = 0; i < order.size(); i++)
        order[i] = i;
    memset(now.shared, 0xff, now.shared_bytes); /* NaN, in float and bf16 */
    for (fiber &f : now.fibers)
        start(f);
    for (warp &w : now.warps)
        w.arrived = 0;
    uint64_t asleep = random_number(); /* warps, by bit, that come to the next barrier after all others */
    for (;;) {
        for (size_t i = order.size() - 1; i; i--)
            std::swap(order[i], order[random_number() % (i + 1)]);
        bool progress = false;
        for (unsigned thread : order)
            while (now.fibers[thread].state == READY && !(asleep >> thread / ET_WARP & 1)) {
                resume(thread);
                progress = true;
            }
        if (progress)
            continue;
        if (asleep) {
            asleep = 0;
            continue;
        }
        auto waits = [](waiting state) {
            return std::count_if(now.fibers.begin(), now.fibers.end(), [&](fiber &f) { return f.state == state; });
        };
        size_t all = now.fibers.size();
        if ((size_t)waits(ENDED) == all)
            return;
        if ((size_t)waits(FOR_BLOCK) != all)
            refuse("the threads of the block wait for each other in different places");
        for (fiber &f : now.fibers)
            f.state = READY;
        asleep = random_number();
    }
}

fiber &self() { return now.fibers[threadIdx.x]; }

} // namespace

/* ---- what kernel.h declares ---- */

void *emulated_shared_memory(size_t bytes) {
    if (bytes > now.shared_bytes)
        refuse("has less shared memory than it uses");
    return now.shared;
}

void __syncthreads() { leave(self(), FOR_BLOCK); }

void emulated_together(void *mine, void (*together)(void *const lanes[])) {
    warp &w = now.warps[threadIdx.x / ET_WARP];
    if (w.arrived && w.together != together)
        refuse("the lanes of its warp do different things together");
    w.together = together;
    w.lanes[threadIdx.x % ET_WARP] = mine;
    if (++w.arrived < ET_WARP) {
        leave(self(), FOR_WARP);
        return;
    }
    together(w.lanes);
    w.arrived = 0;
    unsigned first = threadIdx.x / ET_WARP * ET_WARP;
    for (unsigned i = first; i < first + ET_WARP; i++)
        now.fibers[i].state = READY;
}

void emulated_nothing_together(void *const *) {}

void emulated_shuffle_together(void *const lanes[]) {
    for (int i = 0; i < ET_WARP; i++) {
        auto *lane = (emulated_shuffle *)lanes[i];
        if (lane->from < 0 || lane->from >= ET_WARP)
            refuse("shuffles from a lane that no warp has");
        lane->result = ((const emulated_shuffle *)lanes[lane->from])->value;
    }
}

static float bf16_of(uint32_t pair, int second) { return bits_to_float(second ? pair & 0xffff0000 : pair << 16); }

/* Sums are in float, in the order of the inner elements; a card adds in an order that it does not tell. */
void emulated_mma_together(void *const lanes[]) {
    float A[16][16], B[8][16];
    for (int i = 0; i < ET_WARP; i++) {
        auto *lane = (const emulated_mma *)lanes[i];
        int g = i / 4;
        int c = i % 4 * 2;
        for (int e = 0; e < 2; e++) {
            for (int r = 0; r < 4; r++)
                A[g + r % 2 * 8][c + r / 2 * 8 + e] = bf16_of(lane->a[r], e);
            for (int r = 0; r < 2; r++)
                B[g][c + r * 8 + e] = bf16_of(lane->b[r], e);
        }
    }
    for (int i = 0; i < ET_WARP; i++)
        for (int r = 0; r < 4; r++) {
            const float *x = A[i / 4 + r / 2 * 8];
            const float *y = B[i % 4 * 2 + r % 2];
            float sum = 0;
            for (int k = 0; k < 16; k++)
                sum += x[k] * y[k];
            ((const emulated_mma *)lanes[i])->d[r] += sum;
        }
}

static void load_matrices(void *const lanes[], int transposed) {
    uint16_t m[4][8][8];
    for (int i = 0; i < ET_WARP; i++) {
        const uint16_t *row = ((const emulated_matrices *)lanes[i])->row;
        if ((uintptr_t)row % 16)
            refuse("loads a row of a matrix that is not aligned to 16 bytes");
        memcpy(m[i / 8][i % 8], row, 16);
    }
    for (int i = 0; i < ET_WARP; i++)
        for (int j = 0; j < 4; j++) {
            int g = i / 4;
            int c = i % 4 * 2;
            uint32_t low = transposed ? m[j][c][g] : m[j][g][c];
            uint32_t high = transposed ? m[j][c + 1][g] : m[j][g][c + 1];
            ((const emulated_matrices *)lanes[i])->out[j] = low | high << 16;
        }
}

void emulated_matrices_together(void *const lanes[]) { load_matrices(lanes, 0); }
void emulated_transposed_together(void *const lanes[]) { load_matrices(lanes, 1); }

void emulated_copy_async(void *shared, const void *global, int bytes) {
    if ((uintptr_t)shared % 16 || (bytes && (uintptr_t)global % 16))
        refuse("copies asynchronously from or to a place that is not aligned to 16 bytes");
    if (bytes < 0 || bytes > 16)
        refuse("copies more asynchronously than 16 bytes at once");
    self().copies.push_back({shared, global, bytes, self().groups});
}

void emulated_commit_copies() { self().groups++; }

void emulated_wait_for_copies(int left) {
    fiber &f = self();
    auto later = [&](const copy &c) { return c.group >= f.groups - left; };
    for (const copy &c : f.copies)
        if (!later(c)) {
            memset(c.to, 0, 16);
            memcpy(c.to, c.from, (size_t)c.bytes);
        }
    f.copies.erase(std::remove_if(f.copies.begin(), f.copies.end(), [&](const copy &c) { return !later(c); }),
                   f.copies.end());
}

/* ---- the device ---- */

namespace {

struct function {
    const char *name;
    void (*run)(const void *args);
    size_t size;
};

/* A launch that waits to be begun. */
struct recorded {
    function *f;
    unsigned x, y, z, threads, shared;
    std::vector<unsigned char> args;
};

std::vector<recorded> *recording; /* what launches are added to instead of being begun */

std::vector<function> &functions() {
    static std::vector<function> all;
    return all;
}

void *find(void *, int kernel, int format) {
    std::string name = et_kernel_name(kernel, format);
    for (function &f : functions())
        if (name == f.name)
            return &f;
    return nullptr;
}

/* Stacks for `threads` fibers, kept for the next launch. */
void make_fibers(unsigned threads) {
    while (now.fibers.size() < threads) {
        fiber f = {};
        f.stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (f.stack == MAP_FAILED)
            abort();
        now.fibers.push_back(f);
    }
    for (; now.fibers.size() > threads; now.fibers.pop_back())
        munmap(now.fibers.back().stack, STACK);
    now.warps.resize(threads / ET_WARP);
}

/* As cuLaunchKernel. Memory is as exact as `shared` says, for the sanitizer. */
int launch(void *function_, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned, unsigned shared,
           void *, void **params, void **) {
    auto *f = (function *)function_;
    now.kernel = f->name;
    if (threads % ET_WARP || threads > ET_BLOCK || !threads || !x || !y || !z)
        refuse("is launched with a size that no card takes");
    if (recording) {
        auto *args = (const unsigned char *)params[0];
        recording->push_back({f, x, y, z, threads, shared, {args, args + f->size}});
        return 0;
    }
    now.run = f->run;
    now.args = params[0];
    now.shared = (unsigned char *)aligned_alloc(16, (shared + 15) / 16 * 16 + 16);
    now.shared_bytes = shared;
    make_fibers(threads);
    gridDim = {x, y, z};
    blockDim = {threads, 1, 1};
    for (blockIdx.z = 0; blockIdx.z < z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < x; blockIdx.x++)
                run_block();
    free(now.shared);
    return 0;
}

/* As on a card: nothing that waits is allowed in a recording. */
int query(void *) { return recording ? 900 : 0; }

} // namespace

emulated_kernel::emulated_kernel(const char *name, void (*run)(const void *args), size_t size) {
    functions().push_back({name, run, size});
}

void emulated_begin_recording() { recording = new std::vector<recorded>; }

void *emulated_end_recording() {
    void *made = recording;
    recording = nullptr;
    return made;
}

void emulated_begin(void *made) {
    for (recorded &r : *(std::vector<recorded> *)made) {
        void *args = r.args.data();
        launch(r.f, r.x, r.y, r.z, r.threads, 1, 1, r.shared, nullptr, &args, nullptr);
    }
}

void emulated_forget(void *made) { delete (std::vector<recorded> *)made; }

extern "C" const struct et_device et_emulated_device = {find, launch, query, 1, nullptr, nullptr};
