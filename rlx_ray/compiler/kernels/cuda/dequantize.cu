/* Weights in blocks as plain ones:  y[n][k] = d * code + m, rounded to RLX_T, for a matrix product by
 * a library. blocks.cuh has the layout; a part of the outputs, 16 or a multiple, is a part of w.
 *
 *   for (int n = 0; n < N; n++)
 *       for (int k = 0; k < K; k++) y[n][k] = d(n, k / 32) * code(n, k) + m(n, k / 32);
 *
 * Constants: RLX_T; RLX_N, RLX_K (a multiple of 32); RLX_BITS, RLX_HALVES, RLX_OFFSETS; RLX_BLOCK
 * threads.
 * Arguments: w, y [n, k].
 * Launch: grid ceil(ceil(N / 16) ceil(K / 64) / (BLOCK / 32)): a warp for each chunk. */
#include "blocks.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK) RLX_NAME(const unsigned char *w, RLX_T *y) {
    constexpr int LONG = ceil_div(RLX_K, 64);
    typedef BlockChunk<RLX_BITS, RLX_HALVES, RLX_OFFSETS> Chunk;
    static_assert(RLX_K % 32 == 0, "K is not whole blocks");
    const int at = blockIdx.x * (RLX_BLOCK / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (at >= ceil_div(RLX_N, 16) * LONG) return;
    Chunk own;
    own.read(w + (long)at * Chunk::BYTES, lane);
#pragma unroll
    for (int f = 0; f < 4; f++) {
        float v[2][4];
        own.weights(f, v);
        const int k = at % LONG * 64 + Chunk::term(f, lane % 4);
        if (k >= RLX_K) break;
#pragma unroll
        for (int row = 0; row < 2; row++) {
            const int n = at / LONG * 16 + row * 8 + lane / 4;
            if (n < RLX_N) store<4>(y + (long)n * RLX_K + k, v[row]);
        }
    }
}
