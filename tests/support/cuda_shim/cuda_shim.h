/* The part of CUDA that kernels/cuda uses, for the host: one fiber per CUDA thread.
 *
 * A launch runs block after block. The threads of a block are fibers with stacks of their own; one
 * runs until it meets a barrier or an exchange with its warp, and the last one to arrive makes the
 * others ready again, in an order that the caller picks (ascending, descending, shuffled): kernels
 * that lack a barrier give other bits in another order. What real hardware leaves undefined fails
 * here where that is cheap to see:
 *
 *   shared memory begins as NaN in every block, and bytes behind what was asked for must stay as
 *   they are; a barrier that some threads never reach, and a warp-wide call that not all 32 lanes
 *   make, end the launch with a message; an asynchronous copy lands when it is waited for and not
 *   before; addresses are checked for the alignment of what is read there (-fsanitize=alignment). */
#ifndef CUDA_SHIM_H
#define CUDA_SHIM_H

#define RLX_EMULATED 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("rlx_shared")))

typedef unsigned long size_t;
struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
struct __align__(8) uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

extern "C" {
void *memcpy(void *, const void *, size_t);
void *memset(void *, int, size_t);
void *mmap(void *, size_t, int, int, int, long);
float expf(float);
float exp2f(float);
float logf(float);
float sqrtf(float);
float erff(float);
float tanhf(float);
float fmaxf(float, float);
float fminf(float, float);
float fabsf(float);
float fmaf(float, float, float);
}

#include "fibers.h"
#include "warps.h"

/* Global memory ----------------------------------------------------------------------------- */

template <class T> static inline T __ldg(const T *p) { return *p; }
template <class T> static inline T __ldcg(const T *p) { return *p; }
static inline int atomicAdd(int *p, int v) { return (*p += v) - v; }
static inline unsigned atomicAdd(unsigned *p, unsigned v) { return (*p += v) - v; }
static inline float atomicAdd(float *p, float v) { const float old = *p; *p += v; return old; }
static inline int atomicMax(int *p, int v) {
    const int old = *p;
    *p = old > v ? old : v;
    return old;
}
static inline void __threadfence() {}

/* Bits and numbers -------------------------------------------------------------------------- */

template <class To, class From> static inline To shim_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "another size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline unsigned __float_as_uint(float x) { return shim_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return shim_bits<int>(x); }
static inline float __uint_as_float(unsigned x) { return shim_bits<float>(x); }
static inline float __int_as_float(int x) { return shim_bits<float>(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((unsigned long long)a * b >> 32);
}
/* Byte i of the result is the byte of (b, a) that nibble i of s names. */
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
    const unsigned long long both = (unsigned long long)b << 32 | a;
    unsigned made = 0;
    for (int i = 0; i < 4; i++)
        made |= (unsigned)(both >> ((s >> (4 * i) & 7) * 8) & 255) << (8 * i);
    return made;
}
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __expf(float x) { return expf(x); }
static inline float __fdividef(float a, float b) { return a / b; }

#endif
