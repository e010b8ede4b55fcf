/* Fibers: a block's threads, the barrier between them, and the launch of a grid. */
#ifndef CUDA_SHIM_FIBERS_H
#define CUDA_SHIM_FIBERS_H

enum {
    SHIM_THREADS = 1024,  /* of a block, at most */
    SHIM_STACK = 1 << 17, /* bytes of a fiber's stack */
    SHIM_SHARED = 1 << 18,
    SHIM_GUARD = 4096, /* bytes behind a block's shared memory that nobody may write */
    SHIM_COPIES = 512  /* asynchronous copies of one thread under way, at most */
};

/* A copy to shared memory under way: `bytes` of 16 from `from`, the others become zero. */
struct shim_copy {
    void *to;
    const void *from;
    int bytes, group;
};

struct shim_fiber {
    void *stack; /* where it stopped */
    uint3 thread;
    int index, copies, groups;
    shim_copy pending[SHIM_COPIES];
};

static shim_fiber shim_fibers[SHIM_THREADS], *shim_now;
static int shim_ready[SHIM_THREADS], shim_first, shim_count, shim_alive, shim_threads, shim_arrived;
static unsigned shim_order;
static unsigned long long shim_random;
static void *shim_caller;
static void (*shim_body)();
static char *shim_stacks;
static const char *shim_error;
static uint3 blockIdx;
static dim3 blockDim, gridDim;
__attribute__((aligned(16))) static unsigned char shim_dynamic[SHIM_SHARED];
extern "C" char __start_rlx_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_rlx_shared[] __attribute__((weak, visibility("hidden")));
#define threadIdx (shim_now->thread)

/* Saves what the ABI wants kept and the stack in *from, and goes on where `to` was saved. A new
 * fiber's stack looks as if it had been saved at the entry of its function. */
