/* GEMM with weights of low precision: c[m][n] = epilogue(sum over k of a[m][k] * w[k][n]).
 *
 * The rows of a are made by quantize.h, and w is packed by models/packing.py in panels of RLX_PANEL
 * columns whose terms stand in groups, since the dot-product instructions add a group at once:
 *
 *   bf16  groups of 2: panel[k / 2][column][2], float32 sums.
 *   int8  groups of 4: panel[k / 4][column][4], exact int32 sums; behind the groups the scales
 *         (float32) and the sums (int32) of the panel's columns. With a = (u - z) s, where u is a
 *         byte and z and s are the row's: c = (sum of u w - z * sum of w) * s * scale.
 *
 * Terms beyond k are zero in w. The sums have one order whatever the tile, so equal rows give equal
 * bits. Where the processor has no dot product, int8 goes through products of int16 pairs and bf16
 * through float32: the int8 sums are the same everywhere. */
#ifndef RLX_GEMM_LOW_H
#define RLX_GEMM_LOW_H

#include "gemm.h"

typedef short vs __attribute__((vector_size(RLX_LANES * 4)));
typedef signed char vb __attribute__((vector_size(RLX_LANES * 4)));
typedef signed char vb_half __attribute__((vector_size(RLX_LANES * 2)));
typedef int vi_any __attribute__((vector_size(RLX_LANES * 4), aligned(4), may_alias));
typedef signed char vb_half_any
    __attribute__((vector_size(RLX_LANES * 2), aligned(1), may_alias));
typedef long long long_any __attribute__((aligned(1), may_alias));
typedef long long vl __attribute__((vector_size(RLX_LANES * 4)));

RLX_INLINE vi ldi(const void *p) { return *(const vi_any *)p; }
RLX_INLINE vi splati(int x) { return x - (vi){0}; }

/* A micro tile of rows x RLX_PANEL: `a` and `panel` in bytes, `lda` bytes of a row of a, `groups` of
 * terms; the rest as in rlx_micro. `epilogue` is null where the kernel has it inlined. */
typedef struct {
    long groups;
    const char *a;
    long lda;
    const char *panel;
    float *c;
    long ldc;
    const char *ahead;
    long lines;
    const float *const *x;
    long row, col;
    rlx_epilogue epilogue;
} rlx_low;
typedef void (*rlx_low_kernel)(const rlx_low *t, long rows, rlx_epilogue epilogue);

RLX_INLINE void low_store(const rlx_low *t, long r, long col, vf v, rlx_epilogue epilogue) {
    st(t->c + r * t->ldc + col, epilogue ? epilogue(v, t->x, t->row + r, t->col + col) : v);
}

/* RLX_KEEP keeps the compiler from adding integer products up in another order, RLX_ORDER from
 * moving them past each other as well: either costs registers. */
#if RLX_LANES == 16 && defined __AVX512F__ || RLX_LANES == 8 && defined __AVX2__
#define RLX_KEEP(v) __asm__("" : "+v"(v))
#define RLX_ORDER(v) __asm__ volatile("" : "+v"(v))
#elif RLX_LANES == 4 && defined __aarch64__
#define RLX_KEEP(v) __asm__("" : "+w"(v))
#define RLX_ORDER(v) __asm__ volatile("" : "+w"(v))
#else
#define RLX_KEEP(v)
#define RLX_ORDER(v)
#endif

/* int8 --------------------------------------------------------------------------------------- */

#if defined INT8_DOT
/* given: a test's stand-in for an instruction that its processor lacks */
#elif defined __AVX512VNNI__ && RLX_LANES == 16
#define INT8_DOT(acc, a, w) __builtin_ia32_vpdpbusd512(acc, a, w)
#elif defined __ARM_FEATURE_DOTPROD
#include <arm_neon.h>
#define INT8_DOT(acc, a, w) ((vi)vdotq_s32((int32x4_t)(acc), (int8x16_t)(a), (int8x16_t)(w)))
#endif

/* A pass of the micro-kernel makes INT8_ROWS rows of INT8_VECTORS of the panel's registers of
 * columns; without the dot product a register of columns takes two accumulators. */
