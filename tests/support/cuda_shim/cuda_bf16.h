/* bfloat16 on the host: the names that kernels/cuda uses, rounded to nearest, ties to even. */
#ifndef CUDA_SHIM_BF16_H
#define CUDA_SHIM_BF16_H

struct __nv_bfloat16 { unsigned short bits; };
struct __align__(4) __nv_bfloat162 { __nv_bfloat16 x, y; };

static inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    const unsigned bits = __float_as_uint(x);
    if (x != x) return {(unsigned short)0x7fff};
    return {(unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
static inline float __bfloat162float(__nv_bfloat16 x) {
    return __uint_as_float((unsigned)x.bits << 16);
}
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
static inline float2 __bfloat1622float2(__nv_bfloat162 a) {
    return {__bfloat162float(a.x), __bfloat162float(a.y)};
}
static inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return __floats2bfloat162_rn(__bfloat162float(a.x) + __bfloat162float(b.x),
                                 __bfloat162float(a.y) + __bfloat162float(b.y));
}

#endif
