/* Rows to unit length:  y[r] = x[r] / max(|x[r]|, 1e-12), as torch.nn.functional.normalize does.
 *
 *   for (int r = 0; r < ROWS; r++) {
 *       float squares = 0;
 *       for (int i = 0; i < N; i++) squares += x[r][i] * x[r][i];
 *       for (int i = 0; i < N; i++) y[r][i] = x[r][i] / max(sqrt(squares), 1e-12);
 *   }
 *
 * Constants: RLX_T of x, RLX_OUT of y; RLX_ROWS, RLX_N; RLX_WARPS of one row, RLX_BLOCK threads.
 * Arguments: x, y (which may be x).
 * Launch: grid ceil(ROWS / (BLOCK / 32 / WARPS)); BLOCK is 32 WARPS where WARPS > 1, else any. */
#include "norm.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK) RLX_NAME(const RLX_T *x, RLX_OUT *y) {
    typedef NormRow<RLX_T, RLX_N, RLX_WARPS> Row;
    static_assert(RLX_WARPS == 1 || RLX_BLOCK == 32 * RLX_WARPS, "barriers are the block's");
    __shared__ float part[32];
    const int row = blockIdx.x * (RLX_BLOCK / Row::LANES) + threadIdx.x / Row::LANES;
    if (row >= RLX_ROWS) return;
    const long at = (long)row * RLX_N;
    Row own;
    own.lane = threadIdx.x % Row::LANES;
    own.read<false, false, false>(x + at, x, (const float *)0, (RLX_T *)0);
    const float scale = 1.0f / fmaxf(sqrtf(own.squares(0, part)), 1e-12f);
    own.each([&](float(&v)[Row::V], int column) {
#pragma unroll
        for (int j = 0; j < Row::V; j++) v[j] *= scale;
        store<Row::V>(y + at + column, v);
    });
}