#ifdef INT8_DOT
#define INT8_ROWS RLX_TILE_ROWS
#define INT8_VECTORS RLX_TILE_VECTORS
#define INT8_PARTS 1
typedef unsigned char rlx_q8;
#else
#define INT8_ROWS 6
#define INT8_VECTORS (RLX_LANES == 16 ? 2 : 1)
#define INT8_PARTS 2
typedef short rlx_q8;

/* The sums of pairs of products of int16. */
RLX_INLINE vi madd(vs a, vs b) {
#if defined __AVX512BW__ && RLX_LANES == 16
    return (vi)__builtin_ia32_pmaddwd512(a, b);
#elif defined __AVX2__ && RLX_LANES == 8
    return (vi)__builtin_ia32_pmaddwd256(a, b);
#else
    return ((vi)a << 16 >> 16) * ((vi)b << 16 >> 16) + ((vi)a >> 16) * ((vi)b >> 16);
#endif
}

/* The sums of neighbouring lanes of two registers, in order. */
RLX_INLINE vi pairs(vi a, vi b) {
#if RLX_LANES == 4
    return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
#elif RLX_LANES == 8
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14) +
           __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#endif
}
#endif

#define INT8_HELD (INT8_VECTORS * INT8_PARTS)

/* One group of four terms for every row and column of a pass. */
RLX_INLINE void int8_step(const int rows, const char *a, long lda, const char *panel,
                          vi acc[][INT8_HELD]) {
#ifdef INT8_DOT
    vi w[INT8_HELD];
    RLX_UNROLL for (int j = 0; j < INT8_HELD; j++) w[j] = ldi(panel + j * RLX_LANES * 4);
#else
    vs w[INT8_HELD];
    RLX_UNROLL for (int j = 0; j < INT8_HELD; j++)
        w[j] = __builtin_convertvector(*(const vb_half_any *)(panel + j * RLX_LANES * 2), vs);
#endif
    RLX_UNROLL for (int r = 0; r < rows; r++) {
#ifdef INT8_DOT
        const vi x = splati(*(const int_any *)(a + r * lda));
        RLX_UNROLL for (int j = 0; j < INT8_HELD; j++) acc[r][j] = INT8_DOT(acc[r][j], x, w[j]);
#else
        const vl x = *(const long_any *)(a + r * lda) - (vl){0};
        RLX_UNROLL for (int j = 0; j < INT8_HELD; j++) {
            acc[r][j] += madd((vs)x, w[j]);
            RLX_KEEP(acc[r][j]);
        }
#endif
    }
}

RLX_INLINE void int8_pass(const int rows, const int first, const rlx_low *t,
                          rlx_epilogue epilogue) {
    vi acc[INT8_ROWS][INT8_HELD];
    const char *a = t->a, *panel = t->panel + first * RLX_LANES * 4, *ahead = t->ahead;
    const long lda = t->lda, lines = first ? 0 : t->lines;
    RLX_UNROLL for (int r = 0; r < rows; r++)
        RLX_UNROLL for (int j = 0; j < INT8_HELD; j++) acc[r][j] = (vi){0};
    for (long i = t->groups / 4; i > 0; i--) {
        for (long line = 0; line < lines; line++, ahead += 64) __builtin_prefetch(ahead, 0, 2);
        RLX_UNROLL for (int u = 0; u < 4; u++)
            int8_step(rows, a + u * 4 * sizeof(rlx_q8), lda, panel + u * RLX_PANEL * 4, acc);
        a += 16 * sizeof(rlx_q8), panel += RLX_PANEL * 16;
    }
    for (long i = t->groups % 4; i > 0; i--) {
        int8_step(rows, a, lda, panel, acc);
        a += 4 * sizeof(rlx_q8), panel += RLX_PANEL * 4;
    }
    /* a and panel now stand at the row's scale and zero and at the columns' scales and sums. */
    RLX_UNROLL for (int r = 0; r < rows; r++) {
        const vf scale = splat(*(const float_any *)(a + r * lda));
        const vi zero = splati(*(const int_any *)(a + r * lda + 4));
        RLX_UNROLL for (int j = 0; j < INT8_VECTORS; j++) {
#ifdef INT8_DOT
            vi sum = acc[r][j];
#else
            vi sum = pairs(acc[r][2 * j], acc[r][2 * j + 1]);
#endif
            sum -= zero * ldi(panel + RLX_PANEL * 4 + j * RLX_LANES * 4);
            vf v = __builtin_convertvector(sum, vf) * scale *
                   ld((const float *)(panel + j * RLX_LANES * 4));
            RLX_KEEP(v); /* or it may become part of a multiply-add, in some tiles and not others */
            low_store(t, r, (first + j) * RLX_LANES, v, epilogue);
        }
    }
}

