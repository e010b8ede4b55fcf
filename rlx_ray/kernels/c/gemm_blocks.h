/* GEMM with weights in blocks of 32 along k:  w[k][n] = d[b][n] * q[k][n] + m[b][n],  b = k / 32.
 *
 *   b4  q from 0 to 15, and m          (Q4_0, Q4_1, Q4_K, int4 blocks)
 *   b8  q from -128 to 127, and no m   (Q8_0, int8 blocks)
 *
 * The left operand is quantised by blocks too (quantize_blocks below): a[k] = s[b] * u[k]. So
 *
 *   c = sum over b of  d s (sum of q u)  +  m (s * sum of u)
 *
 * with exact integers inside a block. Weights are packed by models/packing.py in panels of RLX_PANEL
 * columns; a panel is its blocks one after the other, each with d (float16) of every column, for b4 m
 * (float16), and then groups of four terms: b8 has 8 of [column][4] bytes; b4 has 4 of [column][4]
 * bytes whose low halves are terms 8 g .. 8 g + 3 and whose high halves are the four behind them. One
 * row streams a panel once from memory; for several rows a block is unpacked once for all of them. */
#ifndef RLX_GEMM_BLOCKS_H
#define RLX_GEMM_BLOCKS_H

#include "quantize.h"

#define BLOCK 32
#define BLOCK_ROWS 4 /* rows of a pass: a block's eight registers of weights stay for all of them */

typedef _Float16 vhalf __attribute__((vector_size(RLX_LANES * 2), aligned(2), may_alias));
typedef unsigned char vub __attribute__((vector_size(RLX_LANES * 4)));

RLX_INLINE vf ld_half(const char *p) { return __builtin_convertvector(*(const vhalf *)p, vf); }

/* acc[lane] += sum over j < 4 of w[lane][j] * a[j], for int8 a and either kind of w. On AVX2 sums of
 * pairs stay int16 for a whole block of b4: 8 * 2 * 15 * 127 fits. */
#if defined __AVX2__ && RLX_LANES == 8 && !defined INT8_STAND_IN
typedef vs vdot4;
RLX_INLINE vdot4 dot4(vdot4 acc, vi w, vi a) {
    return acc + (vs)__builtin_ia32_pmaddubsw256((vb)w, (vb)a);
}
RLX_INLINE vi dot4_sum(vdot4 acc) { return madd(acc, (vs){0} + 1); }
RLX_INLINE vi dot8(vi acc, vi w, vi a) {
    const vb size = (vb)__builtin_elementwise_abs((vb)w);
    return acc + madd((vs)__builtin_ia32_pmaddubsw256(size, (vb)__builtin_ia32_psignb256((vb)a, (vb)w)),
                      (vs){0} + 1);
}
#else
typedef vi vdot4;
#if (defined __AVX512VNNI__ && RLX_LANES == 16) || defined INT8_STAND_IN
RLX_INLINE vdot4 dot4(vdot4 acc, vi w, vi a) { return INT8_DOT(acc, w, a); }
/* Signed times signed: w + 128 is unsigned, and 128 times the sum of a goes off again. */
RLX_INLINE vi dot8(vi acc, vi w, vi a) {
    const vi more = splati((int)0x80808080);
    return INT8_DOT(acc, w ^ more, a) - INT8_DOT((vi){0}, more, a);
}
#elif defined __ARM_FEATURE_DOTPROD
RLX_INLINE vi dot8(vi acc, vi w, vi a) {
    return (vi)vdotq_s32((int32x4_t)acc, (int8x16_t)w, (int8x16_t)a);
}
RLX_INLINE vdot4 dot4(vdot4 acc, vi w, vi a) { return dot8(acc, w, a); }
#else
RLX_INLINE vi dot8(vi acc, vi w, vi a) {
    RLX_UNROLL for (int j = 0; j < 32; j += 8)
        acc += ((w << (24 - j)) >> 24) * ((a << (24 - j)) >> 24);
    return acc;
}
RLX_INLINE vdot4 dot4(vdot4 acc, vi w, vi a) { return dot8(acc, w, a); }
#endif
RLX_INLINE vi dot4_sum(vdot4 acc) { return acc; }
#endif

/* Rows of float32 in blocks: k int8, then the k / 32 scales s, then the k / 32 values s * sum of u.
 * s is the largest magnitude of the block over 127. */
RLX_INLINE void quantize_blocks(long rows, const long k, const float *x, char *y, long pitch) {
    for (long r = 0; r < rows; r++, y += pitch) {
        float *scale = (float *)(y + k), *sum = scale + k / BLOCK;
        signed char *q = (signed char *)y;
        for (long b = 0; b < k / BLOCK; b++, x += BLOCK, q += BLOCK) {
            vf most = {0};
            RLX_UNROLL for (int i = 0; i < BLOCK; i += RLX_LANES)
                most = vmax(most, __builtin_elementwise_abs(ld(x + i)));
            const float top = lanes_max(most), s = top / 127.0f;
            const vf inv = splat(top > 1e-30f ? 127.0f / top : 0.0f);
            vi total = {0};
            RLX_UNROLL for (int i = 0; i < BLOCK; i += RLX_LANES) {
                const vi u = __builtin_convertvector(
                    __builtin_elementwise_roundeven(ld(x + i) * inv), vi);
                typedef signed char part
                    __attribute__((vector_size(RLX_LANES), aligned(1), may_alias));
                *(part *)(q + i) = __builtin_convertvector(u, part);
                total += u;
            }
            int all = 0;
            RLX_UNROLL for (int i = 0; i < RLX_LANES; i++) all += total[i];
            scale[b] = s, sum[b] = s * (float)all;
        }
    }
}

