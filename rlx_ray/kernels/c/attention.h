/* Multi-head attention over sequences of up to `keys` tokens, masked by length:
 *
 *   out[q][h] = sum over k < length of softmax_k(scale * Q[q][h] . K[k][h]) V[k][h]
 *
 * Q, K and V are columns of one [tokens][3 * heads * dim] buffer. For each head, K^T and V are
 * copied into panels (the layout of gemm.h), so that both products run on its micro-kernel; the
 * scores of one micro tile of queries are all that exists of the score matrix. Keys at or past the
 * length are never read; a sequence of length 0 gives zeros. */
#ifndef RLX_ATTENTION_H
#define RLX_ATTENTION_H

#include "gemm.h"
#include "vmath.h"

#define ATT_PANELS(n) (((n) + RLX_PANEL - 1) / RLX_PANEL)
/* Bytes of scratch that attention() wants: K^T panels, V panels and one tile of scores. */
#define ATT_SCRATCH(keys, dim) \
    (4 * RLX_PANEL * ((dim) * ATT_PANELS(keys) + (keys) * ATT_PANELS(dim) + \
                      RLX_TILE_ROWS * ATT_PANELS(keys)))

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
RLX_INLINE void attention_softmax(const int rows, long length, long stride, float scale,
                                  float *scores, float *sums) {
    const long padded = (length + RLX_LANES - 1) / RLX_LANES * RLX_LANES;
    for (int r = 0; r < rows; r++, scores += stride) {
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

RLX_INLINE void attention_rows(const int rows, const long dim, long length, const long stride,
                               const long ld_in, const long ld_out, float scale, const float *q,
                               const float *kt, const float *vp, float *scores, float *out) {
    float sums[RLX_TILE_ROWS];
    vf acc[RLX_TILE_ROWS][RLX_TILE_VECTORS];
    for (long p = 0; p * RLX_PANEL < length; p++) {
        RLX_UNROLL for (int r = 0; r < rows; r++)
            RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++) acc[r][j] = (vf){0};
        micro(rows, dim, q, ld_in, kt + p * dim * RLX_PANEL, acc, (const char *)kt, 0);
        RLX_UNROLL for (int r = 0; r < rows; r++)
            RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++)
                st(scores + r * stride + p * RLX_PANEL + j * RLX_LANES, acc[r][j]);
    }
    attention_softmax(rows, length, stride, scale, scores, sums);
    for (long p = 0; p < ATT_PANELS(dim); p++) {
        RLX_UNROLL for (int r = 0; r < rows; r++)
            RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++) acc[r][j] = (vf){0};
        micro(rows, length, scores, stride, vp + p * length * RLX_PANEL, acc, (const char *)vp, 0);
        RLX_UNROLL for (int r = 0; r < rows; r++) {
            RLX_UNROLL for (int j = 0; j < RLX_TILE_VECTORS; j++) {
                long at = p * RLX_PANEL + j * RLX_LANES;
                vf y = acc[r][j] / sums[r];
                if (at + RLX_LANES <= dim) st(out + r * ld_out + at, y);
                else if (at < dim) st_part(out + r * ld_out + at, y, dim - at);
            }
        }
    }
}

/* `queries` rows of one sequence from row `first` on; qkv is the sequence's first token, out the
 * tile's first row. */
RLX_INLINE void attention_sequence(const long queries, const long keys, const long heads,
                                   const long dim, float scale, long first, long length,
                                   const float *qkv, float *out, float *scratch) {
    const long width = heads * dim, ld_in = 3 * width, stride = ATT_PANELS(keys) * RLX_PANEL;
    const long tiles = (queries + RLX_TILE_ROWS - 1) / RLX_TILE_ROWS;
    const long rows = queries / tiles, more = queries % tiles;
    float *kt = scratch, *vp = kt + dim * stride;
    float *scores = vp + keys * ATT_PANELS(dim) * RLX_PANEL;
    length = length < keys ? length : keys;
    if (length <= 0) {
        for (long i = 0; i < queries * width; i++) out[i] = 0;
        return;
    }
    for (long h = 0; h < heads; h++) {
        const float *q = qkv + first * ld_in + h * dim, *k = qkv + width + h * dim;
        attention_pack(dim, ld_in, length, k, k + width, kt, vp);
        float *to = out + h * dim;
        for (long t = 0; t < more; t++, q += (rows + 1) * ld_in, to += (rows + 1) * width)
            attention_rows(rows + 1, dim, length, stride, ld_in, width, scale, q, kt, vp, scores, to);
        for (long t = more; t < tiles; t++, q += rows * ld_in, to += rows * width)
            attention_rows(rows, dim, length, stride, ld_in, width, scale, q, kt, vp, scores, to);
    }
}

/* A tile of `sequences` whole sequences. */
RLX_INLINE void attention(const long sequences, const long keys, const long heads, const long dim,
                          float scale, const float *qkv, const int *lengths, float *out,
                          float *scratch) {
    const long width = heads * dim;
    for (long s = 0; s < sequences; s++)
        attention_sequence(keys, keys, heads, dim, scale, 0, lengths[s], qkv + s * keys * 3 * width,
                           out + s * keys * width, scratch);
}

#endif
