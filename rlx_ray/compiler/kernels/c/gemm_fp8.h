/* GEMM with weights that are floats of 8 bits: c[m][n] = epilogue(sum over k of a[m][k] * w[k][n]),
 * w[k][n] = scale[n] * code[k][n], a and the sums float32.
 *
 * A code is E4M3 or E5M2: the upper bits of a float16, E4M3's with an exponent less by 8. Weights are
 * packed by models/packing.py in panels of RLX_PANEL columns: panel[k][column] bytes, behind them the
 * columns' scales (float32). Some terms of a panel at a time are made float32, once for all rows. */
#ifndef RLX_GEMM_FP8_H
#define RLX_GEMM_FP8_H

#include "gemm.h"

#define FP8_TERMS 64

typedef unsigned char fp8_codes __attribute__((vector_size(RLX_LANES), aligned(1), may_alias));
typedef unsigned short fp8_bits __attribute__((vector_size(RLX_LANES * 2)));
typedef _Float16 fp8_halves __attribute__((vector_size(RLX_LANES * 2)));

/* `terms` rows of a panel of codes as float32. */
RLX_INLINE void fp8_unpack(const int e5m2, long terms, const unsigned char *codes,
                           const float *scales, float *to) {
    vf scale[RLX_TILE_VECTORS];
    RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++)
        scale[j] = ld(scales + j * RLX_LANES) * (e5m2 ? 1.0f : 256.0f);
    for (; terms > 0; terms--, codes += RLX_PANEL, to += RLX_PANEL)
        RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++) {
            fp8_bits x = __builtin_convertvector(*(const fp8_codes *)(codes + j * RLX_LANES), fp8_bits);
            x = e5m2 ? x << 8 : (x & 0x80) << 8 | (x & 0x7f) << 7;
            st(to + j * RLX_LANES, __builtin_convertvector((fp8_halves)x, vf) * scale[j]);
        }
}

RLX_INLINE void gemm_fp8(long m, long n, const long k, const int e5m2, const float *a,
                         const unsigned char *w, float *c, long ldc, rlx_micro_kernel kernel,
                         const float *const *x) {
    if (m <= 0) return;
    const long tiles = (m + RLX_TILE_ROWS - 1) / RLX_TILE_ROWS, rows = m / tiles, extra = m % tiles;
    float part[FP8_TERMS * RLX_PANEL];
    rlx_micro t = {.lda = k, .ldc = ldc, .x = x, .panel = part};
    for (t.col = 0; t.col < n; t.col += RLX_PANEL, w += (k + 4) * RLX_PANEL) {
        const long width = least(RLX_PANEL, n - t.col);
        for (long k0 = 0; k0 < k; k0 += FP8_TERMS) {
            const rlx_micro_kernel own = k0 + FP8_TERMS >= k ? kernel : micro;
            t.k = least(FP8_TERMS, k - k0), t.more = k0 > 0, t.row = 0;
            fp8_unpack(e5m2, t.k, w + k0 * RLX_PANEL, (const float *)(w + k * RLX_PANEL), part);
            for (long i = 0; i < tiles; i++) {
                const long r = rows + (i < extra);
                t.a = a + t.row * k + k0, t.c = c + t.row * ldc + t.col;
                if (width < RLX_PANEL) gemm_edge(&t, r, width, own);
                else own(&t, r);
                t.row += r;
            }
        }
    }
}

#endif
