/* Sums and maxima over a warp or a block, in one fixed order: the same bits every time. */
#ifndef RLX_REDUCE_CUH
#define RLX_REDUCE_CUH

/* Over each group of LANES neighbouring lanes (a power of two); every lane gets the result. */
template <int LANES = 32, class T> RLX_DEVICE T warp_sum(T x) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(RLX_ALL, x, step);
    return x;
}
template <int LANES = 32> RLX_DEVICE float warp_max(float x) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(RLX_ALL, x, step));
    return x;
}

/* The largest number of a warp and its place, the lowest among equals, in every lane. */
RLX_DEVICE void warp_argmax(float &best, int &place) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(RLX_ALL, best, step);
        const int there = __shfl_xor_sync(RLX_ALL, place, step);
        if (other > best || (other == best && there < place)) best = other, place = there;
    }
}

/* Over a block of WARPS warps; every thread gets the result. `part` is WARPS floats of shared
 * memory, which the caller may use for nothing else: two calls in a row need no barrier between
 * them if each has its own. */
template <int WARPS> RLX_DEVICE float block_sum(float x, float *part) {
    x = warp_sum(x);
    if constexpr (WARPS == 1) return x;
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < WARPS ? part[threadIdx.x % 32] : 0.0f);
}
template <int WARPS> RLX_DEVICE float block_max(float x, float *part) {
    x = warp_max(x);
    if constexpr (WARPS == 1) return x;
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_max(part[threadIdx.x % 32 < WARPS ? threadIdx.x % 32 : 0]);
}

/* The same over a block; `values` and `places` are WARPS numbers of shared memory each. */
template <int WARPS>
RLX_DEVICE void block_argmax(float &best, int &place, float *values, int *places) {
    warp_argmax(best, place);
    if constexpr (WARPS == 1) return;
    const int lane = threadIdx.x % 32;
    if (lane == 0) values[threadIdx.x / 32] = best, places[threadIdx.x / 32] = place;
    __syncthreads();
    best = values[lane < WARPS ? lane : 0], place = places[lane < WARPS ? lane : 0];
    warp_argmax(best, place);
    __syncthreads();
}

#endif
