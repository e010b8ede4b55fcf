/* A token of each row of scores, drawn by chance:
 *
 *   p[i] ~ exp(x[i] / temperature), of which are kept, by falling score, equal ones by rising index:
 *     the first top_k tokens (0: all); of these the ones with p >= min_p times the largest; and of
 *     these, with p made to sum to 1, each whose predecessors' p sum to less than top_p.
 *
 *   order = stable argsort of -x;  w = exp((x[order] - x[order[0]]) / temperature)
 *   w = w[:top_k];  w = w[w >= min_p];  w = w[:1 + first(cumsum(w) / sum(w) >= top_p)]
 *   y = order[draw from w / sum(w)]
 *
 * Temperature 0 takes the first token, and so does a score of infinity. Draws are Philox4x32-10 of
 * the row's seed at counter (step, attempt): the same seed, step and scores give the same token in any
 * row of any batch.
 *
 * Constants: RLX_T; RLX_ROWS, RLX_N (at most 2^22); RLX_BLOCK threads.
 * Arguments: x [rows, n]; temperature float32, top_k int32, top_p float32, min_p float32, seed uint64
 * and step int32, [rows] each; lengths int32 [rows]: rows of length 0 are skipped, null: none; y int32
 * [rows].
 * Launch: grid ROWS; shared 8448 bytes.
 *
 * Nothing is sorted. The last of the top_k tokens is found by counting digits of scores; the rest by
 * rejection: a token is drawn from all, and if its predecessors weigh top_p or more, another one is
 * drawn from the predecessors alone, which hold all that is kept. Few are rejected: at the first
 * attempt less than 1 - top_p. */
#include "sample.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK, 1)
    RLX_NAME(const RLX_T *x, const float *temperature, const int *top_k, const float *top_p,
             const float *min_p, const uint2 *seed, const int *step, const int *lengths, int *y) {
    static_assert(RLX_N <= 1 << 22, "more scores than two digits count");
    constexpr int WARPS = RLX_BLOCK / 32;
    __shared__ float part[32];
    __shared__ Cut drawn;
    __shared__ int owner;
    const int row = blockIdx.x;
    if (lengths && lengths[row] == 0) return;
    int *digits = reinterpret_cast<int *>(dynamic_shared());
    SampleRow<RLX_T, RLX_N, RLX_BLOCK> own = {x + (long)row * RLX_N, digits, digits + 2048};

    float most = -RLX_INFINITY;
    int place = RLX_N;
    own.each([&](float v, int i) {
        if (v > most) most = v, place = i;
    });
    block_argmax<WARPS>(most, place, part, digits);
    if (place == RLX_N) place = 0; /* no number at all */
    const float heat = temperature[row];
    if (!(heat > 0) || fabsf(most) == RLX_INFINITY) { /* infinity has no weight beside others */
        if (threadIdx.x == 0) y[row] = place;
        return;
    }
    const float scale = 1.44269504f / heat, least = min_p[row]; /* log2(e) */
    const auto weight = [&](float v) {
        const float w = v == v ? fast_exp2((v - most) * scale) : 0.0f;
        return w >= least ? w : 0.0f;
    };

    const int count = top_k[row];
    Cut kept = {0, RLX_N};
    if (count > 0 && count < RLX_N) kept = own.nth(count);
    float mine = 0, limit = 0;
    own.each([&](float v, int i) { mine += kept.holds(order_of(v), i) ? weight(v) : 0.0f; });
    for (int attempt = 0;; attempt++) {
        float total;
        const float before = block_scan<RLX_BLOCK>(mine, part, total);
        const float target = uniform(seed[row], step[row], attempt) * total;
        if (attempt == 0) limit = top_p[row] < 1 ? top_p[row] * total : RLX_INFINITY;
        if (threadIdx.x == 0) owner = 0;
        __syncthreads();
        if (mine > 0 && before <= target) atomicMax(&owner, (int)threadIdx.x);
        __syncthreads();
        if ((int)threadIdx.x == owner) { /* the first token whose running sum is beyond the target */
            float sum = before;
            bool beyond = false;
            own.each([&](float v, int i) {
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
        own.each([&](float v, int i) { mine += last.holds(order_of(v), i) ? weight(v) : 0.0f; });
        const float ahead = block_sum<WARPS>(mine, part);
        if (ahead < limit || ahead == 0) break;
        __syncthreads(); /* part is read, drawn too */
        kept = last;
    }
    if (threadIdx.x == 0) y[row] = drawn.index;
}
