/* Which rows are a sequence's, in a rectangle or where one sequence follows the other. */
#ifndef RLX_RAGGED_CUH
#define RLX_RAGGED_CUH

#include "rlx.cuh"

struct Span {
    int first, length; /* rows [first, first + length) */
};

/* The rows of a sequence. `lengths` are those of a rectangle, or, RAGGED, starts. */
template <int SEQ, bool RAGGED> RLX_DEVICE Span span_of(const int *lengths, int batch) {
    if constexpr (RAGGED) return {lengths[batch], lengths[batch + 1] - lengths[batch]};
    return {batch * SEQ, max(0, min(lengths[batch], SEQ))};
}

/* Tiles of SIZE / GROUP rows, none of two sequences. Those of sequence b have the numbers from
 * starts[b] GROUP / SIZE + b on, rounded down: room for all that it has, as floor(x + y) + 1 is at
 * least floor(x) + ceil(y). So no more than rows GROUP / SIZE + BATCH numbers are given, and some of
 * them stand for no tile. */
template <int SIZE, int GROUP> RLX_DEVICE int first_tile(int start, int batch) {
    return start * GROUP / SIZE + batch;
}
/* The sequence that a tile's number is given to; all lanes of a warp ask for one tile. */
template <int SIZE, int GROUP, int BATCH> RLX_DEVICE int sequence_of(const int *starts, int tile) {
    int begun = 0;
    for (int b = threadIdx.x % 32; b < BATCH; b += 32)
        begun += first_tile<SIZE, GROUP>(starts[b], b) <= tile;
    return warp_sum(begun) - 1;
}

#endif
