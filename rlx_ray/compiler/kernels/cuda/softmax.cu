/* Softmax of each row:  y[r][i] = exp(x[r][i] - max) / sum over j of exp(x[r][j] - max)
 *
 *   for (int r = 0; r < ROWS; r++) {
 *       float most = -RLX_INFINITY, sum = 0;
 *       for (int i = 0; i < N; i++) most = max(most, x[r][i]);
 *       for (int i = 0; i < N; i++) sum += exp(x[r][i] - most);
 *       for (int i = 0; i < N; i++) y[r][i] = exp(x[r][i] - most) / sum;
 *   }
 *
 * A row that is -infinity throughout gives zeros.
 *
 * Constants: RLX_T of x, RLX_OUT of y; RLX_ROWS, RLX_N; RLX_WARPS of one row, RLX_BLOCK threads.
 * Arguments: x, y (which may be x where their types are one).
 * Launch: grid ceil(ROWS / (BLOCK / 32 / WARPS)); BLOCK is 32 WARPS where WARPS > 1, else any.
 *
 * Maximum and sum come from one pass (arXiv:1805.02867): a thread keeps both for what it has seen.
 * The second pass finds the row in L1 or L2. */
#include "rlx.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK) RLX_NAME(const RLX_T *x, RLX_OUT *y) {
    constexpr int LANES = 32 * RLX_WARPS, V = vector_width<RLX_T>(RLX_N);
    static_assert(RLX_WARPS == 1 || RLX_BLOCK == LANES, "barriers are the block's");
    __shared__ float part[2][32];
    const int row = blockIdx.x * (RLX_BLOCK / LANES) + threadIdx.x / LANES;
    const int lane = threadIdx.x % LANES;
    if (row >= RLX_ROWS) return;
    const long at = (long)row * RLX_N;
    float most = -RLX_INFINITY, sum = 0, v[V];
    for (int i = lane * V; i < RLX_N; i += LANES * V) {
        load<V>(x + at + i, v);
        float top = most;
#pragma unroll
        for (int j = 0; j < V; j++) top = fmaxf(top, v[j]);
        if (top == -RLX_INFINITY) continue;
        sum *= fast_exp(most - top);
#pragma unroll
        for (int j = 0; j < V; j++) sum += fast_exp(v[j] - top);
        most = top;
    }
    const float top = block_max<RLX_WARPS>(most, part[0]);
    sum = block_sum<RLX_WARPS>(most == -RLX_INFINITY ? 0.0f : sum * fast_exp(most - top), part[1]);
    const float share = sum > 0 ? 1.0f / sum : 0.0f, shift = sum > 0 ? top : 0.0f;
    for (int i = lane * V; i < RLX_N; i += LANES * V) {
        load<V>(x + at + i, v);
#pragma unroll
        for (int j = 0; j < V; j++) v[j] = fast_exp(v[j] - shift) * share;
        store<V>(y + at + i, v);
    }
}
