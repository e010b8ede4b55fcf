/* Rows of embedding tables, summed:  y[r] = sum over t of table_t[index_t(r)]
 *
 * Each table is [extent][n]. The index of a table is ids[r], or, where ids is null, the row's
 * position r % period + first. An index outside the table reads row 0: the caller has checked. */
#ifndef RLX_GATHER_H
#define RLX_GATHER_H

#include "span.h"

RLX_INLINE const float *gather_row(const float *table, const int *ids, long r, long period,
                                   long first, long extent, long n) {
    long i = ids ? ids[r] : r % period + first;
    return table + (i >= 0 && i < extent ? i : 0) * n;
}

/* y = from, or base + from; base may be y itself. */
RLX_INLINE void gather_add(const long n, const float *from, const float *base, float *y) {
    const long whole = n - n % RLX_LANES;
    long i = 0;
    for (; i < whole; i += RLX_LANES) st(y + i, base ? ld(base + i) + ld(from + i) : ld(from + i));
    for (; i < n; i++) y[i] = base ? base[i] + from[i] : from[i];
}

/* y[r] = base[r] + table[index(r)]; base may be null (zero) or y itself. */
RLX_INLINE void gather(const long rows, const long n, const float *table, const int *ids,
                       const long period, const long first, const long extent, const float *base,
                       float *y) {
    for (long r = 0; r < rows; r++)
        gather_add(n, gather_row(table, ids, r, period, first, extent, n), base ? base + r * n : 0,
                   y + r * n);
}

#if defined(SPAN_BATCH)
/* The packed rows of a span; y and base are the span's first row. The ids of sequence q begin at
 * ids[q * pitch], or, where pitch is 0, at its first row. */
RLX_INLINE void gather_span(const rlx_span *s, const long n, const long pitch, const float *table,
                            const int *ids, const long first, const long extent, const float *base,
                            float *y) {
    const long end = s->row + s->rows;
    for (long q = s->seq, at = s->start; at < end; q++) {
        const long length = span_length(s->lengths, q, at);
        const long from = s->row > at ? s->row : at, to = end < at + length ? end : at + length;
        const int *own = ids ? ids + (pitch ? q * pitch : at) : 0;
        for (long row = from; row < to; row++) {
            const long i = own ? own[row - at] : row - at + first, r = row - s->row;
            gather_add(n, table + (i >= 0 && i < extent ? i : 0) * n, base ? base + r * n : 0,
                       y + r * n);
        }
        at += length;
    }
}
#endif

#endif
