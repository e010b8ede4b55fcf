/* One axis away:  y[a][c] = the sum (REDUCE 0) or the maximum (1) over b of x[a][b][c]
 *
 *   for (int a = 0; a < OUTER; a++)
 *       for (int c = 0; c < INNER; c++)
 *           for (int b = 0; b < EXTENT; b++) y[a][c] += x[a][b][c];
 *
 * Constants: RLX_T of x, RLX_OUT of y; RLX_OUTER, RLX_EXTENT, RLX_INNER; RLX_REDUCE; RLX_BLOCK threads.
 * Arguments: x, y.
 * Launch: grid ceil(OUTER INNER / (BLOCK / 32)): a warp for each result where INNER is 1, its lanes
 * along b; else grid ceil(OUTER INNER / BLOCK), a thread for each. */
#include "rlx.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK) RLX_NAME(const RLX_T *x, RLX_OUT *y) {
    constexpr int LANES = RLX_INNER == 1 ? 32 : 1;
    constexpr bool MOST = RLX_REDUCE == 1;
    const int at = (blockIdx.x * RLX_BLOCK + threadIdx.x) / LANES;
    if (at >= RLX_OUTER * RLX_INNER) return;
    const RLX_T *own = x + (long)(at / RLX_INNER) * RLX_EXTENT * RLX_INNER + at % RLX_INNER;
    float sum = MOST ? -RLX_INFINITY : 0.0f;
    for (int b = threadIdx.x % LANES; b < RLX_EXTENT; b += LANES) {
        const float v = to_float(own[(long)b * RLX_INNER]);
        sum = MOST ? fmaxf(sum, v) : sum + v;
    }
    sum = MOST ? warp_max<LANES>(sum) : warp_sum<LANES>(sum);
    if (threadIdx.x % LANES == 0) y[at] = from_float<RLX_OUT>(sum);
}