RLX_INLINE void int8_body(const int rows, const rlx_low *t, rlx_epilogue epilogue) {
    RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j += INT8_VECTORS)
        int8_pass(rows, j, t, epilogue);
}

RLX_INLINE void int8_micro(const rlx_low *t, long rows, rlx_epilogue epilogue) {
    switch (rows) {
#if INT8_ROWS == 8
    case 8: int8_body(8, t, epilogue); return;
    case 7: int8_body(7, t, epilogue); return;
#endif
    case 6: int8_body(6, t, epilogue); return;
    case 5: int8_body(5, t, epilogue); return;
    case 4: int8_body(4, t, epilogue); return;
    case 3: int8_body(3, t, epilogue); return;
    case 2: int8_body(2, t, epilogue); return;
    default: int8_body(1, t, epilogue); return;
    }
}

/* bf16 --------------------------------------------------------------------------------------- */

#if defined BF16_DOT
/* given, as above */
#elif defined __AVX512BF16__ && RLX_LANES == 16
typedef __bf16 vh __attribute__((vector_size(RLX_LANES * 4)));
#define BF16_DOT(acc, a, w) __builtin_ia32_dpbf16ps_512(acc, (vh)(a), (vh)(w))
#elif defined __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
#include <arm_neon.h>
#define BF16_DOT(acc, a, w) ((vf)vbfdotq_f32((float32x4_t)(acc), (bfloat16x8_t)(a), (bfloat16x8_t)(w)))
#endif

#ifdef BF16_DOT
typedef unsigned short rlx_bf16;
#else
typedef float rlx_bf16; /* rounded to bf16 */
#endif

/* One group of two terms for every row and column of a micro tile. */
RLX_INLINE void bf16_step(const int rows, const char *a, long lda, const char *panel,
                          vf acc[][RLX_TILE_VECTORS]) {
    vi w[RLX_TILE_VECTORS];
    RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++) w[j] = ldi(panel + j * RLX_LANES * 4);
#ifdef BF16_DOT
    RLX_UNROLL for (int r = 0; r < rows; r++) {
        const vi x = splati(*(const int_any *)(a + r * lda));
        RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++)
            acc[r][j] = BF16_DOT(acc[r][j], x, w[j]);
    }
#else
    RLX_UNROLL for (int term = 0; term < 2; term++) {
        vf v[RLX_TILE_VECTORS];
        RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++)
            v[j] = (vf)(term ? ldi(panel + j * RLX_LANES * 4) & splati(-65536) : w[j] << 16);
        RLX_UNROLL for (int r = 0; r < rows; r++) {
            const vf x = splat(((const float_any *)(a + r * lda))[term]);
            RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++) acc[r][j] += x * v[j];
        }
    }
#endif
}

