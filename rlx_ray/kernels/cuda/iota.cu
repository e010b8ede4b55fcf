/* Positions:  y[i] = i % PERIOD + FIRST
 *
 * Constants: RLX_ROWS, RLX_PERIOD, RLX_FIRST; RLX_BLOCK threads.
 * Arguments: y int32 [rows].
 * Launch: grid ceil(ROWS / BLOCK). */
#include "rlx.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK) RLX_NAME(int *y) {
    const int at = blockIdx.x * RLX_BLOCK + threadIdx.x;
    if (at < RLX_ROWS) y[at] = at % RLX_PERIOD + RLX_FIRST;
}

#undef RLX_NAME
#undef RLX_ROWS
#undef RLX_PERIOD
#undef RLX_FIRST
#undef RLX_BLOCK
