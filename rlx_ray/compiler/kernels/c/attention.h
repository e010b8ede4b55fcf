/* Multi-head attention within sequences:
 *
 *   out[q][h] = sum over the sequence's k of softmax_k(scale * Q[q][h] . K[k][h]) V[k][h]
 *
 * Q, K and V are columns of one [rows][3 * heads * dim] buffer. For each head, K^T and V are copied
 * into panels (the layout of gemm.h), so that both products run on its micro-kernels; the scores of
 * one micro tile of queries are all that exists of the score matrix. A sequence is as long as it is:
 * there is no mask, and no key beyond its end. */
#ifndef RLX_ATTENTION_H
#define RLX_ATTENTION_H

#include "gemm.h"
#include "span.h"
#include "vmath.h"

#define ATT_PANELS(n) (((n) + RLX_PANEL - 1) / RLX_PANEL)

RLX_INLINE void attention_pack(const long dim, const long ld_in, long length, const float *k,
                               const float *v, float *kt, float *vp) {
    const long key_panels = (length + RLX_PANEL - 1) / RLX_PANEL;
    for (long p = 0; p < key_panels; p++) {
        for (long j = 0; j < RLX_PANEL; j++) {
            long key = p * RLX_PANEL + j;
            float *to = kt + p * dim * RLX_PANEL + j;
            if (key < length) for (long d = 0; d < dim; d++) to[d * RLX_PANEL] = k[key * ld_in + d];
            else for (long d = 0; d < dim; d++) to[d * RLX_PANEL] = 0;
        }
    }
    for (long p = 0; p < ATT_PANELS(dim); p++) {
        long width = dim - p * RLX_PANEL < RLX_PANEL ? dim - p * RLX_PANEL : RLX_PANEL;
        for (long key = 0; key < length; key++) {
            float *to = vp + (p * length + key) * RLX_PANEL;
            const float *from = v + key * ld_in + p * RLX_PANEL;
            for (long d = 0; d < width; d++) to[d] = from[d];
            for (long d = width; d < RLX_PANEL; d++) to[d] = 0;
        }
    }
}

/* Softmax of `rows` rows of scores in place, without the division; sums[r] takes the divisor. */
RLX_INLINE void attention_softmax(long rows, long length, long stride, float scale,
                                  float *scores, float *sums) {
    const long padded = (length + RLX_LANES - 1) / RLX_LANES * RLX_LANES;
    for (long r = 0; r < rows; r++, scores += stride) {
        for (long i = length; i < padded; i++) scores[i] = -3.0e38f;
        vf most = splat(-3.0e38f);
        for (long i = 0; i < padded; i += RLX_LANES) most = vmax(most, ld(scores + i));
        const vf top = splat(lanes_max(most) * scale);
        vf sum = {0};
        for (long i = 0; i < padded; i += RLX_LANES) {
            vf e = vexp(RLX_FMA(ld(scores + i), splat(scale), -top));
            if (i + RLX_LANES > length)
                RLX_UNROLL for (int j = 0; j < RLX_LANES; j++) e[j] = i + j < length ? e[j] : 0;
            st(scores + i, e);
            sum += e;
        }
        sums[r] = lanes_sum(sum);
    }
}

/* One micro tile of queries of one head; `fixed` is the number of rows where it is known to the
 * compiler, else 0. */
RLX_INLINE void attention_rows(const int fixed, long rows, const long dim, long length, long stride,
                               long ld_in, long ld_out, float scale, const float *q,
                               const float *kt, const float *vp, float *scores, float *out) {
    float sums[RLX_TILE_ROWS], *part = scores + RLX_TILE_ROWS * stride;
    const long width = ATT_PANELS(dim) * RLX_PANEL;
    rlx_micro t = {.k = dim, .a = q, .lda = ld_in, .ldc = stride};
    for (long p = 0; p * RLX_PANEL < length; p++) {
        t.panel = kt + p * dim * RLX_PANEL, t.c = scores + p * RLX_PANEL;
        if (fixed) micro_body(fixed, &t, 0);
        else micro(&t, rows);
    }
    attention_softmax(rows, length, stride, scale, scores, sums);
    t = (rlx_micro){.k = length, .a = scores, .lda = stride, .ldc = width};
    for (long p = 0; p < ATT_PANELS(dim); p++) {
        t.panel = vp + p * length * RLX_PANEL, t.c = part + p * RLX_PANEL;
        if (fixed) micro_body(fixed, &t, 0);
        else micro(&t, rows);
    }
    for (long r = 0; r < rows; r++) {
        const vf share = splat(1.0f / sums[r]);
        long d = 0;
        for (; d + RLX_LANES <= dim; d += RLX_LANES)
            st(out + r * ld_out + d, ld(part + r * width + d) * share);
        if (d < dim) st_part(out + r * ld_out + d, ld(part + r * width + d) * share, dim - d);
    }
}

