/* The parts of attention_decode put together: for a row and head with maxima m[s], divisors l[s] and
 * sums v[s] of the splits s,
 *
 *   out = sum over s of 2^(m[s] - M) v[s] / sum over s of 2^(m[s] - M) l[s],  M = the largest m[s]
 *
 *   for (int r = 0; r < BATCH * SEQ * HEADS; r++)
 *       for (int d = 0; d < DIM; d++)
 *           for (int s = 0; s < SPLITS; s++) out[r][d] += exp2(m[r][s] - M) * v[r][s][d] / total;
 *
 * Constants: RLX_T; RLX_BATCH, RLX_SEQ, RLX_HEADS, RLX_DIM; RLX_SPLITS; RLX_BLOCK threads.
 * Arguments: partial, stats (as attention_decode leaves them), lengths, out [batch seq, heads dim].
 * Launch: grid ceil(BATCH SEQ HEADS / (BLOCK / 32)): a warp for each row and head. */
#include "softmax.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK)
    RLX_NAME(const float *partial, const float *stats, const int *lengths, RLX_T *out) {
    constexpr int COUNT = ceil_div(RLX_DIM, 32);
    const int at = blockIdx.x * (RLX_BLOCK / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (at >= RLX_BATCH * RLX_SEQ * RLX_HEADS || is_padding<RLX_SEQ>(lengths, at / RLX_HEADS)) return;
    const float *own = stats + (long)at * RLX_SPLITS * 2;
    float most = -RLX_INFINITY, total = 0, sum[COUNT] = {};
    for (int s = lane; s < RLX_SPLITS; s += 32) most = fmaxf(most, own[s * 2]);
    most = warp_max(most);
#pragma unroll 4
    for (int s = 0; s < RLX_SPLITS; s++) {
        const float share = correction(own[s * 2], most);
        total += share * own[s * 2 + 1];
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            if (lane + 32 * i < RLX_DIM)
                sum[i] += share * partial[((long)at * RLX_SPLITS + s) * RLX_DIM + lane + 32 * i];
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        if (lane + 32 * i < RLX_DIM)
            out[(long)at * RLX_DIM + lane + 32 * i] =
                from_float<RLX_T>(total > 0 ? sum[i] / total : 0.0f);
}

#undef RLX_NAME
#undef RLX_T
#undef RLX_BATCH
#undef RLX_SEQ
#undef RLX_HEADS
#undef RLX_DIM
#undef RLX_SPLITS
#undef RLX_BLOCK
