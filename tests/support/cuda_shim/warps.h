/* What the 32 lanes of a warp do together: barriers, shuffles, votes, matrix products, and the
 * asynchronous copies of a thread. All lanes take part in each call; masks are full. */
#ifndef CUDA_SHIM_WARPS_H
#define CUDA_SHIM_WARPS_H

enum { SHIM_WARP = 32, SHIM_SLOT = 64 };

/* A lane writes to one of two slots in turn: to be at the next but one exchange, every lane must
 * have read its slots of this one. */
struct shim_warp {
    int arrived;
    __align__(16) char slots[2][SHIM_WARP][SHIM_SLOT];
    int turn[SHIM_WARP];
};
static shim_warp shim_warps[SHIM_THREADS / SHIM_WARP];

static void shim_reset_warps() {
    for (int w = 0; w < SHIM_THREADS / SHIM_WARP; w++) {
        shim_warps[w].arrived = 0;
        memset(shim_warps[w].turn, 0, sizeof shim_warps[w].turn);
    }
}
static inline int shim_lane() { return shim_now->index % SHIM_WARP; }

static void shim_warp_barrier(unsigned mask) {
    if (mask != 0xffffffffu) shim_fail("a warp-wide call must name all 32 lanes");
    shim_warp &w = shim_warps[shim_now->index / SHIM_WARP];
    if (++w.arrived == SHIM_WARP)
        w.arrived = 0, shim_release(shim_now->index / SHIM_WARP * SHIM_WARP, SHIM_WARP);
    shim_next();
}
static inline void __syncwarp(unsigned mask = 0xffffffffu) { shim_warp_barrier(mask); }

/* What every lane gave, lane l's at [l]; valid until the lane's next exchange. */
template <class V> struct shim_slot { V value; char rest[SHIM_SLOT - sizeof(V)]; };
template <class V> static const shim_slot<V> *shim_exchange(unsigned mask, const V &mine) {
    static_assert(sizeof(V) < SHIM_SLOT, "larger than a slot");
    shim_warp &w = shim_warps[shim_now->index / SHIM_WARP];
    const int lane = shim_lane(), turn = w.turn[lane] ^= 1;
    memcpy(w.slots[turn][lane], &mine, sizeof mine);
    shim_warp_barrier(mask);
    return (const shim_slot<V> *)w.slots[turn];
}

template <class V> static V __shfl_sync(unsigned mask, V mine, int from, int width = SHIM_WARP) {
    const int base = shim_lane() / width * width;
    return shim_exchange(mask, mine)[base + from % width].value;
}
template <class V> static V __shfl_xor_sync(unsigned mask, V mine, int with, int width = SHIM_WARP) {
    const int other = shim_lane() ^ with, own = shim_lane();
    const V found = shim_exchange(mask, mine)[other].value;
    return other / width == own / width ? found : mine;
}
template <class V> static V __shfl_down_sync(unsigned mask, V mine, int by, int width = SHIM_WARP) {
    const int lane = shim_lane(), from = lane % width + by < width ? lane + by : lane;
    return shim_exchange(mask, mine)[from].value;
}
template <class V> static V __shfl_up_sync(unsigned mask, V mine, int by, int width = SHIM_WARP) {
    const int lane = shim_lane(), from = lane % width >= by ? lane - by : lane;
    return shim_exchange(mask, mine)[from].value;
}
static unsigned __ballot_sync(unsigned mask, int vote) {
    const auto *all = shim_exchange(mask, vote);
    unsigned found = 0;
    for (int i = 0; i < SHIM_WARP; i++) found |= (unsigned)(all[i].value != 0) << i;
    return found;
}
static int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
static int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) == 0xffffffffu; }

/* One 16 x 8 x 16 product as mma.sync lays it out: a lane holds pieces of every operand. `a` is
 * its 8 numbers of A (rows lane / 4 and 8 more, columns 2 (lane % 4) and 8 more), `b` its 4 of B,
 * both as float32. */
static void shim_mma(float (&c)[4], const float (&a)[8], const float (&b)[4]) {
    struct pieces { float a[8], b[4]; } mine;
    memcpy(mine.a, a, sizeof a), memcpy(mine.b, b, sizeof b);
    const auto *all = shim_exchange(0xffffffffu, mine);
    const int row = shim_lane() / 4, column = shim_lane() % 4 * 2;
    for (int k = 0; k < 16; k++) {
        const int pair = k % 8 / 2, high = k / 8;
        const float *x = all[row * 4 + pair].value.a + high * 4 + k % 2;
        const float y0 = all[column * 4 + pair].value.b[high * 2 + k % 2];
        const float y1 = all[column * 4 + 4 + pair].value.b[high * 2 + k % 2];
        c[0] += x[0] * y0, c[1] += x[0] * y1;
        c[2] += x[2] * y0, c[3] += x[2] * y1;
    }
}

/* ldmatrix: lane i names row i % 8 of the 8 x 8 matrix i / 8; a lane gets the numbers (lane / 4,
 * 2 (lane % 4)) and the next of each, or, transposed, those of (2 (lane % 4), lane / 4) and below. */
static void shim_ldmatrix(unsigned (&r)[4], const void *row, bool transposed) {
    if ((size_t)row % 16) shim_fail("a row of ldmatrix is not aligned to 16 bytes");
    const auto *all = shim_exchange(0xffffffffu, (const unsigned short *)row);
    const int g = shim_lane() / 4, t = shim_lane() % 4 * 2;
    for (int m = 0; m < 4; m++) {
        const unsigned low = transposed ? all[m * 8 + t].value[g] : all[m * 8 + g].value[t];
        const unsigned high = transposed ? all[m * 8 + t + 1].value[g] : all[m * 8 + g].value[t + 1];
        r[m] = low | high << 16;
    }
}

/* Asynchronous copies of 16 bytes, in groups. */
static void shim_copy_start(void *to, const void *from, int bytes) {
    if ((size_t)to % 16 || (bytes && (size_t)from % 16))
        shim_fail("an asynchronous copy is not aligned to 16 bytes");
    if (shim_now->copies == SHIM_COPIES) shim_fail("too many asynchronous copies under way");
    shim_now->pending[shim_now->copies++] = {to, from, bytes, shim_now->groups};
}
static void shim_copy_commit() { shim_now->groups++; }
static void shim_copy_wait(int newest) {
    shim_fiber *const f = shim_now;
    int kept = 0;
    for (int i = 0; i < f->copies; i++) {
        const shim_copy c = f->pending[i];
        if (c.group >= f->groups - newest) {
            f->pending[kept++] = c;
            continue;
        }
        if (c.bytes) memcpy(c.to, c.from, c.bytes);
        if (c.bytes < 16) memset((char *)c.to + c.bytes, 0, 16 - c.bytes);
    }
    f->copies = kept;
}

#endif
