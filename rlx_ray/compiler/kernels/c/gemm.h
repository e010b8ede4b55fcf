/* GEMM: c[m][n] = epilogue(sum over k of a[m][k] * w[k][n]), float32.
 *
 * a is row-major. w is packed in panels of RLX_PANEL columns: panel j holds w[k][j * RLX_PANEL ..]
 * for k = 0 .. depth - 1, one row of the panel after the other, zero beyond the last column.
 *
 * The micro-kernels keep rows x RLX_TILE_VECTORS accumulators in registers; there is one for each
 * number of rows, and all matmuls of a unit share them. Panels are the outer loop and rows the inner
 * one, so that one panel's block of GEMM_KC rows stays in the first-level cache while the rows of a
 * stream past it; meanwhile the next panel is prefetched. Every element of c is summed over k in
 * ascending order whatever the tile shape, so equal rows give equal bits. */
#ifndef RLX_GEMM_H
#define RLX_GEMM_H

#include "rt.h"

#ifndef GEMM_KC
#define GEMM_KC 384
#endif
#define GEMM_UNROLL 8

/* The value of register (row, col) of c from its sum and the operands. */
typedef vf (*rlx_epilogue)(vf acc, const float *const *x, long row, long col);

/* A micro tile: c[rows][panel] (+)= a[rows][0 .. k) * panel[0 .. k), added to c if `more`. `lines`
 * cache lines of `ahead` are prefetched every GEMM_UNROLL steps; row and col are the tile's place in
 * the result, for an epilogue over the operands x. */
typedef struct {
    long k;
    const float *a;
    long lda;
    const void *panel;
    float *c;
    long ldc;
    int more;
    const char *ahead;
    long lines;
    const float *const *x;
    long row, col;
} rlx_micro;
typedef void (*rlx_micro_kernel)(const rlx_micro *t, long rows);

/* One step of k: acc[r][j] += a[r][u] * b[j]; `a` points at every third row, b has float16 or
 * float32 by its `size` in bytes. */
RLX_INLINE void micro_step(const int rows, const int size, const float *const *a, long lda,
                           const int u, const char *b, vf acc[][RLX_TILE_VECTORS]) {
    vf w[RLX_TILE_VECTORS];
    RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++, b += RLX_LANES * size)
        w[j] = size == 2 ? ld_half(b) : ld((const float *)b);
    RLX_UNROLL for (int r = 0; r < rows; r++) {
        vf x = splat(a[r / 3][r % 3 * lda + u]);
        RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++) acc[r][j] += x * w[j];
    }
}

RLX_INLINE void micro_sized(const int rows, const int size, const rlx_micro *t,
                            rlx_epilogue epilogue) {
    vf acc[RLX_TILE_ROWS][RLX_TILE_VECTORS];
    const long lda = t->lda, lines = t->lines, line = RLX_PANEL * size;
    const float *a[3] = {t->a, t->a + 3 * lda, t->a + 6 * lda};
    const char *ahead = t->ahead, *panel = t->panel;
    RLX_UNROLL for (int r = 0; r < rows; r++)
        RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++)
            acc[r][j] = t->more ? ld(t->c + r * t->ldc + j * RLX_LANES) : (vf){0};
    for (long i = t->k / GEMM_UNROLL; i > 0; i--) {
        for (long n = 0; n < lines; n++, ahead += 64) __builtin_prefetch(ahead, 0, 2);
        RLX_UNROLL for (int u = 0; u < GEMM_UNROLL; u++)
            micro_step(rows, size, a, lda, u, panel + u * line, acc);
        panel += GEMM_UNROLL * line;
        RLX_UNROLL for (int p = 0; p < (rows + 2) / 3; p++) a[p] += GEMM_UNROLL;
    }
    for (long i = t->k % GEMM_UNROLL; i > 0; i--) {
        micro_step(rows, size, a, lda, 0, panel, acc);
        panel += line;
        RLX_UNROLL for (int p = 0; p < (rows + 2) / 3; p++) a[p]++;
    }
    RLX_UNROLL for (int r = 0; r < rows; r++)
        RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++) {
            const long col = j * RLX_LANES;
            st(t->c + r * t->ldc + col,
               epilogue ? epilogue(acc[r][j], t->x, t->row + r, t->col + col) : acc[r][j]);
        }
}

/* Panels of float32. */
RLX_INLINE void micro_body(const int rows, const rlx_micro *t, rlx_epilogue epilogue) {
    micro_sized(rows, 4, t, epilogue);
}

#define MICRO(ROWS) \
    RLX_KERNEL void micro_##ROWS(const rlx_micro *t) { micro_body(ROWS, t, 0); }
MICRO(1)
MICRO(2)
MICRO(3)
MICRO(4)
MICRO(5)
MICRO(6)
#if RLX_TILE_ROWS == 8
MICRO(7)
MICRO(8)
#elif RLX_TILE_ROWS != 6
#error "micro tiles have 6 or 8 rows"
#endif

