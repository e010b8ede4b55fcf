/* Counters around every kernel call, for `rlx-ray explain --profile`: never in a served artifact.
 *
 * Each thread has a line of COUNTER_CALLS counters; a call adds the ticks of the processor's time
 * stamp (x86-64) or virtual counter (aarch64) that passed. */
#ifndef RLX_COUNTERS_H
#define RLX_COUNTERS_H

#include "rlx_abi.h"

#if !defined COUNTER_THREADS || !defined COUNTER_CALLS
#error "the unit defines COUNTER_THREADS and COUNTER_CALLS: most threads, and its calls"
#endif

static unsigned long rlx_ticks[COUNTER_THREADS][COUNTER_CALLS];

#if defined(__x86_64__)
static inline unsigned long counter_now(void) {
    unsigned lo, hi;
    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return ((unsigned long)hi << 32) | lo;
}
#else
static inline unsigned long counter_now(void) {
    unsigned long now;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(now));
    return now;
}
#endif

__attribute__((visibility("default"))) unsigned long *rlx_counters(void) { return rlx_ticks[0]; }
__attribute__((visibility("default"))) unsigned long rlx_now(void) { return counter_now(); }

#define COUNTED(call, number)                                                                     \
    do {                                                                                          \
        const unsigned long since = counter_now();                                                \
        call;                                                                                     \
        rlx_ticks[(s - f->scratch) / f->scratch_stride % COUNTER_THREADS][number] +=              \
            counter_now() - since;                                                                \
    } while (0)

#endif
