/* One head of rotary positions, over LANES neighbouring lanes: each has some vectors of the head's
 * first half, and those that meet them in the second. */
#ifndef RLX_ROPE_CUH
#define RLX_ROPE_CUH

#include "rlx.cuh"

/* The least power of two that is not below n, at most 32. */
RLX_CONSTANT int lanes_for(int n) {
    int lanes = 1;
    while (lanes < n && lanes < 32) lanes *= 2;
    return lanes;
}

template <class T, int DIM> struct RotaryHead {
    static constexpr int HALF = DIM / 2, V = vector_width<T>(HALF);
    static constexpr int LANES = lanes_for(HALF / V), COUNT = ceil_div(HALF / V, LANES);
    float low[COUNT][V], high[COUNT][V];
    int lane;

    /* f(low, high, i) for each pair of vectors, i the first one's place in the half. */
    template <class F> RLX_MEMBER void each(F f) {
#pragma unroll
        for (int n = 0; n < COUNT; n++) {
            const int i = (lane + n * LANES) * V;
            if (i < HALF) f(low[n], high[n], i);
        }
    }

    template <bool BIAS> RLX_MEMBER void read(const T *x, const float *bias) {
        each([&](float(&a)[V], float(&b)[V], int i) {
            load<V>(x + i, a);
            load<V>(x + HALF + i, b);
            if constexpr (BIAS) {
                add<V>(bias + i, a);
                add<V>(bias + HALF + i, b);
            }
        });
    }

    /* RMS norm with a gain, if `wanted`; all lanes of the warp take part. */
    RLX_MEMBER void norm(const float *gain, float eps, bool wanted) {
        float squares = 0;
        each([&](float(&a)[V], float(&b)[V], int) {
#pragma unroll
            for (int j = 0; j < V; j++) squares += a[j] * a[j] + b[j] * b[j];
        });
        const float scale = rsqrtf(warp_sum<LANES>(squares) / DIM + eps);
        if (!wanted) return;
        each([&](float(&a)[V], float(&b)[V], int i) {
            float g[V], h[V];
            load<V>(gain + i, g);
            load<V>(gain + HALF + i, h);
#pragma unroll
            for (int j = 0; j < V; j++) a[j] *= scale * g[j], b[j] *= scale * h[j];
        });
    }

    /* By the angles whose cosines, then sines, `cos_sin` has. */
    RLX_MEMBER void turn(const float *cos_sin) {
        each([&](float(&a)[V], float(&b)[V], int i) {
            float c[V], s[V];
            load<V>(cos_sin + i, c);
            load<V>(cos_sin + HALF + i, s);
#pragma unroll
            for (int j = 0; j < V; j++) {
                const float x = a[j], y = b[j];
                a[j] = x * c[j] - y * s[j], b[j] = y * c[j] + x * s[j];
            }
        });
    }

    RLX_MEMBER void write(T *y) {
        each([&](float(&a)[V], float(&b)[V], int i) {
            store<V>(y + i, a);
            store<V>(y + HALF + i, b);
        });
    }
};

#endif
