/* Rows of embedding tables, summed:  y[r] = sum over t of table_t[index_t(r)]
 *
 * Each table is [extent][n]. The index of a table is ids[r], or, where ids is null, the row's
 * position r % period + first. An index outside the table reads row 0: the caller has checked. */
#ifndef RLX_GATHER_H
#define RLX_GATHER_H

#include "rt.h"

RLX_INLINE const float *gather_row(const float *table, const int *ids, long r, long period,
                                   long first, long extent, long n) {
    long i = ids ? ids[r] : r % period + first;
    return table + (i >= 0 && i < extent ? i : 0) * n;
}

/* y[r] = base[r] + table[index(r)]; base may be null (zero) or y itself. */
RLX_INLINE void gather(const long rows, const long n, const float *table, const int *ids,
                       const long period, const long first, const long extent, const float *base,
                       float *y) {
    const long whole = n - n % RLX_LANES;
    for (long r = 0; r < rows; r++, y += n) {
        const float *from = gather_row(table, ids, r, period, first, extent, n);
        const float *add = base ? base + r * n : 0;
        long i = 0;
        for (; i < whole; i += RLX_LANES) st(y + i, add ? ld(add + i) + ld(from + i) : ld(from + i));
        for (; i < n; i++) y[i] = add ? add[i] + from[i] : from[i];
    }
}

#endif
