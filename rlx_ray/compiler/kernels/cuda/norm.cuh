/* What both norms share: s = x (+ bias) (+ residual), a row of it in the registers of WARPS warps. */
#ifndef RLX_NORM_CUH
#define RLX_NORM_CUH

#include "rlx.cuh"

template <class T, int N, int WARPS> struct NormRow {
    static constexpr int LANES = 32 * WARPS, V = vector_width<T>(N);
    static constexpr int COUNT = ceil_div(N / V, LANES); /* vectors of a thread: i, i + LANES, ... */
    float s[COUNT][V];                                   /* zero behind the row's end */
    int lane;

    /* f(vector, column) for the vectors of this thread. */
    template <class F> RLX_MEMBER void each(F f) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const int column = (lane + i * LANES) * V;
            if (column < N) f(s[i], column);
        }
    }

    /* Pointers to the row; bias, residual and sum (where s goes) may be null. All reads stand
     * before the first use: they are under way together. */
    template <bool BIAS, bool RESIDUAL, bool SUM>
    RLX_MEMBER void read(const T *x, const T *residual, const float *bias, T *sum) {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
#pragma unroll
            for (int j = 0; j < V; j++) s[i][j] = 0;
        each([&](float(&v)[V], int column) { load<V>(x + column, v); });
        if constexpr (RESIDUAL) each([&](float(&v)[V], int column) { add<V>(residual + column, v); });
        if constexpr (BIAS) each([&](float(&v)[V], int column) { add<V>(bias + column, v); });
        if constexpr (SUM) each([&](float(&v)[V], int column) { store<V>(sum + column, v); });
    }

    /* The sum over the row of s. */
    RLX_MEMBER float total(float *part) {
        float sum = 0;
        each([&](float(&v)[V], int) {
#pragma unroll
            for (int j = 0; j < V; j++) sum += v[j];
        });
        return block_sum<WARPS>(sum, part);
    }

    /* The sum over the row of (s - from)^2. */
    RLX_MEMBER float squares(float from, float *part) {
        float sum = 0;
        each([&](float(&v)[V], int) {
#pragma unroll
            for (int j = 0; j < V; j++) sum += (v[j] - from) * (v[j] - from);
        });
        return block_sum<WARPS>(sum, part);
    }
};

#endif
