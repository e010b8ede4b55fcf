/* The place of each row's largest number; the first one of equals. NaN is never the largest.
 *
 *   for (int r = 0; r < ROWS; r++) {
 *       y[r] = 0;
 *       for (int i = 1; i < N; i++)
 *           if (x[r][i] > x[r][y[r]]) y[r] = i;
 *   }
 *
 * Constants: RLX_T; RLX_ROWS, RLX_N; RLX_BLOCK threads.
 * Arguments: x, lengths int32 [rows]: rows of length 0 are skipped, null: none; y int32 [rows].
 * Launch: grid ROWS. */
#include "rlx.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK) RLX_NAME(const RLX_T *x, const int *lengths, int *y) {
    __shared__ float values[32];
    __shared__ int places[32];
    if (lengths && lengths[blockIdx.x] == 0) return;
    const RLX_T *own = x + (long)blockIdx.x * RLX_N;
    float best = -RLX_INFINITY;
    int place = RLX_N;
    each_number<RLX_N, RLX_BLOCK, 4>(own, threadIdx.x, [&](float v, int i) {
        if (v > best) best = v, place = i;
    });
    block_argmax<RLX_BLOCK / 32>(best, place, values, places);
    if (threadIdx.x == 0) y[blockIdx.x] = place < RLX_N ? place : 0;
}
