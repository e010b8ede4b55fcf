/* How likely the tokens of a row of scores are, in natural logs. */
#ifndef RLX_REPORT_CUH
#define RLX_REPORT_CUH

#include "sample.cuh"

/* `logprob` of a token; into `likely` and `logs` [min(count, N)] the likeliest tokens, the likeliest
 * first, of equal ones the lower index, and theirs. count <= MOST; `part` is 32 numbers of shared
 * memory. */
template <int MOST, class T, int N, int BLOCK>
RLX_DEVICE void report(SampleRow<T, N, BLOCK> row, int token, int count, float *part, float *logprob,
                       int *likely, float *logs) {
    constexpr int WARPS = BLOCK / 32;
    static_assert(MOST <= BLOCK, "a thread for each of the likeliest");
    __shared__ Cut best[MOST];
    __shared__ int found;
    float most = -RLX_INFINITY, sum = 0;
    row.each([&](float v, int) { most = fmaxf(most, v); });
    most = block_max<WARPS>(most, part);
    row.each([&](float v, int) { sum += fast_exp(v - most); });
    __syncthreads(); /* part is read */
    const float log_sum = logf(block_sum<WARPS>(sum, part));
    if (threadIdx.x == 0) *logprob = to_float(row.x[token]) - most - log_sum;
    if (count == 0) return;

    count = min(count, N);
    if (threadIdx.x == 0) found = 0;
    const Cut last = row.nth(count); /* with barriers */
    row.each([&](float v, int i) {
        if (last.holds(order_of(v), i)) best[atomicAdd(&found, 1)] = {order_of(v), i};
    });
    __syncthreads();
    if ((int)threadIdx.x >= count) return;
    const Cut own = best[threadIdx.x];
    int rank = -1; /* it is among those that stand before it or at it */
    for (int i = 0; i < count; i++) rank += own.holds(best[i].order, best[i].index);
    likely[rank] = own.index;
    logs[rank] = to_float(row.x[own.index]) - most - log_sum;
}

#endif
