/* One warp of decode attention: up to 16 query rows that share a head of keys against its pages.
 *
 * Both ways leave the same behind: for each row the maximum, the divisor and the weighted values. */
#ifndef RLX_DECODE_CUH
#define RLX_DECODE_CUH

#include "softmax.cuh"
#include "visible.cuh"

/* By tensor cores: keys as the 8 columns of B, then weights as A and values as B. Keys and values go
 * from memory to registers, 16 bytes a lane: the order of dimensions in a product of queries and keys
 * is free as long as both have the same, and so is that of the columns of the result. */
template <class T, int DIM, int ROWS, bool TENSOR> struct DecodeWarp {
    static constexpr int KEYS = DIM <= 64 ? 32 : 16; /* at once */
    static constexpr int STEPS = DIM / 16, WORDS = DIM / 16, TILES = DIM / 8;
    static constexpr int FULL = DIM / 64 * 8, REST = DIM % 64 / 8, PARTS = ceil_div(WORDS, 4);
    /* Values are under way while scores are made, where registers are left for them. */
    static constexpr bool EARLY = DIM <= 128;
    unsigned query[STEPS][4];
    float sum[TILES][4] = {}, most[2] = {-RLX_INFINITY, -RLX_INFINITY}, total[2] = {};

    /* The four words that lane t = lane % 4 has of a row: for the steps 2 c and 2 c + 1. */
    RLX_MEMBER static void row_words(const T *row, int t, unsigned (&w)[DIM / 8]) {
#pragma unroll
        for (int c = 0; c < DIM / 32; c++) copy_words<4>(w + 4 * c, row + c * 32 + t * 8);
        if constexpr (DIM % 32) copy_words<2>(w + DIM / 8 - 2, row + DIM / 32 * 32 + t * 4);
    }

    /* `at(r)` is row r's query, or null for none. */
    template <class At> RLX_MEMBER void read_queries(At at, int lane) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            unsigned w[DIM / 8] = {};
            const int own = lane / 4 + half * 8;
            const T *row = own < ROWS ? at(own) : 0;
            if (row) row_words(row, lane % 4, w);
#pragma unroll
            for (int s = 0; s < STEPS; s++) query[s][half] = w[2 * s], query[s][2 + half] = w[2 * s + 1];
        }
    }

    /* The words of a part of a token's values, 64 dimensions or what is left of them, that lane
     * g = lane / 4 has: dimensions as `dimension` says. */
    RLX_MEMBER static void value_words(const T *row, int g, int part, unsigned (&w)[4]) {
        if (part < DIM / 64) {
            copy_words<4>(w, row + part * 64 + g * 8);
        } else {
#pragma unroll
            for (int i = 0; i < REST / 2; i++)
                copy_words<1>(w + i, row + DIM / 64 * 64 + g * REST + 2 * i);
        }
    }
    /* The dimension that column n of tile e of the result stands for. */
    RLX_MEMBER static int dimension(int e, int n) {
        return e < FULL ? e / 8 * 64 + n * 8 + e % 8 : DIM / 64 * 64 + n * REST + e - FULL;
    }

    /* One page: keys and values [32][DIM], the first of them key `first` of the sequence. */
    template <class Sees>
    RLX_MEMBER void page(const T *keys, const T *values, int first, float scale, const Sees &sees,
                         int lane) {
#pragma unroll(EARLY ? 2 : 1)
        for (int from = 0; from < RLX_PAGE; from += KEYS)
            some_keys(keys + from * DIM, values + from * DIM, first + from, scale, sees, lane);
    }

    template <class Sees>
    RLX_MEMBER void some_keys(const T *keys, const T *values, int first, float scale,
                              const Sees &sees, int lane) {
        const int g = lane / 4, t = lane % 4;
        float score[KEYS / 8][4] = {};
        unsigned value[EARLY ? KEYS / 16 : 1][EARLY ? PARTS : 1][4][4];
        auto fetch = [&](int s, int part, unsigned (&w)[4][4]) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int key = s * 16 + i / 2 * 8 + 2 * t + i % 2;
#pragma unroll
                for (int j = 0; j < 4; j++) w[i][j] = 0; /* a slot that is free may hold NaN */
                if (first + key < sees.end()) value_words(values + key * DIM, g, part, w[i]);
            }
        };
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
            unsigned w[DIM / 8];
            row_words(keys + (j * 8 + g) * DIM, t, w);
