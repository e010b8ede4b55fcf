/* The parts of attention_decode put together: for a row and head with maxima m[s], divisors l[s] and
 * sums v[s] of the splits s,
 *
 *   out = sum over s of 2^(m[s] - M) v[s] / sum over s of 2^(m[s] - M) l[s],  M = the largest m[s]
 *
 *   for (int r = 0; r < BATCH * SEQ * HEADS; r++)
 *       for (int d = 0; d < DIM; d++)
 *           for (int s = 0; s < SPLITS; s++) out[r][d] += exp2(m[r][s] - M) * v[r][s][d] / total;
 *
 * Constants: RLX_T; RLX_BATCH, RLX_SEQ, RLX_HEADS, RLX_DIM; RLX_SPLITS; RLX_BLOCK threads.
 * Arguments: partial, stats (as attention_decode leaves them), lengths, out [batch seq, heads dim].
 * Launch: grid ceil(BATCH SEQ HEADS DIM / BLOCK). */
#include "softmax.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK)
    RLX_NAME(const float *partial, const float *stats, const int *lengths, RLX_T *out) {
    const int at = blockIdx.x * RLX_BLOCK + threadIdx.x;
    if (at >= RLX_BATCH * RLX_SEQ * RLX_HEADS * RLX_DIM) return;
    const int row = at / RLX_DIM;
    if (is_padding<RLX_SEQ>(lengths, row / RLX_HEADS)) return;
    const long part = (long)row * RLX_SPLITS;
    out[at] = from_float<RLX_T>(combine_parts<RLX_SPLITS>(partial + part * RLX_DIM + at % RLX_DIM,
                                                          RLX_DIM, stats + part * 2));
}
