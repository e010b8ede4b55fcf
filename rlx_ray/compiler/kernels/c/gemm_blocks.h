/* GEMM with weights in blocks of 32 along k:  w[k][n] = d * q[k][n] + m.
 *
 * q has 2, 3, 4, 5, 6 or 8 bits. d, and m where the format has one, are float16 of a column and a
 * block, or of each half of a block (`halves`). Without m, q is signed: below 8 bits it is stored
 * with 2^(bits - 1) added, the centre. With m, q below 8 bits counts from 0. 8 bits are signed.
 *
 * The left operand is quantised by blocks too (quantize_blocks below): a[k] = s * u[k]. So
 *
 *   c = sum over blocks or halves of  d (s * sum of q u - centre * s * sum of u) + m (s * sum of u)
 *
 * with exact integers inside the sums. Weights are packed by models/packing.py in panels of RLX_PANEL
 * columns; a panel is its blocks one after the other: d [1 or 2 halves][column], m likewise, then the
 * codes in planes of 8, 4, 2 or 1 bits, as the bits add up (6 = 4 + 2), the low bits first. A plane
 * holds the 8 groups of four terms: 8 / bits groups share its registers [column][4 bytes], the first
 * group in the lowest bits. Each row streams a panel once; a register of codes serves all rows of a
 * micro tile and a broadcast term all columns of the panel. */
#ifndef RLX_GEMM_BLOCKS_H
#define RLX_GEMM_BLOCKS_H

#include "quantize.h"
#include "vmath.h"

#if !defined BLOCK || !defined BLOCK_FACTS
#error "the unit defines BLOCK, terms of a block, and BLOCK_FACTS, floats of a row for each block"
#endif
#define BLOCK_MOST (RLX_LANES == 16 ? 8 : 6)
#if defined SPAN_ROWS && SPAN_ROWS < BLOCK_MOST
#define BLOCK_ROWS SPAN_ROWS
#else
#define BLOCK_ROWS BLOCK_MOST /* rows of a micro tile */
#endif
/* Registers of columns whose integers are summed at once: with 32 registers there is room for all
 * results beside the sums of one. */
#define BLOCK_PASS (RLX_LANES == 16 ? 1 : RLX_TILE_VECTORS)
#define BLOCK_AHEAD 4096 /* bytes from a block to what is prefetched beside it */

/* block_dot: acc[lane] += sum over j < 4 of w[lane][j] * a[j], for int8 a and codes w of some bits.
 * BLOCK_RUN such sums fit vpart; block_sum makes them int32. BLOCK_CENTRE is what block_dot sees
 * added to codes of 8 bits. */
#if defined __AVX2__ && RLX_LANES == 8 && !defined INT8_STAND_IN
/* Pairs of products are added in int16, which saturates: n groups of 2 * (2^bits - 1) * 127 fit. */
typedef vs vpart;
#define BLOCK_RUN(bits) ((bits) < 5 ? 8 : (bits) == 5 ? 4 : (bits) == 6 ? 2 : 1)
#define BLOCK_CENTRE 0
RLX_INLINE vpart block_dot(const int bits, vpart acc, vi w, vi a) {
    if (bits < 8) return acc + (vs)__builtin_ia32_pmaddubsw256((vb)w, (vb)a);
    const vb size = (vb)__builtin_elementwise_abs((vb)w);
    return acc + (vs)__builtin_ia32_pmaddubsw256(size, (vb)__builtin_ia32_psignb256((vb)a, (vb)w));
}
RLX_INLINE vi block_sum(vpart acc) { return madd(acc, (vs){0} + 1); }
#else
typedef vi vpart;
#define BLOCK_RUN(bits) 8
#define BLOCK_CENTRE 0
RLX_INLINE vi block_sum(vpart acc) { return acc; }
#if (defined __AVX512VNNI__ && RLX_LANES == 16) || defined INT8_STAND_IN
#undef BLOCK_CENTRE
#define BLOCK_CENTRE 128
RLX_INLINE vpart block_dot(const int bits, vpart acc, vi w, vi a) {
    return INT8_DOT(acc, bits < 8 ? w : w ^ splati((int)0x80808080), a);
}
#elif defined __ARM_FEATURE_DOTPROD
RLX_INLINE vpart block_dot(const int bits, vpart acc, vi w, vi a) {
    (void)bits;
    return (vi)vdotq_s32((int32x4_t)acc, (int8x16_t)w, (int8x16_t)a);
}
#else
RLX_INLINE vpart block_dot(const int bits, vpart acc, vi w, vi a) {
    (void)bits;
    RLX_UNROLL for (int j = 0; j < 32; j += 8)
        acc += ((w << (24 - j)) >> 24) * ((a << (24 - j)) >> 24);
    return acc;
}
#endif
#endif