RLX_INLINE void bf16_body(const int rows, const rlx_low *t, rlx_epilogue epilogue) {
    vf acc[RLX_TILE_ROWS][RLX_TILE_VECTORS];
    const char *a = t->a, *panel = t->panel, *ahead = t->ahead;
    const long lda = t->lda, lines = t->lines;
    RLX_UNROLL for (int r = 0; r < rows; r++)
        RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++) acc[r][j] = (vf){0};
    for (long i = t->groups / 4; i > 0; i--) {
        for (long line = 0; line < lines; line++, ahead += 64) __builtin_prefetch(ahead, 0, 2);
        RLX_UNROLL for (int u = 0; u < 4; u++)
            bf16_step(rows, a + u * 2 * sizeof(rlx_bf16), lda, panel + u * RLX_PANEL * 4, acc);
        a += 8 * sizeof(rlx_bf16), panel += RLX_PANEL * 16;
    }
    for (long i = t->groups % 4; i > 0; i--) {
        bf16_step(rows, a, lda, panel, acc);
        a += 2 * sizeof(rlx_bf16), panel += RLX_PANEL * 4;
    }
    RLX_UNROLL for (int r = 0; r < rows; r++)
        RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++)
            low_store(t, r, j * RLX_LANES, acc[r][j], epilogue);
}

RLX_INLINE void bf16_micro(const rlx_low *t, long rows, rlx_epilogue epilogue) {
    switch (rows) {
#if RLX_TILE_ROWS == 8
    case 8: bf16_body(8, t, epilogue); return;
    case 7: bf16_body(7, t, epilogue); return;
#endif
    case 6: bf16_body(6, t, epilogue); return;
    case 5: bf16_body(5, t, epilogue); return;
    case 4: bf16_body(4, t, epilogue); return;
    case 3: bf16_body(3, t, epilogue); return;
    case 2: bf16_body(2, t, epilogue); return;
    default: bf16_body(1, t, epilogue); return;
    }
}

/* The loops around both ---------------------------------------------------------------------- */

/* Panels of `bytes` bytes are the outer loop and rows the inner one, shared out evenly over micro
 * tiles of at most `most` rows; meanwhile the next panel is prefetched. */
RLX_INLINE void gemm_low(long m, long n, long groups, long bytes, const void *a, long lda,
                         const void *w, float *c, long ldc, const long most, rlx_low_kernel kernel,
                         rlx_epilogue epilogue, const float *const *x) {
    if (m <= 0) return;
    const long tiles = (m + most - 1) / most, rows = m / tiles, extra = m % tiles;
    float part[RLX_TILE_ROWS * RLX_PANEL];
    rlx_low t = {.groups = groups, .lda = lda, .x = x, .panel = w};
    for (t.col = 0; t.col < n; t.col += RLX_PANEL, t.panel += bytes) {
        const long width = least(RLX_PANEL, n - t.col);
        t.ahead = t.panel + bytes;
        t.lines = (RLX_PANEL / 4 + tiles - 1) / tiles; /* of the RLX_PANEL / 4 of four groups */
        t.row = 0;
        for (long i = 0; i < tiles; i++) {
            const long r = rows + (i < extra);
            t.a = (const char *)a + t.row * lda;
            t.c = width < RLX_PANEL ? part : c + t.row * ldc + t.col;
            t.ldc = width < RLX_PANEL ? RLX_PANEL : ldc;
            kernel(&t, r, epilogue);
            if (width < RLX_PANEL)
                for (long y = 0; y < r; y++)
                    for (long j = 0; j < width; j++)
                        c[(t.row + y) * ldc + t.col + j] = part[y * RLX_PANEL + j];
            t.row += r;
            t.ahead += groups / 4 * t.lines * 64;
            if (t.ahead >= t.panel + 2 * bytes) t.lines = 0;
        }
    }
}

RLX_INLINE void gemm_int8(long m, long n, long k, const void *a, long lda, const void *w, float *c,
                          long ldc, rlx_epilogue epilogue, const float *const *x) {
    const long groups = (k + 3) / 4;
    gemm_low(m, n, groups, groups * RLX_PANEL * 4 + RLX_PANEL * 8, a, lda, w, c, ldc, INT8_ROWS,
             int8_micro, epilogue, x);
}

RLX_INLINE void gemm_bf16(long m, long n, long k, const void *a, long lda, const void *w, float *c,
                          long ldc, rlx_epilogue epilogue, const float *const *x) {
    const long groups = (k + 1) / 2;
    gemm_low(m, n, groups, groups * RLX_PANEL * 4, a, lda, w, c, ldc, RLX_TILE_ROWS, bf16_micro,
             epilogue, x);
}

#endif
