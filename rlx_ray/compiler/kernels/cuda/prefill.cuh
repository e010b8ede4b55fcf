/* Attention of many tokens: a block has 16 M WARPS query rows and goes through the keys KEYS at a
 * time, with the next tile of keys and values on its way to shared memory while this one is used.
 *
 * Source: FlashAttention-2 (arXiv:2307.08691). */
#ifndef RLX_PREFILL_CUH
#define RLX_PREFILL_CUH

#include "softmax.cuh"
#include "visible.cuh"

/* A row of DIM numbers in shared memory: WIDE of them, zero behind DIM, and rows STRIDE apart, so
 * that 8 rows' 16 bytes at one place lie in different banks. */
template <class T, int DIM> struct TileRow {
    static constexpr int WIDE = ceil_div(DIM, 16) * 16, EACH = 16 / (int)sizeof(T);
    static constexpr int STRIDE = WIDE + EACH;
};

/* Starts to copy keys [first, first + KEYS) and their values; zeros from `end` on. `source.key(i)`
 * is where key i lies, or null, and its value lies source.VALUE numbers behind it. */
template <int KEYS, int THREADS, int DIM, class T, class Source>
RLX_DEVICE void copy_keys(T *keys, T *values, const Source &source, int first, int end) {
    typedef TileRow<T, DIM> Row;
    constexpr bool WHOLE = vector_width<T>(DIM) == Row::EACH;
    constexpr int EACH = WHOLE ? Row::EACH : 1, PIECES = Row::WIDE / EACH;
#pragma unroll(WHOLE ? 4 : 1)
    for (int i = threadIdx.x; i < KEYS * PIECES; i += THREADS) {
        const int row = i / PIECES, d = i % PIECES * EACH, to = row * Row::STRIDE + d;
        const T *from = first + row < end && d < DIM ? source.key(first + row) : 0;
        if constexpr (WHOLE) {
            copy_async(keys + to, from ? from + d : source.base, from != 0);
            copy_async(values + to, from ? from + source.VALUE + d : source.base, from != 0);
        } else {
            keys[to] = from ? from[d] : from_float<T>(0);
            values[to] = from ? from[source.VALUE + d] : from_float<T>(0);
        }
    }
}

/* The softmax of one tile's scores of M x 16 rows. Lane 4 g + t has, of row tile m, rows g (half 0)
 * and g + 8 (half 1) at the keys 8 j + 2 t and the next, as the products of ptx.cuh leave them. */
template <int M, int KEYS> struct OnlineSoftmax {
    float score[M][KEYS / 8][4], most[M][2], total[M][2], less[M][2];

    RLX_MEMBER void begin() {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                most[m][half] = -RLX_INFINITY, total[m][half] = 0;
    }

    /* Scores become weights; `less` is what sums made before are worth now. `masked`: some rows do
     * not see all of the tile's keys. */
    template <class Sees>
    RLX_MEMBER void weigh(const Sees &sees, bool masked, int row, int first, float scale, int lane) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int own = row + m * 16 + half * 8 + lane / 4, key = first + lane % 4 * 2;
                const int low = sees.low(own) - key, high = sees.high(own) - key;
                float top = -RLX_INFINITY;
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float &x = score[m][j][half * 2 + e];
                        if (masked && (j * 8 + e < low || j * 8 + e >= high)) x = -RLX_INFINITY;
                        top = fmaxf(top, x);
                    }
                top = fmaxf(top, __shfl_xor_sync(RLX_ALL, top, 1));
                top = fmaxf(top, __shfl_xor_sync(RLX_ALL, top, 2));
                top = fmaxf(most[m][half], top * scale);
                less[m][half] = correction(most[m][half], top);
                most[m][half] = top, total[m][half] *= less[m][half];
                const float shift = shift_of(top);
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float &x = score[m][j][half * 2 + e];
                        x = fast_exp2(fmaf(x, scale, -shift)), total[m][half] += x;
                    }
            }
    }

    /* One over the divisor of a lane's row; 0 where it saw nothing. */
    RLX_MEMBER float share(int m, int half) {
        const float whole = warp_sum<4>(total[m][half]);
        return whole > 0 ? 1.0f / whole : 0.0f;
    }
};