/* Rows of float32 in blocks: k int8, then for each block four floats: the scale s, s * sum of u, and
 * the same of both halves. s is the largest magnitude of the block over 127. */
RLX_INLINE void quantize_blocks(long rows, const long k, const float *x, char *y, long pitch) {
    for (long r = 0; r < rows; r++, y += pitch) {
        float *facts = (float *)(y + k);
        signed char *q = (signed char *)y;
        for (long b = 0; b < k / BLOCK; b++, x += BLOCK, q += BLOCK, facts += BLOCK_FACTS) {
            vf most = {0};
            RLX_UNROLL for (int i = 0; i < BLOCK; i += RLX_LANES)
                most = vmax(most, __builtin_elementwise_abs(ld(x + i)));
            const float top = lanes_max(most), s = top / 127.0f;
            const vf inv = splat(top > 1e-30f ? 127.0f / top : 0.0f);
            int sums[2];
            RLX_UNROLL for (int h = 0; h < 2; h++) {
                vi total = {0};
                RLX_UNROLL for (int i = h * 16; i < h * 16 + 16; i += RLX_LANES) {
                    const vi u = __builtin_convertvector(
                        __builtin_elementwise_roundeven(ld(x + i) * inv), vi);
                    typedef signed char part
                        __attribute__((vector_size(RLX_LANES), aligned(1), may_alias));
                    *(part *)(q + i) = __builtin_convertvector(u, part);
                    total += u;
                }
                sums[h] = __builtin_reduce_add(total);
            }
            facts[0] = s, facts[1] = s * (float)(sums[0] + sums[1]);
            facts[2] = s * (float)sums[0], facts[3] = s * (float)sums[1];
        }
    }
}

/* Group g of a block's codes in a register of columns. */
RLX_INLINE vi block_codes(const int bits, const char *codes, const int g) {
    if (bits == 8) return ldi(codes + g * RLX_PANEL * 4);
    vi w = {0};
    int place = 0;
    RLX_UNROLL for (int plane = 4; plane > 0; plane /= 2) {
        if (!(bits & plane)) continue;
        const int shared = 8 / plane;
        const vi all = ldi(codes + g / shared * RLX_PANEL * 4) >> (g % shared * plane);
        w |= (all & splati(0x01010101 * ((1 << plane) - 1))) << place;
        place += plane, codes += plane * RLX_PANEL * 4;
    }
    return w;
}

