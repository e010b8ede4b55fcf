/* What draw.cuh and report.cuh are made of: random numbers, a row's order, selections over it by one
 * block. */
#ifndef RLX_SAMPLE_CUH
#define RLX_SAMPLE_CUH

#include "rlx.cuh"

/* Philox4x32-10 (Salmon et al., SC 2011): the first word of the block `counter` of the stream `key`. */
RLX_DEVICE unsigned philox(uint2 key, uint4 counter) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned high0 = __umulhi(0xd2511f53u, counter.x), low0 = 0xd2511f53u * counter.x;
        const unsigned high1 = __umulhi(0xcd9e8d57u, counter.z), low1 = 0xcd9e8d57u * counter.z;
        counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
        key.x += 0x9e3779b9u, key.y += 0xbb67ae85u;
    }
    return counter.x;
}
/* In [0, 1): the middles of 2^24 equal steps. */
RLX_DEVICE float uniform(uint2 key, int step, int round) {
    const unsigned x = philox(key, make_uint4((unsigned)step, (unsigned)round, 0, 0));
    return ((x >> 8) + 0.5f) * 5.9604645e-8f;
}

/* Whole numbers in the order of float32; zeros are equal, NaN is below all. */
RLX_DEVICE unsigned order_of(float x) {
    const unsigned bits = __float_as_uint(x + 0.0f); /* -0 becomes 0 */
    return x != x ? 0 : bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* The tokens of a row stand by falling score, equal ones by rising index. A cut is a place in that
 * order: what stands before it or at it. */
struct Cut {
    unsigned order;
    int index;
    RLX_MEMBER bool holds(unsigned other, int i) const {
        return other > order || (other == order && i <= index);
    }
};

/* The sum over all threads before this one, in the order of threads; `total` is that over all. */
template <int BLOCK, class N> RLX_DEVICE N block_scan(N mine, N *part, N &total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    N sum = mine;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const N other = __shfl_up_sync(RLX_ALL, sum, step);
        if (lane >= step) sum += other;
    }
    if (lane == 31) part[warp] = sum;
    __syncthreads();
    N before = 0, own = __shfl_up_sync(RLX_ALL, sum, 1);
    if (lane == 0) own = 0;
    total = 0;
#pragma unroll
    for (int w = 0; w < BLOCK / 32; w++) {
        if (w == warp) before = total;
        total += part[w];
    }
    __syncthreads();
    return before + own;
}

/* A row of N scores and the block that works on it. */
template <class T, int N, int BLOCK> struct SampleRow {
    static constexpr int V = vector_width<T>(N), DIGITS = 2048, EACH = ceil_div(DIGITS, BLOCK);
    const T *x;
    int *digits, *number; /* shared: [DIGITS], [BLOCK / 32 + 2] */

    /* f(score, index) for this thread's tokens, always in the same order. */
    template <class F> RLX_MEMBER void each(F f) const {
        each_number<N, BLOCK, 4>(x, threadIdx.x, f);
    }

    /* Which digit, from the largest down, holds the `wanted`th of the counted ones; `wanted` becomes
     * its place among those of that digit, and `there` how many these are. */
    RLX_MEMBER int digit(int &wanted, int &there) {
        __syncthreads();
        int own = 0, all;
        const int first = DIGITS - 1 - threadIdx.x * EACH;
        for (int i = 0; i < EACH; i++) own += first - i >= 0 ? digits[first - i] : 0;
        int before = block_scan<BLOCK>(own, number, all);
        int *found = number + BLOCK / 32;
        if (before < wanted && wanted <= before + own) {
            int i = first;
            for (; before + digits[i] < wanted; i--) before += digits[i];
            found[0] = i, found[1] = before;
        }
        __syncthreads();
        const int which = found[0];
        wanted -= found[1], there = digits[which];
        return which;
    }

    RLX_MEMBER void clear() {
        __syncthreads();
        for (int i = threadIdx.x; i < DIGITS; i += BLOCK) digits[i] = 0;
        __syncthreads();
    }

    /* The cut behind the `wanted`th token, 1 <= wanted <= N: digit by digit of order_of, 11, 11 and
     * 10 bits, then, if others have the same score, of the index. */
    RLX_MEMBER Cut nth(int wanted) {
        const unsigned least = at_least(wanted);
        unsigned known = 0, mask = 0;
        int there = 0;
#pragma unroll 1
        for (int shift = 21; shift >= 0; shift = shift == 21 ? 10 : shift - 10) {
            const unsigned width = shift ? 2047 : 1023;
            clear();
            each([&](float v, int) {
                const unsigned order = order_of(v);
                if (order >= least && (order & mask) == known)
                    atomicAdd(digits + (order >> shift & width), 1);
            });
            known |= (unsigned)digit(wanted, there) << shift, mask |= width << shift;
        }
        if (wanted == there) return {known, N};
        int index = 0, of = 0;
#pragma unroll 1
        for (int shift = 11; shift >= 0; shift -= 11) { /* from the least index up: digits reversed */
            clear();
            each([&](float v, int i) {
                if (order_of(v) == known && (i & of) == index)
                    atomicAdd(digits + (2047 - (i >> shift & 2047)), 1);
            });
            index |= (2047 - digit(wanted, there)) << shift, of |= 2047 << shift;
        }
        return {known, index};
    }

    /* A bound that `wanted` tokens reach at least: the order that many threads' best tokens reach.
     * Few tokens do, so that counting them meets few others. */
    RLX_MEMBER unsigned at_least(int wanted) {
        if (wanted > BLOCK || N < BLOCK * V) return 0;
        unsigned best = 0, known = 0;
        each([&](float v, int) { best = order_of(v) > best ? order_of(v) : best; });
        int there;
        clear();
        atomicAdd(digits + (best >> 21), 1);
        known = (unsigned)digit(wanted, there) << 21;
        return known;
    }
};

#endif
