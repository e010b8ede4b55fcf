/* Which keys a new token sees:  y[b][t][k] = 1 where 0 <= past[b] + t - k (< WINDOW), else 0
 *
 *   for (int b = 0; b < BATCH; b++)
 *       for (int t = 0; t < TOKENS; t++)
 *           for (int k = 0; k < KEYS; k++) y[b][t][k] = k <= past[b] + t && k > past[b] + t - WINDOW;
 *
 * Constants: RLX_T; RLX_BATCH, RLX_TOKENS, RLX_KEYS; RLX_WINDOW (0 for none); RLX_BLOCK threads.
 * Arguments: past, y [batch, tokens, keys].
 * Launch: grid ceil(BATCH TOKENS KEYS / BLOCK). */
#include "rlx.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK) RLX_NAME(const int *past, RLX_T *y) {
    const int at = blockIdx.x * RLX_BLOCK + threadIdx.x;
    if (at >= RLX_BATCH * RLX_TOKENS * RLX_KEYS) return;
    const int row = at / RLX_KEYS;
    const int before = past[row / RLX_TOKENS] + row % RLX_TOKENS - at % RLX_KEYS;
    y[at] = from_float<RLX_T>(before >= 0 && (!RLX_WINDOW || before < RLX_WINDOW) ? 1.0f : 0.0f);
}
