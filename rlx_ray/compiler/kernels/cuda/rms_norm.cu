/* RMS norm of each row, or of a sum that it computes first (arXiv:1910.07467):
 *
 *   s = x[r] (+ bias) (+ residual[r])                      sum[r] = s
 *   y[r][i] = s[i] / sqrt(mean(s^2) + eps) * gain[i]
 *
 *   for (int r = 0; r < ROWS; r++) {
 *       float squares = 0;
 *       for (int i = 0; i < N; i++) squares += s(r, i) * s(r, i);
 *       for (int i = 0; i < N; i++) y[r][i] = s(r, i) / sqrt(squares / N + EPS) * gain[i];
 *   }
 *
 * Constants: RLX_T; RLX_ROWS, RLX_N, RLX_SEQ, RLX_EPS; RLX_BIAS, RLX_RESIDUAL, RLX_SUM (0 or 1: has
 * a bias, a residual; writes the sum); RLX_WARPS of one row, RLX_BLOCK threads.
 * Arguments: x, residual, bias [n], gain [n], lengths, sum, y. sum may be residual or x.
 * Launch: grid ceil(ROWS / (BLOCK / 32 / WARPS)); BLOCK is 32 WARPS where WARPS > 1, else any.
 *
 * A row is read once, 16 bytes a thread, and stays in registers. The launcher takes as many warps as
 * a row has vectors where rows are few, and one where they are many. */
#include "norm.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK)
    RLX_NAME(const RLX_T *x, const RLX_T *residual, const float *bias, const float *gain,
             const int *lengths, RLX_T *sum, RLX_T *y) {
    typedef NormRow<RLX_T, RLX_N, RLX_WARPS> Row;
    static_assert(RLX_WARPS == 1 || RLX_BLOCK == 32 * RLX_WARPS, "barriers are the block's");
    __shared__ float part[32];
    const int row = blockIdx.x * (RLX_BLOCK / Row::LANES) + threadIdx.x / Row::LANES;
    if (row >= RLX_ROWS || is_padding<RLX_SEQ>(lengths, row)) return;
    const long at = (long)row * RLX_N;
    Row own;
    own.lane = threadIdx.x % Row::LANES;
    own.read<RLX_BIAS, RLX_RESIDUAL, RLX_SUM>(x + at, residual + at, bias, sum + at);
    const float scale = rsqrtf(own.squares(0, part) / RLX_N + RLX_EPS);
    own.each([&](float(&v)[Row::V], int column) {
        float g[Row::V];
        load<Row::V>(gain + column, g);
#pragma unroll
        for (int j = 0; j < Row::V; j++) v[j] *= scale * g[j];
        store<Row::V>(y + at + column, v);
    });
}
