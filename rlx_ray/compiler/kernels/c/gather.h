/* Rows of embedding tables, summed:  y[r] = sum over t of table_t[index_t(r)]
 *
 * Each table is [extent][n]. The index of a table is ids[r], or, where ids is null, the row's
 * position r % period + first. An index outside the table reads row 0: the caller has checked. */
#ifndef RLX_GATHER_H
#define RLX_GATHER_H

#include "span.h"

#ifndef BLOCK
#error "the unit defines BLOCK: terms of a row of int8 codes that share a scale"
#endif

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

/* Row i of a table whose rows are n / BLOCK float16 scales, then n int8 codes, plus base. */
RLX_INLINE void gather_add_q8(const long n, const char *table, long i, const float *base,
                              float *y) {
    typedef _Float16 half __attribute__((may_alias));
    const half *d = (const half *)(table + i * (n + n / BLOCK * 2));
    const signed char *q = (const signed char *)(d + n / BLOCK);
    for (long b = 0; b < n / BLOCK; b++) {
        const float scale = (float)d[b];
        for (long j = b * BLOCK; j < b * BLOCK + BLOCK; j++) y[j] = (base ? base[j] : 0) + scale * q[j];
    }
}

#if defined(SPAN_BATCH)
/* The packed rows of a span; y and base are the span's first row. The ids of sequence q begin at
 * ids[q * pitch], or, where pitch is 0, at its first row. */
RLX_INLINE void gather_rows(const int q8, const rlx_span *s, const long n, const long pitch,
                            const char *table, const int *ids, const long first, const long extent,
                            const float *base, float *y) {
    const long end = s->row + s->rows;
    for (long q = s->seq, at = s->start; at < end; q++) {
        const long length = span_length(s->lengths, q, at);
        const long from = s->row > at ? s->row : at, to = end < at + length ? end : at + length;
        const int *own = ids ? ids + (pitch ? q * pitch : at) : 0;
        for (long row = from; row < to; row++) {
            const long i = own ? own[row - at] : row - at + first, r = row - s->row;
            const long known = i >= 0 && i < extent ? i : 0;
            const float *under = base ? base + r * n : 0;
            if (q8) gather_add_q8(n, table, known, under, y + r * n);
            else gather_add(n, (const float *)table + known * n, under, y + r * n);
        }
        at += length;
    }
}

RLX_INLINE void gather_span(const rlx_span *s, const long n, const long pitch, const void *table,
                            const int *ids, const long first, const long extent, const float *base,
                            float *y) {
    gather_rows(0, s, n, pitch, table, ids, first, extent, base, y);
}

RLX_INLINE void gather_span_q8(const rlx_span *s, const long n, const long pitch,
                               const void *table, const int *ids, const long first,
                               const long extent, const float *base, float *y) {
    gather_rows(1, s, n, pitch, table, ids, first, extent, base, y);
}
#endif

#endif
