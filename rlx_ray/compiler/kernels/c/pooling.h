/* From token rows to one row a sequence, over the first `length` of `tokens` tokens.
 *
 *   mean: sum / length      max: the largest of each column      cls: the first token's row
 *   last: the last token's row
 *
 * A sequence of length 0 gives zeros. */
#ifndef RLX_POOLING_H
#define RLX_POOLING_H

#include "span.h"

enum { POOL_MEAN, POOL_MAX, POOL_CLS, POOL_LAST };

/* One sequence of `length` rows. */
RLX_INLINE void pool_one(long length, const long n, const int kind, const float *x, float *y) {
    if (kind == POOL_LAST && length > 0) x += (length - 1) * n;
    for (long i = 0; i < n; i++) y[i] = length > 0 ? x[i] : 0;
    if (kind == POOL_CLS || kind == POOL_LAST) return;
    for (long t = 1; t < length; t++)
        for (long i = 0; i < n; i++) {
            float v = x[t * n + i];
            y[i] = kind == POOL_MAX ? (v > y[i] ? v : y[i]) : y[i] + v;
        }
    if (kind == POOL_MEAN && length > 0)
        for (long i = 0; i < n; i++) y[i] /= (float)length;
}

RLX_INLINE void pool_rows(const long sequences, const long tokens, const long n, const int kind,
                          const float *x, const int *lengths, float *y) {
    for (long s = 0; s < sequences; s++, x += tokens * n, y += n)
        pool_one(lengths[s] < tokens ? lengths[s] : tokens, n, kind, x, y);
}

#if defined(SPAN_BATCH)
/* The whole sequences of a span; x is its first row, y its first sequence. */
RLX_INLINE void pool_span(const rlx_span *s, const long n, const int kind, const float *x,
                          float *y) {
    for (long i = 0, at = s->row; i < s->seqs; i++, y += n) {
        const long length = span_length(s->lengths, s->seq + i, at);
        pool_one(length, n, kind, x, y);
        x += length * n, at += length;
    }
}
#endif

#endif