/* One register of columns, `column` registers into the panel, for `rows` rows over all blocks. */
RLX_INLINE void block_pass(const int rows, const int four, const int column, const long k,
                           const rlx_low *t, rlx_epilogue epilogue) {
    const long blocks = k / BLOCK, lda = t->lda, head = RLX_PANEL * (four ? 4 : 2);
    const long bytes = head + RLX_PANEL * (four ? 16 : 32), lines = column ? 0 : t->lines;
    const char *panel = t->panel, *a = t->a, *ahead = t->ahead;
    const float *scale = (const float *)(a + k);
    vf acc[BLOCK_ROWS];
    RLX_UNROLL for (int r = 0; r < rows; r++) acc[r] = (vf){0};
    for (long b = 0; b < blocks; b++, panel += bytes, a += BLOCK) {
        for (long line = 0; line < lines; line++, ahead += 64) __builtin_prefetch(ahead, 0, 2);
        vi w[8];
        const char *group = panel + head + column * RLX_LANES * 4;
        if (four) {
            const vi low = splati(0x0f0f0f0f);
            RLX_UNROLL for (int g = 0; g < 4; g++) {
                const vi both = ldi(group + g * RLX_PANEL * 4);
                w[2 * g] = both & low, w[2 * g + 1] = (both >> 4) & low;
            }
        } else {
            RLX_UNROLL for (int g = 0; g < 8; g++) w[g] = ldi(group + g * RLX_PANEL * 4);
        }
        const vf d = ld_half(panel + column * RLX_LANES * 2);
        const vf m = four ? ld_half(panel + RLX_PANEL * 2 + column * RLX_LANES * 2) : (vf){0};
        RLX_UNROLL for (int r = 0; r < rows; r++) {
            const int_any *u = (const int_any *)(a + r * lda);
            const float *s = (const float *)((const char *)scale + r * lda) + b;
            vi sum;
            if (four) {
                vdot4 part = {0};
                RLX_UNROLL for (int g = 0; g < 8; g++) part = dot4(part, w[g], splati(u[g]));
                sum = dot4_sum(part);
            } else {
                sum = (vi){0};
                RLX_UNROLL for (int g = 0; g < 8; g++) sum = dot8(sum, w[g], splati(u[g]));
            }
            acc[r] += __builtin_convertvector(sum, vf) * (d * s[0]);
            if (four) acc[r] += m * s[blocks];
        }
    }
    RLX_UNROLL for (int r = 0; r < rows; r++)
        low_store(t, r, column * RLX_LANES, acc[r], epilogue);
}

RLX_INLINE void block_rows(const int rows, const int four, const long k, const rlx_low *t,
                           rlx_epilogue epilogue) {
    RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++)
        block_pass(rows, four, j, k, t, epilogue);
}

RLX_INLINE void gemm_blocks(const int four, long m, long n, const long k, const void *a, long lda,
                            const void *w, float *c, long ldc, rlx_epilogue epilogue,
                            const float *const *x) {
    if (m <= 0) return;
    const long bytes = k / BLOCK * RLX_PANEL * (four ? 20 : 34);
    const long tiles = (m + BLOCK_ROWS - 1) / BLOCK_ROWS;
    float part[BLOCK_ROWS * RLX_PANEL];
    rlx_low t = {.lda = lda, .x = x, .panel = w};
    for (t.col = 0; t.col < n; t.col += RLX_PANEL, t.panel += bytes) {
        const long width = least(RLX_PANEL, n - t.col), each = bytes / (k / BLOCK);
        t.ahead = t.panel + bytes;
        t.lines = (each / 64 + tiles) / tiles;
        t.row = 0;
        for (long i = 0; i < tiles; i++) {
            const long r = least(BLOCK_ROWS, m - t.row);
            t.a = (const char *)a + t.row * lda;
            t.c = width < RLX_PANEL ? part : c + t.row * ldc + t.col;
            t.ldc = width < RLX_PANEL ? RLX_PANEL : ldc;
            switch (r) {
            case 4: block_rows(4, four, k, &t, epilogue); break;
            case 3: block_rows(3, four, k, &t, epilogue); break;
            case 2: block_rows(2, four, k, &t, epilogue); break;
            default: block_rows(1, four, k, &t, epilogue); break;
            }
            if (width < RLX_PANEL)
                for (long y = 0; y < r; y++)
                    for (long j = 0; j < width; j++)
                        c[(t.row + y) * ldc + t.col + j] = part[y * RLX_PANEL + j];
            t.row += r;
            t.ahead += k / BLOCK * t.lines * 64;
            if (t.ahead >= t.panel + 2 * bytes) t.lines = 0;
        }
    }
}

RLX_INLINE void gemm_b4(long m, long n, const long k, const void *a, long lda, const void *w,
                        float *c, long ldc, rlx_epilogue epilogue, const float *const *x) {
    gemm_blocks(1, m, n, k, a, lda, w, c, ldc, epilogue, x);
}

RLX_INLINE void gemm_b8(long m, long n, const long k, const void *a, long lda, const void *w,
                        float *c, long ldc, rlx_epilogue epilogue, const float *const *x) {
    gemm_blocks(0, m, n, k, a, lda, w, c, ldc, epilogue, x);
}

#endif