/* A micro tile of `rows` rows, `lda` bytes apart, and a panel over all blocks. */
RLX_INLINE void block_tile(const int rows, const long k, const long lda, const int bits,
                           const int halves, const int offsets, const rlx_low *t) {
    const int parts = halves ? 2 : 1, each = 8 / parts;
    const int run = BLOCK_RUN(bits) < each ? BLOCK_RUN(bits) : each;
    const int added = bits == 8 ? BLOCK_CENTRE : offsets ? 0 : 1 << (bits - 1);
    const float centre = added;
    const int head = RLX_PANEL * 2 * parts * (1 + offsets), bytes = head + RLX_PANEL * 4 * bits;
    const int lines = (bytes + 63) / 64, steps = RLX_TILE_VECTORS / BLOCK_PASS * 8;
    const char *panel = t->panel, *a = t->a, *facts = t->a + k;
    vf acc[BLOCK_ROWS][RLX_TILE_VECTORS];
    RLX_UNROLL for (int r = 0; r < rows; r++)
        RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++) acc[r][j] = (vf){0};
    for (long b = k / BLOCK; b > 0; b--) {
        /* A few lines with each group: many at once would hold up the loads behind them. */
        const char *ahead = panel + (t->lines ? BLOCK_AHEAD : 0);
        RLX_UNROLL for (int h = 0; h < parts; h++)
            RLX_UNROLL for (int j0 = 0; j0 < RLX_TILE_VECTORS; j0 += BLOCK_PASS) {
                vi sum[BLOCK_ROWS][BLOCK_PASS];
                RLX_UNROLL for (int first = 0; first < each; first += run) {
                    vpart part[BLOCK_ROWS][BLOCK_PASS];
                    RLX_UNROLL for (int r = 0; r < rows; r++)
                        RLX_UNROLL for (int j = 0; j < BLOCK_PASS; j++) part[r][j] = (vpart){0};
                    RLX_UNROLL for (int g = h * each + first; g < h * each + first + run; g++) {
                        const int step = j0 / BLOCK_PASS * 8 + g;
                        const int from = lines * step / steps, to = lines * (step + 1) / steps;
                        RLX_UNROLL for (int at = from; at < to; at++)
                            __builtin_prefetch(ahead + at * 64, 0, 2);
                        vi w[BLOCK_PASS];
                        RLX_UNROLL for (int j = 0; j < BLOCK_PASS; j++)
                            w[j] = block_codes(bits, panel + head + (j0 + j) * RLX_LANES * 4, g);
                        RLX_UNROLL for (int r = 0; r < rows; r++) {
                            const vi u = splati(*(const int_any *)(a + r * lda + g * 4));
                            RLX_UNROLL for (int j = 0; j < BLOCK_PASS; j++) {
                                part[r][j] = block_dot(bits, part[r][j], w[j], u);
                                RLX_ORDER(part[r][j]);
                            }
                        }
                    }
                    RLX_UNROLL for (int r = 0; r < rows; r++)
                        RLX_UNROLL for (int j = 0; j < BLOCK_PASS; j++)
                            sum[r][j] = (first ? sum[r][j] : (vi){0}) + block_sum(part[r][j]);
                }
                RLX_UNROLL for (int j = 0; j < BLOCK_PASS; j++) {
                    const char *scale = panel + (h * RLX_PANEL + (j0 + j) * RLX_LANES) * 2;
                    const vf d = ld_half(scale);
                    const vf m = offsets ? ld_half(scale + RLX_PANEL * 2 * parts) : (vf){0};
                    RLX_UNROLL for (int r = 0; r < rows; r++) {
                        const float *own = (const float *)(facts + r * lda);
                        const float s = own[0], total = own[halves ? 2 + h : 1];
                        vf *to = &acc[r][j0 + j];
                        vf y = __builtin_convertvector(sum[r][j], vf);
                        y = centre ? RLX_FMA(y, splat(s), splat(-centre * total)) : y * s;
                        *to = RLX_FMA(y, d, *to);
                        if (offsets) *to = RLX_FMA(m, splat(total), *to);
                    }
                }
            }
        panel += bytes, a += BLOCK, facts += BLOCK_FACTS * 4;
    }
    RLX_UNROLL for (int r = 0; r < rows; r++)
        RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++)
            low_store(t, r, j * RLX_LANES, acc[r][j], t->epilogue);
}

/* BLOCK_TILES(name, k, lda, bits, halves, offsets): blocks_name, the micro tiles by their rows, which
 * all matmuls of such weights in a unit share. Rows at a distance that the compiler knows cost no
 * registers. */
typedef void (*rlx_block_tile)(const rlx_low *t);
#define BLOCK_TILE(ROWS, NAME, ...) \
    RLX_KERNEL void block_##NAME##_##ROWS(const rlx_low *t) { block_tile(ROWS, __VA_ARGS__, t); }