/* One warp by tensor cores: queries are A and keys B, then weights A and values B. */
template <class T, int DIM, int KEYS, int M> struct PrefillWarp {
    typedef TileRow<T, DIM> Row;
    static constexpr int STEPS = Row::WIDE / 16, TILES = Row::WIDE / 8, QUERIES = 0;
    unsigned query[M][STEPS][4];
    float sum[M][TILES][4] = {};
    OnlineSoftmax<M, KEYS> own;

    /* `at(row, d)` is query `row` from dimension d on, two numbers. */
    template <class At> RLX_MEMBER void read_queries(T *, int row, At at, int lane) {
        own.begin();
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int s = 0; s < STEPS; s++)
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    const int d = s * 16 + r / 2 * 8 + lane % 4 * 2;
                    const float2 x = at(row + m * 16 + r % 2 * 8 + lane / 4, d);
                    query[m][s][r] = pack<T>(x.x, x.y);
                }
    }

    RLX_MEMBER void scores(const T *keys, int lane) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) own.score[m][j][i] = 0;
        const T *at = keys + (lane / 16 * 8 + lane % 8) * Row::STRIDE + lane / 8 % 2 * 8;
#pragma unroll
        for (int s = 0; s < STEPS; s++)
#pragma unroll
            for (int j = 0; j < KEYS / 8; j += 2) {
                unsigned b[4];
                load_matrices(b, at + j * 8 * Row::STRIDE + s * 16);
#pragma unroll
                for (int m = 0; m < M; m++) {
                    mma<T>(own.score[m][j], query[m][s], b[0], b[1]);
                    mma<T>(own.score[m][j + 1], query[m][s], b[2], b[3]);
                }
            }
    }

    RLX_MEMBER void values(const T *values, int lane) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int e = 0; e < TILES; e++)
#pragma unroll
                for (int i = 0; i < 4; i++) sum[m][e][i] *= own.less[m][i / 2];
        const T *at = values + (lane / 8 % 2 * 8 + lane % 8) * Row::STRIDE + lane / 16 * 8;
#pragma unroll
        for (int s = 0; s < KEYS / 16; s++) {
            unsigned weight[M][4];
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    const float *x = own.score[m][2 * s + r / 2] + r % 2 * 2;
                    weight[m][r] = pack<T>(x[0], x[1]);
                }
#pragma unroll
            for (int e = 0; e < TILES; e += 2) {
                unsigned b[4];
                load_matrices_transposed(b, at + s * 16 * Row::STRIDE + e * 8);
#pragma unroll
                for (int m = 0; m < M; m++) {
                    mma<T>(sum[m][e], weight[m], b[0], b[1]);
                    mma<T>(sum[m][e + 1], weight[m], b[2], b[3]);
                }
            }
        }
    }

    /* `put(row, d, x, y)` takes the results at dimensions d and d + 1. */
    template <class Put> RLX_MEMBER void write(int row, Put put, int lane) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float share = own.share(m, half);
#pragma unroll
                for (int e = 0; e < TILES; e++)
                    put(row + m * 16 + half * 8 + lane / 4, e * 8 + lane % 4 * 2,
                        sum[m][e][half * 2] * share, sum[m][e][half * 2 + 1] * share);
            }
    }
};

/* One warp in float32. Scores lie in the lanes as tensor cores would leave them; of the results a
 * lane has dimensions 16 i + 4 t + {0, 1, 2, 3}. */
