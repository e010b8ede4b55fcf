/* From token rows to one row a sequence, over its first lengths[b] of RLX_SEQ rows:
 *
 *   POOL 0: mean, sum / length    1: maximum of each column    2: the first row    3: the last row
 *
 * and with RLX_L2 that row to unit length, y / max(|y|, 1e-12). A length of 0 gives zeros.
 *
 *   for (int b = 0; b < BATCH; b++)
 *       for (int i = 0; i < N; i++) {
 *           float sum = 0;
 *           for (int t = 0; t < lengths[b]; t++) sum += x[b * SEQ + t][i];
 *           y[b][i] = lengths[b] ? sum / lengths[b] : 0;
 *       }
 *
 * Constants: RLX_T of x, RLX_OUT of y; RLX_BATCH, RLX_SEQ, RLX_RAGGED, RLX_N; RLX_POOL; RLX_L2 (0 or
 * 1); RLX_COLUMNS that a block does (all of N with RLX_L2), RLX_GROUPS of warps that share out the
 * rows, RLX_BLOCK threads.
 * Arguments: x, lengths (starts where rows are ragged), y.
 * Launch: grid (ceil(N / COLUMNS), BATCH); BLOCK any; shared 4 (GROUPS + 1) COLUMNS bytes.
 *
 * A warp sums 32 vectors of columns over every GROUPSth row; then the groups are added in order. */
#include "ragged.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK) RLX_NAME(const RLX_T *x, const int *lengths, RLX_OUT *y) {
    constexpr int V = vector_width<RLX_T>(RLX_N), WIDE = 32 * V, WARPS = RLX_BLOCK / 32;
    constexpr bool MOST = RLX_POOL == 1, ONE = RLX_POOL >= 2;
    __shared__ float part[32];
    float *sums = reinterpret_cast<float *>(dynamic_shared()), *done = sums + RLX_GROUPS * RLX_COLUMNS;
    const int batch = blockIdx.y, first = blockIdx.x * RLX_COLUMNS;
    const int columns = min(RLX_COLUMNS, RLX_N - first);
    const Span span = span_of<RLX_SEQ, RLX_RAGGED != 0>(lengths, batch);
    const int length = span.length;
    const int begin = RLX_POOL == 3 ? max(length - 1, 0) : 0;
    const int end = ONE ? min(begin + 1, length) : length;
    x += (long)span.first * RLX_N + first;

    for (int at = threadIdx.x / 32; at < RLX_GROUPS * ceil_div(RLX_COLUMNS, WIDE); at += WARPS) {
        const int group = at % RLX_GROUPS, column = at / RLX_GROUPS * WIDE + threadIdx.x % 32 * V;
        if (column >= columns) continue;
        float sum[V];
#pragma unroll
        for (int j = 0; j < V; j++) sum[j] = MOST && length > 0 ? -RLX_INFINITY : 0.0f;
#pragma unroll 4
        for (int t = begin + group; t < end; t += RLX_GROUPS) {
            float v[V];
            load<V>(x + (long)t * RLX_N + column, v);
#pragma unroll
            for (int j = 0; j < V; j++) sum[j] = MOST ? fmaxf(sum[j], v[j]) : sum[j] + v[j];
        }
        store<V>(sums + group * RLX_COLUMNS + column, sum);
    }
    __syncthreads();
    float squares = 0;
    for (int i = threadIdx.x; i < columns; i += RLX_BLOCK) {
        float sum = sums[i];
        for (int group = 1; group < RLX_GROUPS; group++) {
            const float other = sums[group * RLX_COLUMNS + i];
            sum = MOST ? fmaxf(sum, other) : sum + other;
        }
        if (RLX_POOL == 0 && length > 0) sum /= length;
        done[i] = sum, squares += sum * sum;
    }
    if constexpr (RLX_L2) squares = block_sum<WARPS>(squares, part);
    const float scale = RLX_L2 ? 1.0f / fmaxf(sqrtf(squares), 1e-12f) : 1.0f;
    for (int i = threadIdx.x; i < columns; i += RLX_BLOCK)
        y[(long)batch * RLX_N + first + i] = from_float<RLX_OUT>(done[i] * scale);
}
