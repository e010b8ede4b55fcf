/* Vector mathematics, float32. Each function states its largest error, found over its whole range
 * against float64 by tests/toolchain/test_vmath.py. No function raises, and none returns NaN for a
 * finite argument. */
#ifndef RLX_VMATH_H
#define RLX_VMATH_H

#include "rt.h"

#define RLX_FMA(a, b, c) __builtin_elementwise_fma(a, b, c)

/* exp(x): x = n ln 2 + r with |r| <= ln 2 / 2, then a polynomial of degree 6 in r and n added to
 * the exponent bits. Clamped to [-87.3, 88.3]. Relative error <= 2.4e-7. */
RLX_INLINE vf vexp(vf x) {
    const vf magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number */
    x = vmin(vmax(x, splat(-87.3f)), splat(88.3f));
    vf n = RLX_FMA(x, splat(1.44269504f), magic) - magic;
    vf r = RLX_FMA(n, splat(-0.693145752f), x);
    r = RLX_FMA(n, splat(-1.42860677e-6f), r);
    vf p = splat(1.0f / 720);
    p = RLX_FMA(p, r, splat(1.0f / 120));
    p = RLX_FMA(p, r, splat(1.0f / 24));
    p = RLX_FMA(p, r, splat(1.0f / 6));
    p = RLX_FMA(p, r, splat(0.5f));
    p = RLX_FMA(p, r, splat(1.0f));
    p = RLX_FMA(p, r, splat(1.0f));
    vi bits = (__builtin_convertvector(n, vi) + 127) << 23;
    return p * (vf)bits;
}

/* erf(x): x P(x^2) / Q(x^2) on |x| <= 3.925, where erf is 1 in float32 from there on. Both
 * polynomials of degree 5 come from a reweighted least-squares fit of erf(x) / x on Chebyshev
 * points. Absolute error <= 6e-7. */
RLX_INLINE vf verf(vf x) {
    x = vmin(vmax(x, splat(-3.925f)), splat(3.925f));
    vf t = x * x;
    vf p = splat(2.046183603e-6f), q = splat(3.804872334e-5f);
    p = RLX_FMA(p, t, splat(2.848303691e-4f));
    p = RLX_FMA(p, t, splat(3.771847448e-3f));
    p = RLX_FMA(p, t, splat(5.276711112e-2f));
    p = RLX_FMA(p, t, splat(1.905769920e-1f));
    p = RLX_FMA(p, t, splat(1.128379146f));
    q = RLX_FMA(q, t, splat(1.163693030e-3f));
    q = RLX_FMA(q, t, splat(1.498177851e-2f));
    q = RLX_FMA(q, t, splat(1.141758224e-1f));
    q = RLX_FMA(q, t, splat(5.022271980e-1f));
    q = RLX_FMA(q, t, splat(1.0f));
    return x * p / q;
}

/* tanh(x) = 1 - 2 / (exp(2x) + 1), and the odd series near zero, where that cancels. Absolute
 * error <= 4e-7. */
RLX_INLINE vf vtanh(vf x) {
    vf t = x * x;
    vf s = splat(-17.0f / 315);
    s = RLX_FMA(s, t, splat(2.0f / 15));
    s = RLX_FMA(s, t, splat(-1.0f / 3));
    vf near = RLX_FMA(s * t, x, x);
    vf far = 1.0f - 2.0f / (vexp(x + x) + 1.0f);
    vi small = t < splat(0.01f);
    return (vf)(((vi)near & small) | ((vi)far & ~small));
}

/* 1 / sqrt(x) for x > 0: one square root and one division, each correctly rounded. */
RLX_INLINE vf vrsqrt(vf x) { return 1.0f / __builtin_elementwise_sqrt(x); }
RLX_INLINE vf vsqrt(vf x) { return __builtin_elementwise_sqrt(x); }

/* x / (1 + exp(-x)). Absolute error <= 4e-7 (1 + |x|). */
RLX_INLINE vf vsilu(vf x) { return x / (1.0f + vexp(-x)); }

/* GELU, x/2 (1 + erf(x / sqrt 2)), and its tanh form. Absolute error <= 1e-6 (1 + |x|). */
RLX_INLINE vf vgelu(vf x) {
    vf h = x * 0.5f;
    return RLX_FMA(h, verf(x * 0.707106781f), h);
}
RLX_INLINE vf vgelu_tanh(vf x) {
    vf h = x * 0.5f;
    return RLX_FMA(h, vtanh(0.797884561f * RLX_FMA(x * x * 0.044715f, x, x)), h);
}

#endif
