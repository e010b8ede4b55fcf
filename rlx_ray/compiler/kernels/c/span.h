/* A span: the token rows, and the sequences, that one tile works on.
 *
 * Token rows are packed: row 0 is the first token of sequence 0, and sequence q + 1 begins where
 * sequence q ends, so that padding exists in the inputs at most. Which rows are there is known only
 * at run time, from the lengths; each tile finds its own span.
 *
 * The unit defines SPAN_BATCH (most sequences), SPAN_CAP (most tokens of one) and SPAN_ROWS (most
 * token rows). Lengths outside these are cut down to them. */
#ifndef RLX_SPAN_H
#define RLX_SPAN_H

#include "rt.h"

typedef struct {
    long row, rows;     /* token rows [row, row + rows) */
    long seq, seqs;     /* `seq` is the sequence that holds `row`; seqs is set for whole sequences */
    long start;         /* the row at which sequence `seq` begins */
    const int *lengths; /* tokens of each sequence */
} rlx_span;

#if defined(SPAN_BATCH)

/* Tokens of sequence q, which begins at row `at`. */
RLX_INLINE long span_length(const int *lengths, long q, long at) {
    long length = lengths[q] < 0 ? 0 : lengths[q] < SPAN_CAP ? lengths[q] : SPAN_CAP;
    return length < SPAN_ROWS - at ? length : SPAN_ROWS - at;
}

RLX_INLINE long span_total(const int *lengths) {
    long at = 0;
    for (long q = 0; q < SPAN_BATCH; q++) at += span_length(lengths, q, at);
    return at;
}

/* All rows. */
RLX_INLINE rlx_span span_whole(const int *lengths) {
    return (rlx_span){0, span_total(lengths), 0, SPAN_BATCH, 0, lengths};
}

/* Tiles are enough for a batch without padding. With fewer rows neighbouring tiles are joined, so
 * that each keeps about SPAN_ROWS / tiles rows while every thread has work: `joined` are left, a
 * multiple of the threads where that is possible. */
RLX_INLINE long span_joined(long total, const long tiles, long threads) {
    const long goal = (SPAN_ROWS + tiles - 1) / tiles;
    const long wanted = ((total + goal - 1) / goal + threads - 1) / threads * threads;
    return wanted < 1 ? 1 : least(wanted, tiles);
}

/* Which joined tile this tile does; -1 if it has been joined to the one before. */
RLX_INLINE long span_own(long tile, const long tiles, long joined) {
    const long own = tile * joined / tiles;
    return (own * tiles + joined - 1) / joined == tile ? own : -1;
}

/* An equal share of the rows; it may begin inside a sequence. */
RLX_INLINE rlx_span span_rows(const int *lengths, long tile, const long tiles, long threads) {
    const long total = span_total(lengths), joined = span_joined(total, tiles, threads);
    const long own = span_own(tile, tiles, joined);
    if (own < 0) return (rlx_span){0, 0, 0, 0, 0, lengths};
    const long row = total * own / joined, end = total * (own + 1) / joined;
    long q = 0, start = 0;
    for (; q < SPAN_BATCH; q++) {
        const long length = span_length(lengths, q, start);
        if (start + length > row) break;
        start += length;
    }
    return (rlx_span){row, end - row, q, 0, start, lengths};
}

/* Whole sequences: sequence q belongs to the joined tile that its first row falls in. */
RLX_INLINE rlx_span span_sequences(const int *lengths, long tile, const long tiles, long threads) {
    const long total = span_total(lengths), joined = span_joined(total, tiles, threads);
    const long own = span_own(tile, tiles, joined);
    rlx_span span = {0, 0, 0, 0, 0, lengths};
    for (long q = 0, at = 0; q < SPAN_BATCH && own >= 0; q++) {
        const long length = span_length(lengths, q, at);
        const long home = total ? least(at * joined / total, joined - 1) : 0;
        if (home == own) {
            if (!span.seqs) span.seq = q, span.row = span.start = at;
            span.rows += length;
            span.seqs++;
        }
        at += length;
    }
    return span;
}

/* Sequence `tile`. */
RLX_INLINE rlx_span span_each(const int *lengths, long tile) {
    long at = 0;
    for (long q = 0; q < tile; q++) at += span_length(lengths, q, at);
    return (rlx_span){at, span_length(lengths, tile, at), tile, 1, at, lengths};
}

#endif
#endif
