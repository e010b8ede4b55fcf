/* GEMM: c[m][n] = epilogue(sum over k of a[m][k] * w[k][n]), float32, compile-time m, n, k.
 *
 * a is row-major. w is packed in panels of RLX_PANEL columns: panel j holds w[k][j * RLX_PANEL ..]
 * for k = 0 .. K-1, one row of the panel after the other, zero beyond column n - 1.
 *
 * The micro-kernel keeps rows x RLX_TILE_VECTORS accumulators in registers. Panels are the outer
 * loop and rows the inner one, so that one panel's block of GEMM_KC rows stays in the first-level
 * cache while the rows of a stream past it; meanwhile the next panel is prefetched. Every element
 * of c is summed over k in ascending order whatever the tile shape, so equal rows give equal bits.
 */
#ifndef RLX_GEMM_H
#define RLX_GEMM_H

#include "rt.h"

#ifndef GEMM_KC
#define GEMM_KC 384
#endif
#define GEMM_UNROLL 8

typedef vf (*rlx_epilogue)(vf acc, const float *const *x, long row, long col);

/* One step of k: acc[r][j] += a[r][0] * b[j]. */
RLX_INLINE void micro_step(const int rows, const float *a, long lda, const float *b,
                           vf acc[][RLX_TILE_VECTORS]) {
    vf w[RLX_TILE_VECTORS];
    RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++) w[j] = ld(b + j * RLX_LANES);
    RLX_UNROLL for (int r = 0; r < rows; r++) {
        vf x = splat(a[r * lda]);
        RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++) acc[r][j] += x * w[j];
    }
}

/* acc[rows][vectors] += a[rows][0 .. k) * panel[0 .. k), touching `lines` cache lines of `ahead`
 * every GEMM_UNROLL steps. */
RLX_INLINE void micro(const int rows, long k, const float *a, long lda, const float *panel,
                      vf acc[][RLX_TILE_VECTORS], const char *ahead, const int lines) {
    long i = 0;
    for (; i + GEMM_UNROLL <= k; i += GEMM_UNROLL) {
        RLX_UNROLL for (int line = 0; line < lines; line++)
            __builtin_prefetch(ahead + line * 64, 0, 2);
        ahead += lines * 64;
        RLX_UNROLL for (int u = 0; u < GEMM_UNROLL; u++)
            micro_step(rows, a + i + u, lda, panel + (i + u) * RLX_PANEL, acc);
    }
    for (; i < k; i++) micro_step(rows, a + i, lda, panel + i * RLX_PANEL, acc);
}

/* One micro tile: rows from `row`, the panel's columns from `col`. first and last say whether the
 * sum over k begins or ends with this block of k. */
RLX_INLINE void gemm_tile(const int rows, long row, long col, const long n, long k, const float *a,
                          long lda, const float *panel, float *c, long ldc, int first, int last,
                          rlx_epilogue epilogue, const float *const *x, const char *ahead,
                          const int lines) {
    vf acc[RLX_TILE_ROWS][RLX_TILE_VECTORS];
    RLX_UNROLL for (int r = 0; r < rows; r++) {
        RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++)
            acc[r][j] = first ? (vf){0} : ld(c + (row + r) * ldc + col + j * RLX_LANES);
    }
    micro(rows, k, a + row * lda, lda, panel, acc, ahead, lines);
    RLX_UNROLL for (int r = 0; r < rows; r++) {
        RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++) {
            long at = col + j * RLX_LANES;
            float *to = c + (row + r) * ldc + at;
            vf y = last ? epilogue(acc[r][j], x, row + r, at) : acc[r][j];
            if (at + RLX_LANES <= n) st(to, y);
            else if (at < n) st_part(to, y, n - at);
        }
    }
}

/* Rows are shared out evenly: `tiles` micro tiles of m / tiles rows, the first m % tiles of them
 * with one row more, so that no tile is much smaller than the others. */
RLX_INLINE void gemm(const long m, const long n, const long k, const float *a, const long lda,
                     const float *w, float *c, const long ldc, rlx_epilogue epilogue,
                     const float *const *x) {
    const long tiles = (m + RLX_TILE_ROWS - 1) / RLX_TILE_ROWS, rows = m / tiles, more = m % tiles;
    const int step = RLX_PANEL * 4 * GEMM_UNROLL / 64; /* cache lines of a panel per unrolled step */
    const int lines = tiles >= step ? 1 : (step + tiles - 1) / tiles;
    const long panels = (n + RLX_PANEL - 1) / RLX_PANEL;
    const long blocks = (k + GEMM_KC - 1) / GEMM_KC;
    for (long block = 0; block < blocks; block++) {
        const long k0 = block * GEMM_KC, kc = k - k0 < GEMM_KC ? k - k0 : GEMM_KC;
        const int first = block == 0, last = block == blocks - 1;
        for (long p = 0; p < panels; p++) {
            const float *panel = w + (p * k + k0) * RLX_PANEL;
            const char *ahead = (const char *)(panel + k * RLX_PANEL);
            const long part = kc / GEMM_UNROLL * lines * 64;
            long row = 0;
            for (long t = 0; t < more; t++, row += rows + 1, ahead += part)
                gemm_tile(rows + 1, row, p * RLX_PANEL, n, kc, a + k0, lda, panel, c, ldc, first,
                          last, epilogue, x, ahead, lines);
            for (long t = more; t < tiles; t++, row += rows, ahead += part)
                gemm_tile(rows, row, p * RLX_PANEL, n, kc, a + k0, lda, panel, c, ldc, first, last,
                          epilogue, x, ahead, lines);
        }
    }
}

#endif
