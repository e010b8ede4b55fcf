/* Which tokens count:  y[b][t] = 1 where t < lengths[b], else 0
 *
 * Constants: RLX_T; RLX_BATCH, RLX_TOKENS; RLX_BLOCK threads.
 * Arguments: lengths, y [batch, tokens].
 * Launch: grid ceil(BATCH TOKENS / BLOCK). */
#include "rlx.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK) RLX_NAME(const int *lengths, RLX_T *y) {
    const int at = blockIdx.x * RLX_BLOCK + threadIdx.x;
    if (at >= RLX_BATCH * RLX_TOKENS) return;
    y[at] = from_float<RLX_T>(at % RLX_TOKENS < lengths[at / RLX_TOKENS] ? 1.0f : 0.0f);
}
