/* Where sequences begin that stand one after the other, and the place of each row in its sequence:
 *
 *   starts[b] = sum over j < b of lengths[j],   *rows = starts[BATCH],   places[starts[b] + i] = i
 *
 *   for (int b = 0, at = 0; b < BATCH; b++) {
 *       starts[b] = at;
 *       for (int i = 0; i < lengths[b]; i++) places[at++] = i;
 *       starts[b + 1] = *rows = at;
 *   }
 *
 * A length counts as RLX_SEQ at most, and all of them as RLX_ROWS: kernels that go by starts stay
 * within their rows. What stands in places behind the last row is not written.
 *
 * Constants: RLX_BATCH, RLX_SEQ, RLX_ROWS; RLX_BLOCK threads.
 * Arguments: lengths int32 [batch], starts int32 [batch + 1], rows int32 [1], places int32 [rows].
 * Launch: grid ceil((BATCH + 1) / (BLOCK / 32)): a warp for each sequence, and one for the end. */
#include "rlx.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK)
    RLX_NAME(const int *lengths, int *starts, int *rows, int *places) {
    const int batch = blockIdx.x * (RLX_BLOCK / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (batch > RLX_BATCH) return;
    int before = 0;
    for (int b = lane; b < batch; b += 32) before += max(0, min(lengths[b], RLX_SEQ));
    const int start = min(warp_sum(before), RLX_ROWS);
    if (lane == 0) starts[batch] = start;
    if (batch == RLX_BATCH) {
        if (lane == 0) *rows = start;
        return;
    }
    const int length = min(min(lengths[batch], RLX_SEQ), RLX_ROWS - start);
    for (int i = lane; i < length; i += 32) places[start + i] = i;
}