RLX_KERNEL void micro_any(const rlx_micro *t, long rows) {
    switch (rows) {
#if RLX_TILE_ROWS == 8
    case 8: micro_8(t); return;
    case 7: micro_7(t); return;
#endif
    case 6: micro_6(t); return;
    case 5: micro_5(t); return;
    case 4: micro_4(t); return;
    case 3: micro_3(t); return;
    case 2: micro_2(t); return;
    default: micro_1(t); return;
    }
}

/* The micro-kernel without epilogue, 1 <= rows <= RLX_TILE_ROWS. It takes a copy, so that the
 * caller's own can stay in registers. */
RLX_INLINE void micro(const rlx_micro *t, long rows) {
    const rlx_micro copy = *t;
    micro_any(&copy, rows);
}

/* A micro-kernel with an epilogue. Tiles of one row less than the most, and of the most, are all
 * that many rows are cut into: these have it inlined; smaller ones take a second look at c. */
RLX_INLINE void micro_with(const rlx_micro *t, long rows, rlx_epilogue epilogue) {
    if (rows == RLX_TILE_ROWS) {
        micro_body(RLX_TILE_ROWS, t, epilogue);
    } else if (rows == RLX_TILE_ROWS - 1) {
        micro_body(RLX_TILE_ROWS - 1, t, epilogue);
    } else {
        micro(t, rows);
        float *c = t->c;
        for (long r = 0; r < rows; r++, c += t->ldc)
            RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++)
                st(c + j * RLX_LANES, epilogue(ld(c + j * RLX_LANES), t->x, t->row + r,
                                               t->col + j * RLX_LANES));
    }
}

/* A tile of the last panel, of which only `width` columns exist: through a buffer. */
RLX_INLINE void gemm_edge(const rlx_micro *t, long rows, long width, rlx_micro_kernel kernel) {
    float part[RLX_TILE_ROWS * RLX_PANEL];
    rlx_micro inner = *t;
    for (long r = 0; r < rows; r++)
        for (long j = 0; j < RLX_PANEL; j++)
            part[r * RLX_PANEL + j] = t->more && j < width ? t->c[r * t->ldc + j] : 0;
    inner.c = part, inner.ldc = RLX_PANEL, inner.lines = 0;
    kernel(&inner, rows);
    for (long r = 0; r < rows; r++)
        for (long j = 0; j < width; j++) t->c[r * t->ldc + j] = part[r * RLX_PANEL + j];
}

/* c[m][n] (+)= a[m][k] * w, whose panels have `depth` rows; added to c if `more`. `kernel` ends the
 * sums: it is `micro` where they go on later or have no epilogue. Rows are shared out evenly:
 * `tiles` micro tiles of m / tiles rows, the first m % tiles of them with one row more, so that no
 * tile is much smaller than the others. */
RLX_INLINE void gemm(long m, long n, long k, long depth, const float *a, long lda, const float *w,
                     float *c, long ldc, int more, rlx_micro_kernel kernel,
                     const float *const *x) {
    if (m <= 0) return;
    const long tiles = (m + RLX_TILE_ROWS - 1) / RLX_TILE_ROWS, rows = m / tiles, extra = m % tiles;
    const long step = RLX_PANEL * 4 * GEMM_UNROLL / 64; /* cache lines of a panel per unrolled step */
    rlx_micro t = {.lda = lda, .ldc = ldc, .x = x};
    for (long k0 = 0; k0 < k; k0 += GEMM_KC) {
        const int last = k0 + GEMM_KC >= k;
        t.k = least(GEMM_KC, k - k0);
        t.more = more || k0;
        for (t.col = 0; t.col < n; t.col += RLX_PANEL) {
            t.panel = w + t.col * depth + k0 * RLX_PANEL;
            t.ahead = (const char *)(w + (t.col + RLX_PANEL) * depth + k0 * RLX_PANEL);
            const char *end = t.ahead + t.k * RLX_PANEL * 4;
            t.lines = (step + tiles - 1) / tiles;
            t.row = 0;
            for (long i = 0; i < tiles; i++) {
                const long r = rows + (i < extra);
                t.a = a + t.row * lda + k0;
                t.c = c + t.row * ldc + t.col;
                if (n - t.col < RLX_PANEL && last) gemm_edge(&t, r, n - t.col, kernel);
                else if (n - t.col < RLX_PANEL) gemm_edge(&t, r, n - t.col, micro);
                else if (last) kernel(&t, r);
                else micro(&t, r);
                t.row += r;
                t.ahead += t.k / GEMM_UNROLL * t.lines * 64;
                if (t.ahead >= end) t.lines = 0;
            }
        }
    }
}

#endif
