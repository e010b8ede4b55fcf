/* Primitive operations, for the common lowering of every logical kernel: plain loops over
 * compile-time extents, each the definition of its operation. */
#ifndef RLX_PRIM_H
#define RLX_PRIM_H

#include "rt.h"

/* y[i][j] = table[ids[i]][j]; an index outside the table reads row 0: the caller has checked. */
RLX_INLINE void take(const long rows, const long n, const long extent, const float *table,
                     const int *ids, float *y) {
    for (long r = 0; r < rows; r++) {
        long i = ids[r] >= 0 && ids[r] < extent ? ids[r] : 0;
        for (long j = 0; j < n; j++) y[r * n + j] = table[i * n + j];
    }
}

/* y[i] = i % period + first, counted on from start[i / period] where there is a start. */
RLX_INLINE void iota(const long rows, const long period, const long first, const int *start,
                     int *y) {
    for (long r = 0; r < rows; r++)
        y[r] = (int)(r % period + first) + (start ? start[r / period] : 0);
}

/* y[s][t] = 1 where t < lengths[s], else 0. */
RLX_INLINE void length_mask(const long sequences, const long tokens, const int *lengths, float *y) {
    for (long s = 0; s < sequences; s++)
        for (long t = 0; t < tokens; t++) y[s * tokens + t] = t < lengths[s] ? 1.0f : 0.0f;
}

/* y[s][t][k] = 1 where position past[s] + t sees key k, else 0: itself and those before it, of which
 * `window` at most, itself included (0: all). */
RLX_INLINE void causal_mask(const long sequences, const long tokens, const long keys,
                            const long window, const int *past, float *y) {
    for (long s = 0; s < sequences; s++)
        for (long t = 0; t < tokens; t++) {
            const long at = past[s] + t, first = window ? at + 1 - window : 0;
            for (long k = 0; k < keys; k++) *y++ = k >= first && k <= at ? 1.0f : 0.0f;
        }
}

/* y[r] = the m numbers of a[r], then the n of b[r]. */
RLX_INLINE void concat(const long rows, const long m, const long n, const float *a, const float *b,
                       float *y) {
    for (long r = 0; r < rows; r++) {
        for (long i = 0; i < m; i++) *y++ = a[r * m + i];
        for (long i = 0; i < n; i++) *y++ = b[r * n + i];
    }
}

/* y[m][n] = sum over k of a[m][k] w[k][n], w in panels as in gemm.h. */
RLX_INLINE void dot_panels(const long m, const long n, const long k, const float *a, const float *w,
                           float *y) {
    for (long r = 0; r < m; r++) {
        for (long c = 0; c < n; c += RLX_PANEL) {
            float s[RLX_PANEL] = {0};
            const float *panel = w + c * k;
            for (long i = 0; i < k; i++)
                RLX_UNROLL for (long j = 0; j < RLX_PANEL; j++)
                    s[j] += a[r * k + i] * panel[i * RLX_PANEL + j];
            for (long j = 0; j < RLX_PANEL && c + j < n; j++) y[r * n + c + j] = s[j];
        }
    }
}

/* y[b][m][n] = sum over k of a[b][m][k] w[b][k][n], all row-major. */
RLX_INLINE void dot_batched(const long batch, const long m, const long n, const long k,
                            const float *a, const float *w, float *y) {
    for (long b = 0; b < batch; b++, a += m * k, w += k * n, y += m * n) {
        for (long i = 0; i < m * n; i++) y[i] = 0;
        for (long r = 0; r < m; r++)
            for (long i = 0; i < k; i++)
                for (long c = 0; c < n; c++) y[r * n + c] += a[r * k + i] * w[i * n + c];
    }
}

/* y[i0][i1][i2][i3] = x[i0 s0 + i1 s1 + i2 s2 + i3 s3]: transpose, narrow and expand in one. */
RLX_INLINE void strided(const long n0, const long n1, const long n2, const long n3, const long s0,
                        const long s1, const long s2, const long s3, const float *x, float *y) {
    for (long a = 0; a < n0; a++)
        for (long b = 0; b < n1; b++)
            for (long c = 0; c < n2; c++)
                for (long d = 0; d < n3; d++) *y++ = x[a * s0 + b * s1 + c * s2 + d * s3];
}

enum { REDUCE_SUM, REDUCE_MAX };

/* y[a][c] = the sum or the maximum over b of x[a][b][c]. */
RLX_INLINE void reduce(const long outer, const long extent, const long inner, const int kind,
                       const float *x, float *y) {
    for (long a = 0; a < outer; a++, x += extent * inner, y += inner) {
        for (long c = 0; c < inner; c++) y[c] = x[c];
        for (long b = 1; b < extent; b++)
            for (long c = 0; c < inner; c++) {
                float v = x[b * inner + c];
                y[c] = kind == REDUCE_MAX ? (v > y[c] ? v : y[c]) : y[c] + v;
            }
    }
}

#endif