#define BLOCK_ENTRY(ROWS, NAME, ...) block_##NAME##_##ROWS,
#define BLOCK_1(F, ...) F(1, __VA_ARGS__)
#define BLOCK_2(F, ...) BLOCK_1(F, __VA_ARGS__) F(2, __VA_ARGS__)
#define BLOCK_3(F, ...) BLOCK_2(F, __VA_ARGS__) F(3, __VA_ARGS__)
#define BLOCK_4(F, ...) BLOCK_3(F, __VA_ARGS__) F(4, __VA_ARGS__)
#define BLOCK_5(F, ...) BLOCK_4(F, __VA_ARGS__) F(5, __VA_ARGS__)
#define BLOCK_6(F, ...) BLOCK_5(F, __VA_ARGS__) F(6, __VA_ARGS__)
#define BLOCK_7(F, ...) BLOCK_6(F, __VA_ARGS__) F(7, __VA_ARGS__)
#define BLOCK_8(F, ...) BLOCK_7(F, __VA_ARGS__) F(8, __VA_ARGS__)
#if BLOCK_ROWS == 1
#define BLOCK_ALL BLOCK_1
#elif BLOCK_ROWS == 2
#define BLOCK_ALL BLOCK_2
#elif BLOCK_ROWS == 3
#define BLOCK_ALL BLOCK_3
#elif BLOCK_ROWS == 4
#define BLOCK_ALL BLOCK_4
#elif BLOCK_ROWS == 5
#define BLOCK_ALL BLOCK_5
#elif BLOCK_ROWS == 6
#define BLOCK_ALL BLOCK_6
#elif BLOCK_ROWS == 7
#define BLOCK_ALL BLOCK_7
#else
#define BLOCK_ALL BLOCK_8
#endif
#define BLOCK_TILES(NAME, ...) \
    BLOCK_ALL(BLOCK_TILE, NAME, __VA_ARGS__) \
    static const rlx_block_tile blocks_##NAME[] = {0, BLOCK_ALL(BLOCK_ENTRY, NAME, __VA_ARGS__)};

RLX_INLINE void gemm_blocks(long m, long n, const long k, const long lda, const int bits,
                            const int halves, const int offsets, const rlx_block_tile *tile,
                            const void *a, const void *w, float *c, long ldc,
                            rlx_epilogue epilogue, const float *const *x) {
    if (m <= 0) return;
    const long bytes = k / BLOCK * RLX_PANEL * (2 * (1 + halves) * (1 + offsets) + 4 * bits);
    const long tiles = (m + BLOCK_ROWS - 1) / BLOCK_ROWS, rows = m / tiles, extra = m % tiles;
    float part[BLOCK_ROWS * RLX_PANEL];
    rlx_low t = {.x = x, .panel = w, .epilogue = epilogue};
    /* Nobody has fetched the first blocks if the tile before was another matrix's. */
    for (long at = 0; at < BLOCK_AHEAD; at += 64) __builtin_prefetch(t.panel + at, 0, 3);
    for (t.col = 0; t.col < n; t.col += RLX_PANEL, t.panel += bytes) {
        const long width = least(RLX_PANEL, n - t.col);
        t.lines = 1; /* only the first rows wait for memory */
        t.row = 0;
        for (long i = 0; i < tiles; i++) {
            const long r = rows + (i < extra);
            t.a = (const char *)a + t.row * lda;
            t.c = width < RLX_PANEL ? part : c + t.row * ldc + t.col;
            t.ldc = width < RLX_PANEL ? RLX_PANEL : ldc;
            tile[r](&t);
            if (width < RLX_PANEL)
                for (long y = 0; y < r; y++)
                    for (long j = 0; j < width; j++)
                        c[(t.row + y) * ldc + t.col + j] = part[y * RLX_PANEL + j];
            t.row += r, t.lines = 0;
        }
    }
}

#endif
