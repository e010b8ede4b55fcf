/* Ground of every unit: vector types of the target's width, loads and stores, and the three memory
 * functions that the compiler may call on its own in freestanding code.
 *
 * The unit defines RLX_LANES (float32 lanes of a register), RLX_TILE_ROWS and RLX_TILE_VECTORS. */
#ifndef RLX_RT_H
#define RLX_RT_H

#include "rlx_abi.h"

#define RLX_PANEL (RLX_LANES * RLX_TILE_VECTORS)
#define RLX_INLINE static inline __attribute__((always_inline, unused))
#define RLX_KERNEL static __attribute__((noinline))
#define RLX_UNROLL _Pragma("clang loop unroll(full)")

typedef float vf __attribute__((vector_size(RLX_LANES * 4)));
typedef int vi __attribute__((vector_size(RLX_LANES * 4)));
typedef float vf_any __attribute__((vector_size(RLX_LANES * 4), aligned(4), may_alias));

RLX_INLINE long least(long a, long b) { return a < b ? a : b; }
RLX_INLINE vf ld(const float *p) { return *(const vf_any *)p; }
typedef int int_any __attribute__((aligned(1), may_alias));
typedef float float_any __attribute__((aligned(1), may_alias));
typedef _Float16 half_any __attribute__((aligned(1), may_alias));
typedef _Float16 vhalf __attribute__((vector_size(RLX_LANES * 2), aligned(2), may_alias));
RLX_INLINE vf ld_half(const char *p) { return __builtin_convertvector(*(const vhalf *)p, vf); }
RLX_INLINE void st(float *p, vf v) { *(vf_any *)p = v; }
RLX_INLINE vf splat(float x) { return x - (vf){0}; }
RLX_INLINE vf vmax(vf a, vf b) { return __builtin_elementwise_max(a, b); }
RLX_INLINE vf vmin(vf a, vf b) { return __builtin_elementwise_min(a, b); }

/* Store the first n lanes, 0 < n < RLX_LANES. */
RLX_INLINE void st_part(float *p, vf v, long n) {
    for (long i = 0; i < n; i++) p[i] = v[i];
}

/* Sum and maximum over the lanes, always in the same order. */
RLX_INLINE float lanes_sum(vf v) {
    float s[RLX_LANES];
    RLX_UNROLL for (int i = 0; i < RLX_LANES; i++) s[i] = v[i];
    RLX_UNROLL for (int step = RLX_LANES / 2; step; step /= 2) {
        RLX_UNROLL for (int i = 0; i < step; i++) s[i] += s[i + step];
    }
    return s[0];
}
RLX_INLINE float lanes_max(vf v) {
    float m[RLX_LANES];
    RLX_UNROLL for (int i = 0; i < RLX_LANES; i++) m[i] = v[i];
    RLX_UNROLL for (int step = RLX_LANES / 2; step; step /= 2) {
        RLX_UNROLL for (int i = 0; i < step; i++) m[i] = m[i] > m[i + step] ? m[i] : m[i + step];
    }
    return m[0];
}

/* The empty asm keeps the compiler from turning a loop into a call of the function it is in. */
__attribute__((used)) void *memcpy(void *to, const void *from, unsigned long n) {
    for (unsigned long i = 0; i < n; i++) {
        ((char *)to)[i] = ((const char *)from)[i];
        __asm__ volatile("");
    }
    return to;
}
__attribute__((used)) void *memset(void *to, int value, unsigned long n) {
    for (unsigned long i = 0; i < n; i++) {
        ((char *)to)[i] = (char)value;
        __asm__ volatile("");
    }
    return to;
}
__attribute__((used)) void *memmove(void *to, const void *from, unsigned long n) {
    if ((char *)to < (const char *)from) return memcpy(to, from, n);
    for (unsigned long i = n; i-- > 0;) {
        ((char *)to)[i] = ((const char *)from)[i];
        __asm__ volatile("");
    }
    return to;
}

#endif
