/* Online softmax (arXiv:1805.02867): a maximum, a divisor and weighted sums that are corrected when
 * the maximum grows. Scores are in powers of two, log2(e) already multiplied in; -infinity masks. */
#ifndef RLX_SOFTMAX_CUH
#define RLX_SOFTMAX_CUH

#include "rlx.cuh"

/* What sums made under the maximum `old` are worth under `most`; 0 where there were none. */
RLX_DEVICE float correction(float old, float most) {
    return old == -RLX_INFINITY ? 0.0f : fast_exp2(old - most);
}

/* A maximum that may be subtracted: 0 where all scores are masked. */
RLX_DEVICE float shift_of(float most) { return most == -RLX_INFINITY ? 0.0f : most; }

/* What SPLITS parts of a row come to at one dimension: `part` has one of their sums every `stride`
 * numbers, `stats` their maxima and divisors. Read past L1, which knows nothing of other blocks. */
template <int SPLITS>
RLX_DEVICE float combine_parts(const float *part, int stride, const float *stats) {
    float most = -RLX_INFINITY, total = 0, sum = 0;
    for (int s = 0; s < SPLITS; s++) most = fmaxf(most, __ldcg(stats + 2 * s));
#pragma unroll 4
    for (int s = 0; s < SPLITS; s++) {
        const float share = correction(__ldcg(stats + 2 * s), most);
        total += share * __ldcg(stats + 2 * s + 1);
        sum += share > 0 ? share * __ldcg(part + (long)s * stride) : 0.0f;
    }
    return total > 0 ? sum / total : 0.0f;
}

#endif
