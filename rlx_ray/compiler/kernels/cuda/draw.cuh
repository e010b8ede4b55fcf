/* A token of a row of scores, drawn by one block; what it means is at the top of sample.cu.
 *
 * Nothing is sorted. The last of the top_k tokens is found by counting digits of scores; the rest by
 * rejection: a token is drawn from all, and if its predecessors weigh top_p or more, another one is
 * drawn from the predecessors alone, which hold all that is kept. Few are rejected: at the first
 * attempt less than 1 - top_p. */
#ifndef RLX_DRAW_CUH
#define RLX_DRAW_CUH

#include "sample.cuh"

struct Draw {
    float temperature;
    int top_k;
    float top_p, min_p;
    uint2 seed;
    int step;
};

/* Every thread gets the token; `part` is 32 numbers of shared memory. */
template <class T, int N, int BLOCK>
RLX_DEVICE int draw(SampleRow<T, N, BLOCK> row, const Draw how, float *part) {
    constexpr int WARPS = BLOCK / 32;
    __shared__ Cut drawn;
    __shared__ int owner;
    float most = -RLX_INFINITY;
    int place = N;
    row.each([&](float v, int i) {
        if (v > most) most = v, place = i;
    });
    block_argmax<WARPS>(most, place, part, row.digits);
    if (place == N) place = 0; /* no number at all */
    if (!(how.temperature > 0)) return place;
    if (fabsf(most) == RLX_INFINITY) return place; /* it has no weight beside others */
    const float scale = 1.44269504f / how.temperature, least = how.min_p; /* log2(e) */
    const auto weight = [&](float v) {
        const float w = v == v ? fast_exp2((v - most) * scale) : 0.0f;
        return w >= least ? w : 0.0f;
    };

    Cut kept = {0, N};
    if (how.top_k > 0 && how.top_k < N) kept = row.nth(how.top_k);
    float mine = 0, limit = 0;
    row.each([&](float v, int i) { mine += kept.holds(order_of(v), i) ? weight(v) : 0.0f; });
    for (int attempt = 0;; attempt++) {
        float total;
        const float before = block_scan<BLOCK>(mine, part, total);
        const float target = uniform(how.seed, how.step, attempt) * total;
        if (attempt == 0) limit = how.top_p < 1 ? how.top_p * total : RLX_INFINITY;
        if (threadIdx.x == 0) owner = 0;
        __syncthreads();
        if (mine > 0 && before <= target) atomicMax(&owner, (int)threadIdx.x);
        __syncthreads();
        if ((int)threadIdx.x == owner) { /* the first token whose running sum is beyond the target */
            float sum = before;
            bool beyond = false;
            row.each([&](float v, int i) {
                const float w = kept.holds(order_of(v), i) ? weight(v) : 0.0f;
                if (beyond || w == 0) return;
                sum += w, beyond = sum > target;
                drawn = {order_of(v), i};
            });
        }
        __syncthreads();
        const Cut last = {drawn.order, drawn.index - 1}; /* what stands before it */
        if (limit == RLX_INFINITY) break;
        mine = 0;
        row.each([&](float v, int i) { mine += last.holds(order_of(v), i) ? weight(v) : 0.0f; });
        const float ahead = block_sum<WARPS>(mine, part);
        if (ahead < limit || ahead == 0) break;
        __syncthreads(); /* part is read, drawn too */
        kept = last;
    }
    return drawn.index;
}

#endif
