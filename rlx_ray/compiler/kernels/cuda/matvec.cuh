/* What matvec.cu is made of: plain weights as chunks of 64 terms, and products with up to 8 NT rows. */
#ifndef RLX_MATVEC_CUH
#define RLX_MATVEC_CUH

#include "blocks.cuh"
#include "math.cuh"

/* Weights [n][k] of T, in the chunks of blocks.cuh but for the order of terms: a lane reads 8 in a
 * row, 16 bytes of half, for the products f = 2 i and 2 i + 1. */
template <class T, int N, int K> struct PlainChunk {
    static constexpr int PARTS = 1, EACH = common_power(K, 8), WORDS = 8 * sizeof(T) / 4;
    static constexpr bool SCALED = false, OFFSET = false;
    unsigned w[2][2][WORDS]; /* output g or g + 8, block, eight terms */

    RLX_MEMBER static int term(int f, int t) { return f / 2 * 32 + t * 8 + f % 2 * 4; }

    RLX_MEMBER void read(const T *weights, int tile, int chunk, int lane) {
#pragma unroll
        for (int row = 0; row < 2; row++)
#pragma unroll
            for (int block = 0; block < 2; block++) {
                const int n = tile * 16 + row * 8 + lane / 4;
                const int k = chunk * 64 + block * 32 + lane % 4 * 8;
                const T *at = weights + (long)n * K + k;
                if (EACH == 8 && n < N && k < K) {
                    read_words<WORDS>(w[row][block], at);
                } else {
                    T one[8];
#pragma unroll
                    for (int i = 0; i < 8; i++)
                        one[i] = n < N && k + i < K && EACH < 8 ? at[i] : from_float<T>(0);
                    memcpy(w[row][block], one, sizeof one);
                }
            }
    }
    template <class> RLX_MEMBER void operand(int f, unsigned (&a)[4]) const {
#pragma unroll
        for (int r = 0; r < 4; r++) a[r] = w[r % 2][f / 2][f % 2 * 2 + r / 2];
    }
    RLX_MEMBER float fact(int, int, int) const { return 1; }
    RLX_MEMBER void weights(int f, float (&to)[2][4]) const {
#pragma unroll
        for (int row = 0; row < 2; row++) {
            T one[8];
            memcpy(one, w[row][f / 2], sizeof one);
#pragma unroll
            for (int i = 0; i < 4; i++) to[row][i] = to_float(one[f % 2 * 4 + i]);
        }
    }
};

/* A chunk of either kind, read by its tile and its place along k. */
template <class T, int N, int K, int BITS, bool HALVES, bool OFFSETS>
struct WeightChunk : BlockChunk<BITS, HALVES, OFFSETS> {
    RLX_MEMBER void fetch(const void *w, int tile, int chunk, int lane) {
        const long at = (long)tile * ceil_div(K, 64) + chunk;
        this->read(static_cast<const unsigned char *>(w) + at * this->BYTES, lane);
    }
};
template <class T, int N, int K> struct WeightChunk<T, N, K, 0, false, false> : PlainChunk<T, N, K> {
    RLX_MEMBER void fetch(const void *w, int tile, int chunk, int lane) {
        this->read(static_cast<const T *>(w), tile, chunk, lane);
    }
};

/* Rows of x as products read them, four terms at a time: where they lie, or, with a norm, normed and
 * rounded in shared memory, zero up to a whole chunk and 32 bytes apart from a multiple of 128, so
 * that lanes of different rows meet different banks. NORM is matvec.cu's: none, RMS, layer. */
