/* Layer normalisation of each row:  y = (x - mean) / sqrt(var + eps) * g + b
 *
 * mean and var are over the row's n elements, var by a second pass over x - mean. */
#ifndef RLX_NORM_H
#define RLX_NORM_H

#include "vmath.h"

RLX_INLINE void layer_norm(const long rows, const long n, const float eps, const float *x,
                           const float *g, const float *b, float *y) {
    const long whole = n - n % RLX_LANES;
    for (long r = 0; r < rows; r++, x += n, y += n) {
        vf s0 = {0}, s1 = {0};
        long i = 0;
        for (; i + 2 * RLX_LANES <= whole; i += 2 * RLX_LANES) {
            s0 += ld(x + i);
            s1 += ld(x + i + RLX_LANES);
        }
        if (i < whole) s0 += ld(x + i);
        float sum = lanes_sum(s0 + s1);
        for (i = whole; i < n; i++) sum += x[i];
        const float mean = sum / n;

        s0 = s1 = (vf){0};
        for (i = 0; i + 2 * RLX_LANES <= whole; i += 2 * RLX_LANES) {
            vf d0 = ld(x + i) - mean, d1 = ld(x + i + RLX_LANES) - mean;
            s0 += d0 * d0;
            s1 += d1 * d1;
        }
        if (i < whole) {
            vf d = ld(x + i) - mean;
            s0 += d * d;
        }
        float squares = lanes_sum(s0 + s1);
        for (i = whole; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
        const float scale = vrsqrt(splat(squares / n + eps))[0];

        for (i = 0; i < whole; i += RLX_LANES)
            st(y + i, (ld(x + i) - mean) * scale * ld(g + i) + ld(b + i));
        for (; i < n; i++) y[i] = (x[i] - mean) * scale * g[i] + b[i];
    }
}

/* Softmax of each row over its n elements:  y = exp(x - max) / sum exp(x - max). */
RLX_INLINE void softmax(const long rows, const long n, const float *x, float *y) {
    const long whole = n - n % RLX_LANES;
    for (long r = 0; r < rows; r++, x += n, y += n) {
        float most = x[0];
        vf m = splat(most);
        long i = 0;
        for (; i < whole; i += RLX_LANES) m = vmax(m, ld(x + i));
        most = lanes_max(m);
        for (; i < n; i++) most = x[i] > most ? x[i] : most;
        vf s = {0};
        for (i = 0; i < whole; i += RLX_LANES) {
            vf e = vexp(ld(x + i) - most);
            st(y + i, e);
            s += e;
        }
        float sum = lanes_sum(s);
        if (i < n) {
            vf e = vexp(ld(x + i) - most);
            st_part(y + i, e, n - i);
            for (long j = 0; j < n - i; j++) sum += e[j];
        }
        const float scale = 1.0f / sum;
        for (i = 0; i < n; i++) y[i] *= scale;
    }
}

#endif
