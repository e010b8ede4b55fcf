/* Functions of one float32, by the names that ir/mir.py prints: kernels/c/vmath.h has them for
 * registers of the CPU. CUDA's own expf, erff and tanhf are within 2, 2 and 1 ulp. */
#ifndef RLX_MATH_CUH
#define RLX_MATH_CUH

#include "rlx.cuh"

RLX_DEVICE float splat(float x) { return x; }
RLX_DEVICE float vmax(float a, float b) { return fmaxf(a, b); }
RLX_DEVICE float vexp(float x) { return expf(x); }
RLX_DEVICE float verf(float x) { return erff(x); }
RLX_DEVICE float vtanh(float x) { return tanhf(x); }
RLX_DEVICE float vsqrt(float x) { return sqrtf(x); }
RLX_DEVICE float vrsqrt(float x) { return rsqrtf(x); }
RLX_DEVICE float vsame(float x) { return x; }
RLX_DEVICE float vrelu(float x) { return fmaxf(x, 0.0f); }

/* x / (1 + exp(-x)). The quick division is within 2 ulp, and 0 where the true one is below 1e-36. */
RLX_DEVICE float vsilu(float x) { return __fdividef(x, 1.0f + expf(-x)); }

/* GELU, x/2 (1 + erf(x / sqrt 2)), and its tanh form (arXiv:1606.08415). */
RLX_DEVICE float vgelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.707106781f)); }
RLX_DEVICE float vgelu_tanh(float x) {
    return 0.5f * x * (1.0f + tanhf(0.797884561f * (x + 0.044715f * x * x * x)));
}

#endif