/* Heads [first, first + count) of one sequence: queries [from, to) against all its keys. qkv is the
 * sequence's first token; out is the row of query `from`, head 0. */
RLX_KERNEL void attention_sequence(long from, long to, long length, long first, long count,
                                   const long keys, const long heads, const long dim, float scale,
                                   const float *qkv, float *out, float *scratch) {
    const long width = heads * dim, ld_in = 3 * width, stride = ATT_PANELS(keys) * RLX_PANEL;
    const long queries = to - from;
    if (queries <= 0) return;
    const long tiles = (queries + RLX_TILE_ROWS - 1) / RLX_TILE_ROWS;
    const long rows = queries / tiles, extra = queries % tiles;
    float *kt = scratch, *vp = kt + dim * stride;
    float *scores = vp + keys * ATT_PANELS(dim) * RLX_PANEL;
    for (long h = first; h < first + count; h++) {
        const float *q = qkv + from * ld_in + h * dim, *k = qkv + width + h * dim;
        attention_pack(dim, ld_in, length, k, k + width, kt, vp);
        float *y = out + h * dim;
        for (long t = 0; t < tiles; t++) {
            const long r = rows + (t < extra);
            if (r == RLX_TILE_ROWS)
                attention_rows(RLX_TILE_ROWS, RLX_TILE_ROWS, dim, length, stride, ld_in, width,
                               scale, q, kt, vp, scores, y);
            else if (r == RLX_TILE_ROWS - 1)
                attention_rows(RLX_TILE_ROWS - 1, RLX_TILE_ROWS - 1, dim, length, stride, ld_in,
                               width, scale, q, kt, vp, scores, y);
            else
                attention_rows(0, r, dim, length, stride, ld_in, width, scale, q, kt, vp, scores,
                               y);
            q += r * ld_in, y += r * width;
        }
    }
}

#if defined(SPAN_BATCH)
/* The rows of a span, some heads. qkv is row 0 of all, out the span's first row. */
RLX_INLINE void attention(const rlx_span *s, long first, long count, const long keys,
                          const long heads, const long dim, float scale, const float *qkv,
                          float *out, float *scratch) {
    const long end = s->row + s->rows, width = heads * dim;
    for (long q = s->seq, at = s->start; at < end; q++) {
        const long length = span_length(s->lengths, q, at);
        const long from = s->row > at ? s->row - at : 0;
        const long to = end - at < length ? end - at : length;
        attention_sequence(from, to, length, first, count, keys, heads, dim, scale,
                           qkv + at * 3 * width, out + (at + from - s->row) * width, scratch);
        at += length;
    }
}
#endif

/* A tile of `sequences` sequences of `keys` padded tokens each; rows beyond a length are zeros. */
RLX_INLINE void attention_padded(const long sequences, const long keys, const long heads,
                                 const long dim, float scale, const float *qkv, const int *lengths,
                                 float *out, float *scratch) {
    const long width = heads * dim;
    for (long s = 0; s < sequences; s++, qkv += keys * 3 * width, out += keys * width) {
        const long n = lengths[s] < 0 ? 0 : lengths[s] < keys ? lengths[s] : keys;
        attention_sequence(0, n, n, 0, heads, keys, heads, dim, scale, qkv, out, scratch);
        for (long i = n * width; i < keys * width; i++) out[i] = 0;
    }
}

#endif
