/* Layer norm of each row, or of a sum that it computes first (arXiv:1607.06450):
 *
 *   s = x[r] (+ bias) (+ residual[r])                      sum[r] = s
 *   y[r][i] = (s[i] - mean(s)) / sqrt(var(s) + eps) * gain[i] + shift[i]
 *
 *   for (int r = 0; r < ROWS; r++) {
 *       float mean = 0, var = 0;
 *       for (int i = 0; i < N; i++) mean += s(r, i) / N;
 *       for (int i = 0; i < N; i++) var += (s(r, i) - mean) * (s(r, i) - mean) / N;
 *       for (int i = 0; i < N; i++)
 *           y[r][i] = (s(r, i) - mean) / sqrt(var + EPS) * gain[i] + shift[i];
 *   }
 *
 * Constants: RLX_T; RLX_ROWS, RLX_N, RLX_SEQ, RLX_EPS; RLX_BIAS, RLX_RESIDUAL, RLX_SUM (0 or 1: has
 * a bias, a residual; writes the sum); RLX_WARPS of one row, RLX_BLOCK threads.
 * Arguments: x, residual, bias [n], gain [n], shift [n], lengths, sum, y. sum may be residual or x.
 * Launch: grid ceil(ROWS / (BLOCK / 32 / WARPS)); BLOCK is 32 WARPS where WARPS > 1, else any. */
#include "norm.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK)
    RLX_NAME(const RLX_T *x, const RLX_T *residual, const float *bias, const float *gain,
             const float *shift, const int *lengths, RLX_T *sum, RLX_T *y) {
    typedef NormRow<RLX_T, RLX_N, RLX_WARPS> Row;
    static_assert(RLX_WARPS == 1 || RLX_BLOCK == 32 * RLX_WARPS, "barriers are the block's");
    __shared__ float part[2][32];
    const int row = blockIdx.x * (RLX_BLOCK / Row::LANES) + threadIdx.x / Row::LANES;
    if (row >= RLX_ROWS || is_padding<RLX_SEQ>(lengths, row)) return;
    const long at = (long)row * RLX_N;
    Row own;
    own.lane = threadIdx.x % Row::LANES;
    own.read<RLX_BIAS, RLX_RESIDUAL, RLX_SUM>(x + at, residual + at, bias, sum + at);
    const float mean = own.total(part[0]) / RLX_N;
    const float scale = rsqrtf(own.squares(mean, part[1]) / RLX_N + RLX_EPS);
    own.each([&](float(&v)[Row::V], int column) {
        float g[Row::V], b[Row::V];
        load<Row::V>(gain + column, g);
        load<Row::V>(shift + column, b);
#pragma unroll
        for (int j = 0; j < Row::V; j++) v[j] = (v[j] - mean) * scale * g[j] + b[j];
        store<Row::V>(y + at + column, v);
    });
}
