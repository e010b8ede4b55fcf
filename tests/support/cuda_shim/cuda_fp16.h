/* Half precision on the host: the names that kernels/cuda uses, rounded to nearest, ties to even. */
#ifndef CUDA_SHIM_FP16_H
#define CUDA_SHIM_FP16_H

struct __half { _Float16 value; };
struct __align__(4) __half2 { __half x, y; };

static inline __half __float2half_rn(float x) { return {(_Float16)x}; }
static inline float __half2float(__half x) { return (float)x.value; }
static inline __half2 __floats2half2_rn(float x, float y) {
    return {__float2half_rn(x), __float2half_rn(y)};
}
static inline float2 __half22float2(__half2 a) { return {__half2float(a.x), __half2float(a.y)}; }
static inline __half2 __hsub2(__half2 a, __half2 b) {
    return {{(_Float16)(a.x.value - b.x.value)}, {(_Float16)(a.y.value - b.y.value)}};
}

#endif