template <class T, int ROWS, int K, int NORM> struct Terms {
    static constexpr int WIDE = ceil_div(K, 64) * 64, STRIDE = NORM ? WIDE + 32 / (int)sizeof(T) : K;
    const T *x;

    RLX_MEMBER Vector<T, 4> at(int row, int k) const {
        constexpr int EACH = common_power(STRIDE, 4);
        Vector<T, 4> v;
#pragma unroll
        for (int i = 0; i < 4; i += EACH) {
            Vector<T, EACH> part;
#pragma unroll
            for (int j = 0; j < EACH; j++) part.at[j] = from_float<T>(0);
            if (row < ROWS && (NORM || k + i < K))
                part = *reinterpret_cast<const Vector<T, EACH> *>(x + (long)row * STRIDE + k + i);
#pragma unroll
            for (int j = 0; j < EACH; j++) v.at[i + j] = part.at[j];
        }
        return v;
    }

    /* Each row's sum of f(its numbers), f = of(row), over the block: ROWS * WARPS parts in shared
     * memory, of which mean() makes a row's mean. */
    template <int WARPS, class Of> RLX_MEMBER void sums(const T *from, float *part, Of of) {
        constexpr int V = vector_width<T>(K);
        for (int row = 0; row < ROWS; row++) {
            const auto f = of(row);
            float sum = 0, v[V];
            for (int k = threadIdx.x * V; k < K; k += 32 * WARPS * V) {
                load<V>(from + (long)row * K + k, v);
#pragma unroll
                for (int i = 0; i < V; i++) sum += f(v[i]);
            }
            sum = warp_sum(sum);
            if (threadIdx.x % 32 == 0) part[row * WARPS + threadIdx.x / 32] = sum;
        }
        __syncthreads();
    }
    template <int WARPS> RLX_MEMBER static float mean(const float *part, int row) {
        const int lane = threadIdx.x % 32;
        return warp_sum(lane < WARPS ? part[row * WARPS + lane] : 0.0f) / K;
    }

    /* By the whole block: to `to` in shared memory, and to `kept` [ROWS][K] where that is not null. */
    template <int WARPS>
    RLX_MEMBER void norm(const T *from, const float *gain, const float *shift, float eps, T *to,
                         T *kept, float *part) {
        constexpr int V = vector_width<T>(K);
        float *squares = part + (NORM == 2) * ROWS * WARPS;
        const auto middle_of = [&](int row) { return NORM == 2 ? mean<WARPS>(part, row) : 0.0f; };
        if constexpr (NORM == 2)
            sums<WARPS>(from, part, [](int) { return [](float x) { return x; }; });
        sums<WARPS>(from, squares, [&](int row) {
            const float middle = middle_of(row);
            return [=](float x) { return (x - middle) * (x - middle); };
        });
        for (int row = 0; row < ROWS; row++) {
            const float middle = middle_of(row), scale = rsqrtf(mean<WARPS>(squares, row) + eps);
            for (int k = threadIdx.x * V; k < WIDE; k += 32 * WARPS * V) {
                float v[V] = {}, g[V], b[V] = {};
                if (k < K) {
                    load<V>(from + (long)row * K + k, v);
                    load<V>(gain + k, g);
                    if constexpr (NORM == 2) load<V>(shift + k, b);
#pragma unroll
                    for (int i = 0; i < V; i++) v[i] = (v[i] - middle) * scale * g[i] + b[i];
                    if (kept) store<V>(kept + (long)row * K + k, v);
                }
                store<V>(to + row * STRIDE + k, v);
            }
        }
        __syncthreads();
        x = to;
    }
};

/* Sums of a warp: 16 outputs of a tile, and as many rows of x as there are, by tensor cores. */
template <class T, int ROWS> struct WarpSums {
    static constexpr int TILES = ceil_div(ROWS, 8);
    float c[TILES][4] = {};

    template <class Chunk, class Rows>
    RLX_MEMBER void add(const Chunk &w, const Rows &x, int chunk, int lane) {
        constexpr int EACH = 4 / Chunk::PARTS;
        const unsigned one = pack<T>(1, 1), ones[4] = {one, one, one, one};
#pragma unroll
        for (int part = 0; part < Chunk::PARTS; part++) {
            float own[TILES][4] = {}, total[TILES][4] = {};
#pragma unroll
            for (int f = part * EACH; f < (part + 1) * EACH; f++) {
                unsigned a[4];
                w.template operand<T>(f, a);
#pragma unroll
                for (int i = 0; i < TILES; i++) {
                    const int k = chunk * 64 + Chunk::term(f, lane % 4);
                    const uint2 b = of_bits<uint2>(x.at(i * 8 + lane / 4, k));
                    mma<T>(Chunk::SCALED ? own[i] : c[i], a, b.x, b.y);
                    if constexpr (Chunk::OFFSET) mma<T>(total[i], ones, b.x, b.y);
                }
            }
            if constexpr (Chunk::SCALED) {
#pragma unroll
                for (int i = 0; i < TILES; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        c[i][j] += w.fact(0, j / 2, part) * own[i][j];
                        if constexpr (Chunk::OFFSET) c[i][j] += w.fact(1, j / 2, part) * total[i][j];
                    }
            }
        }
    }

    /* To part[row][output], rows 20 floats apart: the lanes meet no bank twice. */
    RLX_MEMBER void write(float *part, int lane) {
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                part[(i * 8 + lane % 4 * 2 + j % 2) * 20 + lane / 4 + j / 2 * 8] = c[i][j];
    }
};

/* The same in float32, without tensor cores: a lane sums its own terms. */
template <int ROWS> struct WarpSums<float, ROWS> {
    static constexpr int TILES = ceil_div(ROWS, 8);
    float c[2][ROWS] = {};

    template <class Chunk, class Rows>
    RLX_MEMBER void add(const Chunk &w, const Rows &x, int chunk, int lane) {
#pragma unroll
        for (int f = 0; f < 4; f++) {
            float own[2][4];
            w.weights(f, own);
#pragma unroll
            for (int row = 0; row < ROWS; row++) {
                const Vector<float, 4> v = x.at(row, chunk * 64 + Chunk::term(f, lane % 4));
#pragma unroll
                for (int i = 0; i < 4; i++)
                    c[0][row] += own[0][i] * v.at[i], c[1][row] += own[1][i] * v.at[i];
            }
        }
    }

    RLX_MEMBER void write(float *part, int lane) {
#pragma unroll
        for (int row = 0; row < ROWS; row++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const float sum = warp_sum<4>(c[j][row]);
                if (lane % 4 == 0) part[row * 20 + lane / 4 + j * 8] = sum;
            }
    }
};

#endif