#pragma unroll
            for (int s = 0; s < STEPS; s++) mma<T>(score[j], query[s], w[2 * s], w[2 * s + 1]);
        }
        if constexpr (EARLY) {
#pragma unroll
            for (int s = 0; s < KEYS / 16; s++)
#pragma unroll
                for (int part = 0; part < PARTS; part++) fetch(s, part, value[s][part]);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int low = sees.low(g + half * 8), high = sees.high(g + half * 8);
            float top = most[half];
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int key = first + j * 8 + 2 * t + e;
                    float &x = score[j][half * 2 + e];
                    x = key >= low && key < high ? x * scale : -RLX_INFINITY;
                    top = fmaxf(top, x);
                }
            top = fmaxf(top, __shfl_xor_sync(RLX_ALL, top, 1));
            top = fmaxf(top, __shfl_xor_sync(RLX_ALL, top, 2));
            const float less = correction(most[half], top), shift = shift_of(top);
            most[half] = top, total[half] *= less;
#pragma unroll
            for (int e = 0; e < TILES; e++) sum[e][half * 2] *= less, sum[e][half * 2 + 1] *= less;
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float &x = score[j][half * 2 + e];
                    x = fast_exp2(x - shift), total[half] += x;
                }
        }
#pragma unroll
        for (int s = 0; s < KEYS / 16; s++) {
            const float(&x)[4] = score[2 * s], (&y)[4] = score[2 * s + 1];
            const unsigned weights[4] = {pack<T>(x[0], x[1]), pack<T>(x[2], x[3]),
                                         pack<T>(y[0], y[1]), pack<T>(y[2], y[3])};
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                unsigned(&v)[4][4] = value[EARLY ? s : 0][EARLY ? part : 0];
                if constexpr (!EARLY) fetch(s, part, v);
#pragma unroll
                for (int e = part * 8; e < min(part * 8 + 8, TILES); e++) {
                    const int j = e / 2 % 4;
                    const unsigned pick = e % 2 ? 0x7632 : 0x5410;
                    mma<T>(sum[e], weights, __byte_perm(v[0][j], v[1][j], pick),
                           __byte_perm(v[2][j], v[3][j], pick));
                }
            }
        }
    }

    /* To shared memory: mosts [ROWS], totals [ROWS], sums [ROWS][DIM]. */
    RLX_MEMBER void write(float *mosts, float *totals, float *sums, int lane) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = lane / 4 + half * 8;
            const float whole = warp_sum<4>(total[half]);
            if (row >= ROWS) continue;
            if (lane % 4 == 0) mosts[row] = most[half], totals[row] = whole;
#pragma unroll
            for (int e = 0; e < TILES; e++)
#pragma unroll
                for (int n = 0; n < 2; n++)
                    sums[row * DIM + dimension(e, lane % 4 * 2 + n)] = sum[e][half * 2 + n];
        }
    }
};

/* In float32, for any type and dimension: a lane has a key while scores are made, and dimensions
 * while values are summed. */
