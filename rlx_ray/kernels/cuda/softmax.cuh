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

#endif
