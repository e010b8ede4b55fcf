/* Attention of few new tokens over the paged cache, split along the keys:
 *
 *   out[r][h] = sum over keys j of softmax_j(scale q[r][h] . K[h / G][j]) V[h / G][j],  G = heads / kv_heads
 *
 * Row r is token p = past[b] + r % SEQ of sequence b = r / SEQ; it sees keys [0, p], of them the last
 * WINDOW where there is a window. The step's own keys are in the cache already (rope.cu).
 *
 *   for (int r = 0; r < BATCH * SEQ; r++)
 *       for (int h = 0; h < HEADS; h++) {
 *           float sum = 0;
 *           for (int j = max(0, p + 1 - WINDOW); j <= p; j++) sum += exp(scale * dot(q, K[j]));
 *           for (int j = max(0, p + 1 - WINDOW); j <= p; j++)
 *               out[r][h] += exp(scale * dot(q, K[j])) / sum * V[j];
 *       }
 *
 * With RLX_SPLITS > 1 a block leaves what it found in `partial` and `stats`, and attention_combine
 * puts that together; else it writes `out`.
 *
 * Constants: RLX_T; RLX_BATCH, RLX_SEQ, RLX_HEADS, RLX_KV_HEADS, RLX_DIM; RLX_TABLE, RLX_PAGE_STRIDE;
 * RLX_WINDOW (0 for none); RLX_SPLITS; RLX_WARPS of a block, RLX_BLOCK = 32 WARPS.
 * Arguments: q [batch seq, heads dim], cache, lengths, past, pages, partial float32 [batch seq heads,
 * splits, dim], stats float32 [batch seq heads, splits, 2] (maximum in powers of two, divisor), out
 * [batch seq, heads dim].
 * Launch: grid (SPLITS, KV_HEADS ceil(SEQ G / 16), BATCH); shared 4 WARPS R (DIM + 2) bytes with
 * R = min(16, SEQ G).
 *
 * The query rows that share a head of keys, SEQ G of them, stand in tiles of 16: keys and values are
 * read once for all. A block takes an equal part of the sequence's pages, at least one for each warp;
 * its warps take turns at them, and their results are put together in shared memory. */
#include "decode.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK)
    RLX_NAME(const RLX_T *q, const RLX_T *cache, const int *lengths, const int *past,
             const int *pages, float *partial, float *stats, RLX_T *out) {
    static_assert(RLX_HEADS % RLX_KV_HEADS == 0, "heads of keys do not divide the heads");
    constexpr int GROUP = RLX_HEADS / RLX_KV_HEADS, ALL = RLX_SEQ * GROUP, TILES = ceil_div(ALL, 16);
    constexpr int ROWS = ALL < 16 ? ALL : 16;
    const int batch = blockIdx.z, head = blockIdx.y / TILES, tile = blockIdx.y % TILES * 16;
    const Visible<GROUP, true, RLX_WINDOW> sees = {past[batch], lengths[batch], tile};
    if (sees.token(0) >= sees.length) return;
    /* Row r of the tile in all rows and heads. */
    auto place = [&](int r) {
        const int of = head * GROUP + (tile + r) % GROUP;
        return ((long)batch * RLX_SEQ + sees.token(r)) * RLX_HEADS + of;
    };

    int from, to;
    share_pages<RLX_SPLITS, RLX_WARPS>(blockIdx.x, sees.low(0) / RLX_PAGE,
                                       min(ceil_div(sees.end(), RLX_PAGE), RLX_TABLE), from, to);
    DecodeBlock<RLX_T, RLX_DIM, ROWS, RLX_WARPS> own(reinterpret_cast<float *>(dynamic_shared()));
    own.pages(sees, cache + head * 2 * RLX_PAGE * RLX_DIM, RLX_PAGE_STRIDE, pages + batch * RLX_TABLE,
              from, to, [&](int r) { return sees.high(r) ? q + place(r) * RLX_DIM : (RLX_T *)0; });
    for (int i = threadIdx.x; i < ROWS * RLX_DIM; i += RLX_BLOCK) {
        const int row = i / RLX_DIM, d = i % RLX_DIM;
        if (!sees.high(row)) continue;
        float most, total, sum;
        own.merge(row, d, most, total, sum);
        const long part = place(row) * RLX_SPLITS + blockIdx.x;
        if constexpr (RLX_SPLITS > 1) {
            partial[part * RLX_DIM + d] = sum;
            if (d == 0) stats[part * 2] = most, stats[part * 2 + 1] = total;
        } else {
            out[part * RLX_DIM + d] = from_float<RLX_T>(total > 0 ? sum / total : 0.0f);
        }
    }
}
