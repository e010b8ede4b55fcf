/* Positions:  y[i] = i % PERIOD + FIRST (+ base[i / PERIOD])
 *
 * Constants: RLX_ROWS, RLX_PERIOD, RLX_FIRST; RLX_BASE (0 or 1); RLX_BLOCK threads.
 * Arguments: base int32 [rows / period], y int32 [rows].
 * Launch: grid ceil(ROWS / BLOCK). */
#include "rlx.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK) RLX_NAME(const int *base, int *y) {
    const int at = blockIdx.x * RLX_BLOCK + threadIdx.x;
    if (at >= RLX_ROWS) return;
    y[at] = at % RLX_PERIOD + RLX_FIRST + (RLX_BASE ? base[at / RLX_PERIOD] : 0);
}