template <class T, int DIM, int ROWS> struct DecodeWarp<T, DIM, ROWS, false> {
    static constexpr int COUNT = ceil_div(DIM, 32), V = vector_width<T>(DIM);
    const T *query[ROWS];
    float sum[ROWS][COUNT] = {}, most[ROWS], total[ROWS] = {};

    template <class At> RLX_MEMBER void read_queries(At at, int) {
#pragma unroll
        for (int row = 0; row < ROWS; row++) query[row] = at(row), most[row] = -RLX_INFINITY;
    }

    template <class Sees>
    RLX_MEMBER void page(const T *keys, const T *values, int first, float scale, const Sees &sees,
                         int lane) {
        float score[ROWS] = {};
        for (int d = 0; d < DIM; d += V) {
            float k[V], q[V];
            load<V>(keys + lane * DIM + d, k);
#pragma unroll
            for (int row = 0; row < ROWS; row++) {
                if (!query[row]) continue;
                load<V>(query[row] + d, q);
#pragma unroll
                for (int i = 0; i < V; i++) score[row] += q[i] * k[i];
            }
        }
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            if (!query[row]) continue;
            const bool seen = first + lane >= sees.low(row) && first + lane < sees.high(row);
            const float x = seen ? score[row] * scale : -RLX_INFINITY;
            const float top = fmaxf(most[row], warp_max(x)), less = correction(most[row], top);
            score[row] = fast_exp2(x - shift_of(top));
            most[row] = top, total[row] = total[row] * less + score[row];
#pragma unroll
            for (int i = 0; i < COUNT; i++) sum[row][i] *= less;
        }
        for (int key = 0; key < RLX_PAGE; key++) {
            float v[COUNT];
#pragma unroll
            for (int i = 0; i < COUNT; i++)
                v[i] = lane + 32 * i < DIM ? to_float(values[key * DIM + lane + 32 * i]) : 0.0f;
#pragma unroll
            for (int row = 0; row < ROWS; row++) {
                if (!query[row]) continue;
                const float weight = __shfl_sync(RLX_ALL, score[row], key);
#pragma unroll
                for (int i = 0; i < COUNT; i++)
                    sum[row][i] += weight > 0 ? weight * v[i] : 0.0f;
            }
        }
    }

    RLX_MEMBER void write(float *mosts, float *totals, float *sums, int lane) {
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            const float whole = warp_sum(total[row]);
            if (lane == 0) mosts[row] = most[row], totals[row] = whole;
#pragma unroll
            for (int i = 0; i < COUNT; i++)
                if (lane + 32 * i < DIM) sums[row * DIM + lane + 32 * i] = sum[row][i];
        }
    }
};

/* One block of decode attention: query rows that share a head of keys, and a part of its pages. */
template <class T, int DIM, int ROWS, int WARPS> struct DecodeBlock {
    static constexpr bool TENSOR = sizeof(T) == 2 && DIM % 16 == 0;
    /* Shared memory: mosts [WARPS][ROWS], totals [WARPS][ROWS], sums [WARPS][ROWS][DIM]. */
    float *mosts, *totals, *sums;

    RLX_MEMBER explicit DecodeBlock(float *shared)
        : mosts(shared), totals(mosts + WARPS * ROWS), sums(totals + WARPS * ROWS) {}

    /* Pages [from, to) of a sequence's table; `cache` is the head's part of page 0, `at(r)` row r's
     * query or null. */
    template <class Sees, class At>
    RLX_MEMBER void pages(const Sees &sees, const T *cache, long stride, const int *table, int from,
                          int to, At at) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const float scale = 1.44269504f * rsqrtf(DIM); /* log2(e): weights are powers of two */
        DecodeWarp<T, DIM, ROWS, TENSOR> own;
        own.read_queries(at, lane);
        for (int i = from + warp; i < to; i += WARPS) {
            const int page = table[i];
            if (page < 0) continue;
            const T *keys = cache + page * stride;
            own.page(keys, keys + RLX_PAGE * DIM, i * RLX_PAGE, scale, sees, lane);
        }
        own.write(mosts + warp * ROWS, totals + warp * ROWS, sums + warp * ROWS * DIM, lane);
        __syncthreads();
    }

    /* What the warps found of a row, at one dimension. */
    RLX_MEMBER void merge(int row, int d, float &most, float &total, float &sum) const {
        most = -RLX_INFINITY, total = sum = 0;
        for (int w = 0; w < WARPS; w++) most = fmaxf(most, mosts[w * ROWS + row]);
        for (int w = 0; w < WARPS; w++) {
            const float share = correction(mosts[w * ROWS + row], most);
            total += share * totals[w * ROWS + row];
            sum += share > 0 ? share * sums[(w * ROWS + row) * DIM + d] : 0.0f;
        }
    }
};

/* The pages that split `split` of SPLITS has of a sequence's [begin, end): equal parts, but at least
 * LEAST pages. */
template <int SPLITS, int LEAST>
RLX_DEVICE void share_pages(int split, int begin, int end, int &from, int &to) {
    const int each = max(ceil_div(end - begin, SPLITS), LEAST);
    from = begin + split * each, to = min(from + each, end);
}

#endif
