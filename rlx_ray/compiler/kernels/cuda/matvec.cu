/* Few rows times a matrix, as decoding does; weights are read once, whatever the number of rows:
 *
 *   y[r][n] = act(sum over k of x'[r][k] w[n][k]  (+ bias[n]))  (+ residual[r][n])
 *
 * where x' is x, or its norm: with RLX_NORM 1 the RMS norm x / sqrt(mean(x^2) + eps) * gain, with 2 the
 * layer norm (x - mean) / sqrt(var + eps) * gain + shift; x' is rounded to RLX_T, as the norm's own
 * kernel does, and, with RLX_KEEP, written to kept. Gated, w has 2 N outputs, gates first, and y =
 * act(gate) * up (+ residual).
 *
 *   for (int r = 0; r < ROWS; r++)
 *       for (int n = 0; n < N; n++)
 *           for (int k = 0; k < K; k++) y[r][n] += x'[r][k] * w[n][k];
 *
 * Constants: RLX_T of x and residual, RLX_OUT of y; RLX_ROWS (at most 32), RLX_N, RLX_K; RLX_BITS: 0
 * for w [N][K] of RLX_T, else w is in blocks (blocks.cuh) with RLX_HALVES, RLX_OFFSETS, and K is a
 * multiple of 32; RLX_NORM, RLX_EPS, RLX_KEEP; RLX_ACT, a function of math.cuh; RLX_BIAS, RLX_RESIDUAL;
 * RLX_GATED (then without a bias, and N is a multiple of 16); RLX_EACH rows of a block, which divide
 * ROWS; RLX_WARPS of a block, RLX_CHUNKS that a warp has under way; RLX_BLOCK = 32 WARPS.
 * Arguments: x [rows, k], gain [k], shift [k], w, bias [n], residual [rows, n], kept [rows, k], y. y may
 * be residual; kept must be neither x nor residual.
 * Launch: grid ceil(N / 16) ROWS / EACH; shared 640 WARPS ceil(EACH / 8) bytes, twice that if gated,
 * and with a norm 32 bytes and K elements, up to a multiple of 64, for each of EACH rows.
 *
 * A block has 16 outputs, of two matrices if gated. Its warps share out the chunks of 64 terms and
 * have several of them under way; the first are asked for before the norm is computed, which each
 * block does for itself. Weights are the A operands of tensor-core products, rows of x the 8 columns
 * of B: codes and x are exact there, scales are multiplied to the float32 sums of a block. Float32
 * goes without tensor cores. Blocks of the same outputs and other rows follow one another, so that
 * the second finds the weights in L2. */
#include "matvec.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK)
    RLX_NAME(const RLX_T *x, const float *gain, const float *shift, const void *w,
             const float *bias, const RLX_T *residual, RLX_T *kept, RLX_OUT *y) {
    constexpr int GATES = RLX_GATED ? 2 : 1, TILES = ceil_div(RLX_N, 16), LONG = ceil_div(RLX_K, 64);
    typedef WarpSums<RLX_T, RLX_EACH> Sums;
    typedef WeightChunk<RLX_T, RLX_N * GATES, RLX_K, RLX_BITS, RLX_HALVES, RLX_OFFSETS> Chunk;
    constexpr int PART = Sums::TILES * 8 * 20;
    static_assert(RLX_ROWS <= 32, "more than 32 rows");
    static_assert(RLX_ROWS % RLX_EACH == 0, "EACH does not divide the rows");
    static_assert(RLX_BITS == 0 || RLX_K % 32 == 0, "K is not whole blocks");
    static_assert(!RLX_GATED || RLX_N % 16 == 0, "gates and ups must not share a tile");
    static_assert(!RLX_GATED || !RLX_BIAS, "a bias of gates");
    static_assert(RLX_BLOCK == 32 * RLX_WARPS, "BLOCK is 32 WARPS");
    float *parts = reinterpret_cast<float *>(dynamic_shared());
    constexpr int PARTS = RLX_ROWS / RLX_EACH;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, tile = blockIdx.x / PARTS;
    const int first = blockIdx.x % PARTS * RLX_EACH; /* of the block's rows */
    x += (long)first * RLX_K;

    Chunk own[RLX_CHUNKS][GATES];
#pragma unroll
    for (int i = 0; i < RLX_CHUNKS; i++)
#pragma unroll
        for (int gate = 0; gate < GATES; gate++)
            if (warp + i * RLX_WARPS < LONG)
                own[i][gate].fetch(w, tile + gate * TILES, warp + i * RLX_WARPS, lane);
    Terms<RLX_T, RLX_EACH, RLX_K, RLX_NORM> rows = {x};
    if constexpr (RLX_NORM) {
        float *normed = parts + GATES * RLX_WARPS * PART;
        rows.norm<RLX_WARPS>(x, gain, shift, RLX_EPS, reinterpret_cast<RLX_T *>(normed),
                             RLX_KEEP && tile == 0 ? kept + (long)first * RLX_K : 0, parts);
    }
    Sums sums[GATES];
    for (int from = warp; from < LONG; from += RLX_WARPS * RLX_CHUNKS) {
#pragma unroll
        for (int i = 0; i < RLX_CHUNKS; i++) {
            const int chunk = from + i * RLX_WARPS, next = chunk + RLX_CHUNKS * RLX_WARPS;
            if (chunk >= LONG) break;
#pragma unroll
            for (int gate = 0; gate < GATES; gate++) {
                sums[gate].add(own[i][gate], rows, chunk, lane);
                if (next < LONG) own[i][gate].fetch(w, tile + gate * TILES, next, lane);
            }
        }
    }

#pragma unroll
    for (int gate = 0; gate < GATES; gate++)
        sums[gate].write(parts + (gate * RLX_WARPS + warp) * PART, lane);
    __syncthreads();
    for (int i = threadIdx.x; i < RLX_EACH * 16; i += RLX_BLOCK) {
        const int row = i / 16, n = tile * 16 + i % 16;
        if (n >= RLX_N) continue;
        float sum[GATES] = {};
#pragma unroll
        for (int gate = 0; gate < GATES; gate++)
            for (int part = 0; part < RLX_WARPS; part++)
                sum[gate] += parts[(gate * RLX_WARPS + part) * PART + row * 20 + i % 16];
        if constexpr (RLX_BIAS) sum[0] += bias[n];
        float out = RLX_ACT(sum[0]) * (RLX_GATED ? sum[GATES - 1] : 1.0f);
        const long at = (long)(first + row) * RLX_N + n;
        if constexpr (RLX_RESIDUAL) out += to_float(residual[at]);
        y[at] = from_float<RLX_OUT>(out);
    }
}
