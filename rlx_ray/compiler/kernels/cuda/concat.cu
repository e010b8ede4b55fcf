/* Rows side by side:  y[r] = a[r], then b[r]
 *
 *   for (int r = 0; r < ROWS; r++)
 *       for (int i = 0; i < M + N; i++) y[r][i] = i < M ? a[r][i] : b[r][i - M];
 *
 * Constants: RLX_T; RLX_ROWS; RLX_M of a, RLX_N of b; RLX_BLOCK threads.
 * Arguments: a [rows, m], b [rows, n], y [rows, m + n].
 * Launch: grid ceil(ROWS (M + N) / BLOCK). */
#include "rlx.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK) RLX_NAME(const RLX_T *a, const RLX_T *b, RLX_T *y) {
    const int at = blockIdx.x * RLX_BLOCK + threadIdx.x;
    if (at >= RLX_ROWS * (RLX_M + RLX_N)) return;
    const int row = at / (RLX_M + RLX_N), i = at % (RLX_M + RLX_N);
    y[at] = i < RLX_M ? a[row * RLX_M + i] : b[row * RLX_N + i - RLX_M];
}
