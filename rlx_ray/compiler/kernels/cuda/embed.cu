/* Rows of embedding tables, summed:
 *
 *   y[r] = (base[r]) (+ word[ids[r]]) (+ position[r % SEQ + FIRST]) (+ kind[types[r]])
 *
 *   for (int r = 0; r < ROWS; r++)
 *       for (int i = 0; i < N; i++) y[r][i] = base[r][i] + word[ids[r]][i] + ...;
 *
 * Ragged rows have places[r] for r % SEQ. An index outside its table reads row 0: the caller has
 * checked. With RLX_Q8 the rows of `word` are N / 32 float16 scales, then N int8 codes
 * (rlx_ray.weights.formats.QUANT_ROWS).
 *
 * Constants: RLX_T; RLX_ROWS, RLX_N, RLX_SEQ (0 without lengths and positions), RLX_RAGGED;
 * RLX_VOCAB, RLX_POSITIONS and RLX_TYPES, rows of a table, 0 where it is not summed; RLX_FIRST;
 * RLX_BASE (0 or 1); RLX_Q8 (0 or 1); RLX_BLOCK threads.
 * Arguments: ids int32 [rows], types int32 [rows], places int32 [rows], word, position, kind, base,
 * lengths, y.
 * Launch: grid ceil(ROWS N / V / BLOCK), V = the widest access that divides N. */
#include "embed.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK)
    RLX_NAME(const int *ids, const int *types, const int *places, const void *word,
             const RLX_T *position, const RLX_T *kind, const RLX_T *base, const int *lengths,
             RLX_T *y) {
    constexpr int V = vector_width<RLX_T>(RLX_N), VECTORS = RLX_N / V;
    const int at = blockIdx.x * RLX_BLOCK + threadIdx.x;
    const int row = at / VECTORS, i = at % VECTORS * V;
    if (row >= RLX_ROWS || is_padding<RLX_SEQ>(lengths, row)) return;
    const int place = RLX_RAGGED ? places[row] : row % (RLX_SEQ ? RLX_SEQ : 1);
    float sum[V];
#pragma unroll
    for (int j = 0; j < V; j++) sum[j] = 0;
    if constexpr (RLX_BASE) add<V>(base + (long)row * RLX_N + i, sum);
    if constexpr (RLX_VOCAB > 0) {
        const long found = known_row<RLX_VOCAB>(ids[row]);
        if constexpr (RLX_Q8) add_coded<V, RLX_N>(word, found, i, sum);
        else add<V>(static_cast<const RLX_T *>(word) + found * RLX_N + i, sum);
    }
    if constexpr (RLX_POSITIONS > 0)
        add<V>(position + known_row<RLX_POSITIONS>(place + RLX_FIRST) * RLX_N + i, sum);
    if constexpr (RLX_TYPES > 0) add<V>(kind + known_row<RLX_TYPES>(types[row]) * RLX_N + i, sum);
    store<V>(y + (long)row * RLX_N + i, sum);
}