template <int DIM, int KEYS, int M> struct PrefillWarp<float, DIM, KEYS, M> {
    typedef TileRow<float, DIM> Row;
    static constexpr int PARTS = Row::WIDE / 16, QUERIES = 16 * M; /* rows in shared memory */
    float sum[M][2][PARTS][4] = {};
    const float *query;
    OnlineSoftmax<M, KEYS> own;

    template <class At> RLX_MEMBER void read_queries(float *to, int row, At at, int lane) {
        own.begin();
        for (int i = lane; i < QUERIES * Row::WIDE / 2; i += 32) {
            const int r = i / (Row::WIDE / 2), d = i % (Row::WIDE / 2) * 2;
            const float2 x = at(row + r, d);
            to[r * Row::STRIDE + d] = x.x, to[r * Row::STRIDE + d + 1] = x.y;
        }
        __syncwarp();
        query = to;
    }

    RLX_MEMBER void scores(const float *keys, int lane) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) own.score[m][j][i] = 0;
        const float *k_at = keys + lane % 4 * 2 * Row::STRIDE, *q_at = query + lane / 4 * Row::STRIDE;
        for (int d = 0; d < Row::WIDE; d += 4) {
            float q[M][2][4];
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    load<4>(q_at + (m * 16 + half * 8) * Row::STRIDE + d, q[m][half]);
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float k[4];
                    load<4>(k_at + (j * 8 + e) * Row::STRIDE + d, k);
#pragma unroll
                    for (int m = 0; m < M; m++)
#pragma unroll
                        for (int half = 0; half < 2; half++)
#pragma unroll
                            for (int i = 0; i < 4; i++)
                                own.score[m][j][half * 2 + e] += q[m][half][i] * k[i];
                }
        }
    }

    RLX_MEMBER void values(const float *values, int lane) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int p = 0; p < PARTS; p++)
#pragma unroll
                    for (int i = 0; i < 4; i++) sum[m][half][p][i] *= own.less[m][half];
#pragma unroll
        for (int key = 0; key < KEYS; key++) {
            float weight[M][2];
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    weight[m][half] = __shfl_sync(RLX_ALL, own.score[m][key / 8][half * 2 + key % 2],
                                                  lane / 4 * 4 + key % 8 / 2);
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                float v[4];
                load<4>(values + key * Row::STRIDE + p * 16 + lane % 4 * 4, v);
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int half = 0; half < 2; half++)
#pragma unroll
                        for (int i = 0; i < 4; i++) sum[m][half][p][i] += weight[m][half] * v[i];
            }
        }
    }

    template <class Put> RLX_MEMBER void write(int row, Put put, int lane) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float share = own.share(m, half);
#pragma unroll
                for (int p = 0; p < PARTS; p++)
#pragma unroll
                    for (int i = 0; i < 4; i += 2)
                        put(row + m * 16 + half * 8 + lane / 4, p * 16 + lane % 4 * 4 + i,
                            sum[m][half][p][i] * share, sum[m][half][p][i + 1] * share);
            }
    }
};

/* A block's query rows [sees.tile, + 16 M WARPS) against its keys. */
template <class T, int DIM, int WARPS, int M, int KEYS, class Sees, class Source, class At, class Put>
RLX_DEVICE void attend(const Sees &sees, const Source &source, int begin, int end, At at, Put put) {
    typedef PrefillWarp<T, DIM, KEYS, M> Warp;
    constexpr int TILE = KEYS * TileRow<T, DIM>::STRIDE, ROWS = 16 * M * WARPS;
    const float scale = 1.44269504f * rsqrtf(DIM); /* log2(e): weights are powers of two */
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 * M;
    T *tiles = reinterpret_cast<T *>(dynamic_shared()); /* [2][keys, values][KEYS][STRIDE] */
    T *queries = tiles + 4 * TILE + threadIdx.x / 32 * Warp::QUERIES * TileRow<T, DIM>::STRIDE;
    copy_keys<KEYS, 32 * WARPS, DIM>(tiles, tiles + TILE, source, begin, end);
    copy_commit();
    Warp own;
    own.read_queries(queries, row, at, lane);
    const int sure = sees.high(0), late = sees.low(ROWS - 1); /* keys that all rows see */
    for (int first = begin, stage = 0; first < end; first += KEYS, stage ^= 1) {
        copy_wait<0>();
        __syncthreads(); /* this tile is there, and the other stage is free */
        T *other = tiles + (stage ^ 1) * 2 * TILE;
        if (first + KEYS < end) {
            copy_keys<KEYS, 32 * WARPS, DIM>(other, other + TILE, source, first + KEYS, end);
            copy_commit();
        }
        const T *keys = tiles + stage * 2 * TILE;
        own.scores(keys, lane);
        own.own.weigh(sees, first + KEYS > sure || first < late, row, first, scale, lane);
        own.values(keys + TILE, lane);
    }
    own.write(row, put, lane);
}

#endif
