/* The thread pool that every variant of a process runs on (ABI version below).
 *
 * Threads are the host language's: each worker enters rlx_pool_worker once and stays there. A job
 * is a list of regions; thread t of T takes the t-th contiguous share of a region's tiles, helps out
 * in the shares of slower threads once its own is done, and all meet at a barrier behind each
 * region. Which thread runs a tile never changes its bits. Jobs are admitted one at a time, first come first served,
 * so that several variants share the pool fairly. Waiting spins for a moment, then parks in the
 * kernel. No libc: futex by system call. */
#include "rlx_abi.h"

#define EXPORT __attribute__((visibility("default")))
#define LINE __attribute__((aligned(64)))
/* Pause instructions before a waiting thread parks: about 10 microseconds. Longer than most waits at a
 * barrier; but where other processes want the processors, and two threads of the pool share one,
 * the other cannot go on before this one parks: with 8000 a step on busy processors took about four
 * times as long (docs/performance.md). */
#define SPINS 500

/* How far a thread's share of a region has been taken: one word for odd and one for even regions,
 * so that the next region's can be set while this one's is in use. */
typedef struct {
    LINE long next[2];
} rlx_share;

typedef struct {
    LINE int generation; /* counts jobs; workers wait for it to move */
    LINE int sleepers;   /* threads parked on any word of the pool */
    LINE int arrived;    /* threads at the barrier */
    LINE int barrier;    /* counts barriers */
    LINE int next;       /* next ticket of the admission queue */
    LINE int serving;    /* ticket that may run */
    LINE int threads;    /* T, the caller of a job included */
    int stopping;
    const rlx_region *regions;
    long count;
    const rlx_frame *frame;
    rlx_share shares[];
} rlx_pool;

#if defined(__x86_64__)
static inline void relax(void) { __asm__ volatile("pause"); }
static long futex(int *word, long op, long value) {
    long result;
    register long timeout __asm__("r10") = 0;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(202L), "D"(word), "S"(op), "d"(value), "r"(timeout)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
static inline void relax(void) { __asm__ volatile("isb"); }
static long futex(int *word, long op, long value) {
    register long x8 __asm__("x8") = 98;
    register long x0 __asm__("x0") = (long)word;
    register long x1 __asm__("x1") = op;
    register long x2 __asm__("x2") = value;
    register long x3 __asm__("x3") = 0;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}
#else
#error "pool.c knows x86-64 and aarch64"
#endif

#define FUTEX_WAIT_PRIVATE 128
#define FUTEX_WAKE_PRIVATE 129
#define LOAD(word) __atomic_load_n(&(word), __ATOMIC_SEQ_CST)

/* Wait until *word differs from `seen`. The sleeper is counted before it looks again, and the
 * other side changes the word before it looks for sleepers: neither can miss the other. */
static void await_change(rlx_pool *p, int *word, int seen) {
    for (int i = 0; i < SPINS; i++) {
        if (LOAD(*word) != seen) return;
        relax();
    }
    __atomic_fetch_add(&p->sleepers, 1, __ATOMIC_SEQ_CST);
    while (LOAD(*word) == seen) futex(word, FUTEX_WAIT_PRIVATE, seen);
    __atomic_fetch_sub(&p->sleepers, 1, __ATOMIC_SEQ_CST);
}

static void advance(rlx_pool *p, int *word) {
    __atomic_fetch_add(word, 1, __ATOMIC_SEQ_CST);
    if (LOAD(p->sleepers)) futex(word, FUTEX_WAKE_PRIVATE, 0x7fffffff);
}

static void meet(rlx_pool *p) {
    const int seen = LOAD(p->barrier);
    if (__atomic_add_fetch(&p->arrived, 1, __ATOMIC_SEQ_CST) == p->threads) {
        __atomic_store_n(&p->arrived, 0, __ATOMIC_SEQ_CST);
        advance(p, &p->barrier);
    } else {
        await_change(p, &p->barrier, seen);
    }
}

/* Set where a thread's share of a region begins; nobody uses that word before the next barrier. */
static void open_share(rlx_pool *p, long owner, long region) {
    const long start = p->regions[region].tiles * owner / p->threads;
    __atomic_store_n(&p->shares[owner].next[region % 2], start, __ATOMIC_RELAXED);
}

static void work(rlx_pool *p, long thread) {
    const rlx_frame *frame = p->frame;
    const rlx_region *regions = p->regions;
    const long count = p->count, threads = p->threads;
    char *scratch = frame->scratch + thread * frame->scratch_stride;
    for (long r = 0; r < count; r++) {
        const long tiles = regions[r].tiles;
        rlx_begin begin = regions[r].begin;
        if (r + 1 < count) open_share(p, thread, r + 1);
        for (long i = 0; i < threads; i++) {
            const long owner = (thread + i) % threads, end = tiles * (owner + 1) / threads;
            long *next = &p->shares[owner].next[r % 2], tile;
            while (__atomic_load_n(next, __ATOMIC_RELAXED) < end &&
                   (tile = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < end) {
                if (begin) begin(frame, scratch, regions[r].own);
                begin = 0;
                regions[r].run(frame, scratch, tile, regions[r].own);
            }
        }
        if (threads > 1) meet(p);
    }
}

EXPORT long rlx_pool_abi(void) { return RLX_ABI; }
EXPORT long rlx_pool_bytes(long threads) { return sizeof(rlx_pool) + threads * sizeof(rlx_share); }

/* `p` is zeroed memory of rlx_pool_bytes(threads) bytes, 64-byte aligned. */
EXPORT void rlx_pool_init(rlx_pool *p, int threads) { p->threads = threads; }

/* Enter as worker `thread`, 1 <= thread < T; returns when the pool stops. */
EXPORT void rlx_pool_worker(rlx_pool *p, long thread) {
    int seen = 0;
    for (;;) {
        await_change(p, &p->generation, seen);
        seen++;
        if (LOAD(p->stopping)) return;
        work(p, thread);
    }
}

/* Run a job as thread 0; returns 0 when its last region is done, 1 when the pool has stopped. */
EXPORT int rlx_pool_run(void *pool, const rlx_region *regions, long count,
                        const rlx_frame *frame) {
    rlx_pool *p = pool;
    const int ticket = __atomic_fetch_add(&p->next, 1, __ATOMIC_SEQ_CST);
    for (int now; (now = LOAD(p->serving)) != ticket;) await_change(p, &p->serving, now);
    const int stopped = LOAD(p->stopping);
    if (!stopped) {
        p->regions = regions;
        p->count = count;
        p->frame = frame;
        for (long owner = 0; owner < p->threads && count; owner++) open_share(p, owner, 0);
        if (p->threads > 1) advance(p, &p->generation);
        work(p, 0);
    }
    advance(p, &p->serving);
    return stopped;
}

/* Let the running job end, then send the workers home; later jobs are refused. */
EXPORT void rlx_pool_stop(rlx_pool *p) {
    const int ticket = __atomic_fetch_add(&p->next, 1, __ATOMIC_SEQ_CST);
    for (int now; (now = LOAD(p->serving)) != ticket;) await_change(p, &p->serving, now);
    __atomic_store_n(&p->stopping, 1, __ATOMIC_SEQ_CST);
    advance(p, &p->generation);
    advance(p, &p->serving);
}