#if defined __x86_64__
enum { SHIM_SAVED = 8, SHIM_ENTRY = 6 };
__attribute__((naked, noinline)) static void shim_switch(void **from, void *to) {
    __asm__("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
            "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
            "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
}
#elif defined __aarch64__
enum { SHIM_SAVED = 20, SHIM_ENTRY = 11 };
__attribute__((naked, noinline)) static void shim_switch(void **from, void *to) {
    __asm__("stp x19, x20, [sp, #-160]!\n stp x21, x22, [sp, #16]\n stp x23, x24, [sp, #32]\n"
            "stp x25, x26, [sp, #48]\n stp x27, x28, [sp, #64]\n stp x29, x30, [sp, #80]\n"
            "stp d8, d9, [sp, #96]\n stp d10, d11, [sp, #112]\n stp d12, d13, [sp, #128]\n"
            "stp d14, d15, [sp, #144]\n mov x9, sp\n str x9, [x0]\n mov sp, x1\n"
            "ldp x21, x22, [sp, #16]\n ldp x23, x24, [sp, #32]\n ldp x25, x26, [sp, #48]\n"
            "ldp x27, x28, [sp, #64]\n ldp x29, x30, [sp, #80]\n ldp d8, d9, [sp, #96]\n"
            "ldp d10, d11, [sp, #112]\n ldp d12, d13, [sp, #128]\n ldp d14, d15, [sp, #144]\n"
            "ldp x19, x20, [sp], #160\n ret\n");
}
#endif

/* Back to the caller of the launch; what is left of the block is dropped. */
static void shim_leave() {
    void *dropped;
    shim_switch(&dropped, shim_caller);
}

static void shim_fail(const char *why) {
    if (!shim_error) shim_error = why;
    shim_leave();
}

static void shim_next() {
    shim_fiber *const self = shim_now;
    if (!shim_count) {
        if (shim_alive) shim_fail("threads wait for others that never come");
        shim_leave();
    }
    shim_now = shim_fibers + shim_ready[shim_first];
    shim_first = (shim_first + 1) % SHIM_THREADS, shim_count--;
    if (shim_now != self) shim_switch(&self->stack, shim_now->stack);
}

/* Makes `count` threads ready from `from` on: ascending (order 0), descending (1) or shuffled. */
static void shim_release(int from, int count) {
    int *const ready = shim_ready, end = shim_first + shim_count;
    for (int i = 0; i < count; i++)
        ready[(end + i) % SHIM_THREADS] = from + (shim_order == 1 ? count - 1 - i : i);
    for (int i = count - 1; i > 0 && shim_order > 1; i--) {
        shim_random = shim_random * 6364136223846793005ull + 1442695040888963407ull;
        int *a = ready + (end + i) % SHIM_THREADS;
        int *b = ready + (end + (int)((shim_random >> 33) % (unsigned)(i + 1))) % SHIM_THREADS;
        const int other = *a;
        *a = *b, *b = other;
    }
    shim_count += count;
}

static void __syncthreads() {
    if (++shim_arrived == shim_threads) shim_arrived = 0, shim_release(0, shim_threads);
    shim_next();
}

static void shim_thread() {
    shim_body();
    shim_alive--;
    shim_next();
}

static void shim_reset_warps();

static void shim_one_block(int shared) {
    memset(shim_dynamic, 0xff, shared + SHIM_GUARD);
    memset(__start_rlx_shared, 0xff, __stop_rlx_shared - __start_rlx_shared);
    shim_first = shim_count = shim_arrived = 0;
    shim_alive = shim_threads;
    shim_reset_warps();
    for (int i = 0; i < shim_threads; i++) {
        shim_fiber *f = shim_fibers + i;
        void **top = (void **)(shim_stacks + (size_t)(i + 1) * SHIM_STACK - 64);
        f->stack = top - SHIM_SAVED;
        top[SHIM_ENTRY - SHIM_SAVED] = (void *)shim_thread;
        f->index = i, f->copies = f->groups = 0;
        f->thread = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    }
    shim_release(0, shim_threads);
    shim_now = shim_fibers + shim_ready[0];
    shim_first = 1, shim_count--;
    shim_switch(&shim_caller, shim_now->stack);
    for (int i = shared; i < shared + SHIM_GUARD; i++)
        if (shim_dynamic[i] != 0xff && !shim_error)
            shim_error = "shared memory was written behind what was asked for";
}

/* `geometry` is the grid's and the block's extents. Null if all went well, else what did not. */
static const char *shim_launch(const unsigned *geometry, unsigned shared, unsigned order) {
    gridDim = {geometry[0], geometry[1], geometry[2]};
    blockDim = {geometry[3], geometry[4], geometry[5]};
    shim_threads = (int)(blockDim.x * blockDim.y * blockDim.z);
    shim_error = 0, shim_order = order, shim_random = order;
    if (shim_threads < 1 || shim_threads > SHIM_THREADS || shim_threads % 32)
        return "a block has 32 to 1024 threads, a multiple of 32";
    if (shared > SHIM_SHARED - SHIM_GUARD) return "no device has so much shared memory";
    if (!shim_stacks) /* read, write; private, anonymous */
        shim_stacks = (char *)mmap(0, (size_t)SHIM_THREADS * SHIM_STACK, 3, 0x22, -1, 0);
    for (unsigned z = 0; z < gridDim.z; z++)
        for (unsigned y = 0; y < gridDim.y; y++)
            for (unsigned x = 0; x < gridDim.x; x++) {
                blockIdx = {x, y, z};
                shim_one_block((int)shared);
                if (shim_error) return shim_error;
            }
    return 0;
}

template <int... I> struct shim_indices {};
template <int N, int... I> struct shim_count_to : shim_count_to<N - 1, N - 1, I...> {};
template <int... I> struct shim_count_to<0, I...> { typedef shim_indices<I...> all; };

/* A kernel whose arguments are all pointers. */
template <class... A> struct shim_call {
    static inline void (*kernel)(A...);
    static inline void *const *arguments;
    template <int... I> static void apply(shim_indices<I...>) { kernel((A)arguments[I]...); }
    static void run() { apply(typename shim_count_to<sizeof...(A)>::all()); }
    static const char *start(void (*what)(A...), const unsigned *geometry, unsigned shared,
                             void *const *with, unsigned given, unsigned order) {
        if (given != sizeof...(A)) return "the kernel takes another number of arguments";
        kernel = what, arguments = with, shim_body = run;
        return shim_launch(geometry, shared, order);
    }
};
template <class... A> static shim_call<A...> shim_call_of(void (*)(A...)) { return {}; }

/* RLX_EXPORT(name): name_launch, which Python calls. */
#define RLX_EXPORT(name) \
    extern "C" __attribute__((visibility("default"))) const char *name##_launch( \
        const unsigned *geometry, unsigned shared, void *const *arguments, unsigned given, \
        unsigned order) { \
        return shim_call_of(name).start(name, geometry, shared, arguments, given, order); \
    }

extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_type_mismatch_minimal() {
    shim_fail("an address is not aligned to what is read or written there");
}

#endif
