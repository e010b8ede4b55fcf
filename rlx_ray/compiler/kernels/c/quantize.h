/* Rows of float32 as the operands of a matmul of low precision (gemm_low.h).
 *
 *   bf16  each value rounded to nearest, ties to even; a row is k values, one more (0) if k is odd.
 *   int8  each row u = round(x / s) + z, a byte, with s = (max - min) / 255 and z = round(-min / s)
 *         over the row's values and 0, so that 0 is exact; a row is k values and zeros up to a
 *         multiple of 4, then s (float32) and z (int32). Source: Jacob et al., arXiv:1712.05877.
 *
 * `pitch` is the bytes from row to row. */
#ifndef RLX_QUANTIZE_H
#define RLX_QUANTIZE_H

#include "gemm_low.h"

typedef rlx_q8 vq8 __attribute__((vector_size(RLX_LANES * sizeof(rlx_q8)), aligned(1), may_alias));
typedef unsigned short vu16 __attribute__((vector_size(RLX_LANES * 2), aligned(1), may_alias));

/* round(x * inv) + zero within a byte; `inv` is finite. */
RLX_INLINE vi byte_of(vf x, vf inv, vf zero) {
    vf u = __builtin_elementwise_roundeven(x * inv) + zero;
    return __builtin_convertvector(vmin(vmax(u, (vf){0}), splat(255.0f)), vi);
}

RLX_INLINE void quantize_int8(long rows, long k, const float *x, char *y, long pitch) {
    const long whole = k / RLX_LANES * RLX_LANES, padded = (k + 3) / 4 * 4;
    for (long r = 0; r < rows; r++, x += k, y += pitch) {
        rlx_q8 *q = (rlx_q8 *)y;
        vf low = {0}, high = {0};
        for (long i = 0; i < whole; i += RLX_LANES) {
            low = vmin(low, ld(x + i));
            high = vmax(high, ld(x + i));
        }
        float least_value = -lanes_max(-low), most = lanes_max(high);
        for (long i = whole; i < k; i++) {
            least_value = x[i] < least_value ? x[i] : least_value;
            most = x[i] > most ? x[i] : most;
        }
        const float scale = (most - least_value) / 255.0f;
        const float inv = scale > 1e-30f ? 1.0f / scale : 0.0f;
        const vf zero = __builtin_elementwise_roundeven(splat(-least_value * inv));
        for (long i = 0; i < whole; i += RLX_LANES)
            *(vq8 *)(q + i) = __builtin_convertvector(byte_of(ld(x + i), splat(inv), zero), vq8);
        for (long i = whole; i < k; i++) q[i] = (rlx_q8)byte_of(splat(x[i]), splat(inv), zero)[0];
        for (long i = k; i < padded; i++) q[i] = 0;
        *(float_any *)(q + padded) = scale;
        *(int_any *)((char *)(q + padded) + 4) = (int)zero[0];
#if defined __ARM_FEATURE_DOTPROD
        /* sdot takes signed bytes: both u and z less 128. */
        for (long i = 0; i < padded; i++) q[i] ^= 128;
        *(int_any *)((char *)(q + padded) + 4) -= 128;
#endif
    }
}

/* The upper half of each float32 after rounding. */
RLX_INLINE vi bf16_of(vf x) {
    const vi bits = (vi)x;
    return (bits + splati(0x7fff) + ((bits >> 16) & splati(1))) >> 16;
}

RLX_INLINE void quantize_bf16(long rows, long k, const float *x, char *y, long pitch) {
    const long whole = k / RLX_LANES * RLX_LANES;
    for (long r = 0; r < rows; r++, x += k, y += pitch) {
        rlx_bf16 *q = (rlx_bf16 *)y;
#ifdef BF16_DOT
        for (long i = 0; i < whole; i += RLX_LANES)
            *(vu16 *)(q + i) = __builtin_convertvector(bf16_of(ld(x + i)), vu16);
        for (long i = whole; i < k; i++) q[i] = (unsigned short)bf16_of(splat(x[i]))[0];
#else
        for (long i = 0; i < whole; i += RLX_LANES) st(q + i, (vf)(bf16_of(ld(x + i)) << 16));
        for (long i = whole; i < k; i++) q[i] = ((vf)(bf16_of(splat(x[i])) << 16))[0];
#endif
        if (k % 2) q[k] = 0;
    }
}

#endif
