/* One new token of each sequence, from the product qkv to the attention's result, in one launch: what
 * rope.cu, attention_decode.cu and attention_combine.cu do one after the other with SEQ = 1.
 *
 *   q, k = turned(norm(qkv + bias)), v = qkv + bias; k and v go to the cache
 *   out[b][h] = sum over keys j of softmax_j(scale q[h] . K[h / G][j]) V[h / G][j]
 *
 * Sequence b's token is past[b]; the plain loops are those of the three files.
 *
 * Constants: RLX_T; RLX_BATCH, RLX_HEADS, RLX_KV_HEADS, RLX_DIM; RLX_TABLE, RLX_PAGE_STRIDE,
 * RLX_POSITIONS rows of cos_sin; RLX_BIAS, RLX_GAINS (0 or 1), RLX_EPS of the norm; RLX_WINDOW (0 for
 * none); RLX_SPLITS; RLX_WARPS of a block, RLX_BLOCK = 32 WARPS.
 * Arguments: qkv, bias [(heads + 2 kv_heads) dim], cos_sin [positions, dim], q_gain [dim], k_gain [dim],
 * lengths (0 or 1 each), past, pages, cache, partial float32 [batch heads, splits, dim], stats float32
 * [batch heads, splits, 2], tickets int32 [batch kv_heads ceil(G / 16)], out [batch, heads dim].
 * tickets are 0 before the first launch, and again behind each. Where SPLITS is 1, neither these nor
 * partial and stats are used.
 * Launch: grid (SPLITS, KV_HEADS ceil(G / 16), BATCH), G = heads / kv_heads; shared, with R = min(16,
 * G), 4 WARPS R (DIM + 2) + R DIM sizeof(T) bytes, the first part up to a multiple of 16.
 *
 * Each block turns its own queries; those that have the last page also make the new key and value,
 * and write them before they read that page. The block of a head that is done last puts the parts
 * of all together, in the order of the splits: the same bits whichever it is. */
#include "decode.cuh"
#include "rope.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK)
    RLX_NAME(const RLX_T *qkv, const float *bias, const float *cos_sin, const float *q_gain,
             const float *k_gain, const int *lengths, const int *past, const int *pages,
             RLX_T *cache, float *partial, float *stats, int *tickets, RLX_T *out) {
    static_assert(RLX_HEADS % RLX_KV_HEADS == 0, "heads of keys do not divide the heads");
    constexpr int GROUP = RLX_HEADS / RLX_KV_HEADS, TILES = ceil_div(GROUP, 16);
    constexpr int ROWS = GROUP < 16 ? GROUP : 16, ALL = RLX_HEADS + 2 * RLX_KV_HEADS;
    typedef RotaryHead<RLX_T, RLX_DIM> Head;
    typedef DecodeBlock<RLX_T, RLX_DIM, ROWS, RLX_WARPS> Block;
    __shared__ bool last;
    const int batch = blockIdx.z, head = blockIdx.y / TILES, tile = blockIdx.y % TILES * 16;
    if (lengths[batch] < 1) return;
    const int token = past[batch], rows = min(ROWS, GROUP - tile), first = head * GROUP + tile;
    const Visible<GROUP, true, RLX_WINDOW> sees = {token, 1, tile};
    const int *table = pages + batch * RLX_TABLE;
    cache += head * 2 * RLX_PAGE * RLX_DIM;

    int from, to;
    const int end = min(token / RLX_PAGE + 1, RLX_TABLE);
    share_pages<RLX_SPLITS, RLX_WARPS>(blockIdx.x, sees.low(0) / RLX_PAGE, end, from, to);
    unsigned char *shared = dynamic_shared();
    Block own(reinterpret_cast<float *>(shared));
    RLX_T *queries = reinterpret_cast<RLX_T *>(
        shared + ceil_div(4 * RLX_WARPS * ROWS * (RLX_DIM + 2), 16) * 16);
    const int page = token / RLX_PAGE < RLX_TABLE ? table[token / RLX_PAGE] : -1;
    const bool newest = from < to && to == end && page >= 0;
    constexpr int AT_ONCE = RLX_BLOCK / Head::LANES;
    for (int n = 0; n < ceil_div(ROWS + 2, AT_ONCE); n++) {
        /* Rows of queries, then the key, then the value; all lanes of a warp come here. */
        const int at = n * AT_ONCE + threadIdx.x / Head::LANES;
        const bool query = at < rows, key = at == ROWS, value = at == ROWS + 1;
        const int unit = query ? first + at : RLX_HEADS + (value ? RLX_KV_HEADS : 0) + head;
        const bool real = query || (newest && (key || value));
        Head one = {};
        one.lane = threadIdx.x % Head::LANES;
        if (real) one.read<RLX_BIAS>(qkv + ((long)batch * ALL + unit) * RLX_DIM, bias + unit * RLX_DIM);
        if constexpr (RLX_GAINS) one.norm(query ? q_gain : k_gain, RLX_EPS, real && !value);
        if (!real) continue;
        if (!value) one.turn(cos_sin + (long)(token < RLX_POSITIONS ? token : 0) * RLX_DIM);
        one.write(query ? queries + at * RLX_DIM
                        : cache + (long)page * RLX_PAGE_STRIDE +
                              (value * RLX_PAGE + token % RLX_PAGE) * RLX_DIM);
    }
    __syncthreads();

    own.pages(sees, cache, RLX_PAGE_STRIDE, table, from, to,
              [&](int r) { return r < rows ? queries + r * RLX_DIM : (RLX_T *)0; });
    const long begin = (long)batch * RLX_HEADS + first; /* of the tile's rows in out */
    for (int i = threadIdx.x; i < rows * RLX_DIM; i += RLX_BLOCK) {
        const int row = i / RLX_DIM, d = i % RLX_DIM;
        float most, total, sum;
        own.merge(row, d, most, total, sum);
        const long part = (begin + row) * RLX_SPLITS + blockIdx.x;
        if constexpr (RLX_SPLITS > 1) {
            partial[part * RLX_DIM + d] = sum;
            if (d == 0) stats[part * 2] = most, stats[part * 2 + 1] = total;
        } else {
            out[part * RLX_DIM + d] = from_float<RLX_T>(total > 0 ? sum / total : 0.0f);
        }
    }
    if constexpr (RLX_SPLITS == 1) return;

    __threadfence(); /* the parts are there before the ticket is drawn */
    __syncthreads();
    int *ticket = tickets + batch * gridDim.y + blockIdx.y;
    if (threadIdx.x == 0) last = atomicAdd(ticket, 1) == RLX_SPLITS - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    if (threadIdx.x == 0) *ticket = 0;
    for (int i = threadIdx.x; i < rows * RLX_DIM; i += RLX_BLOCK) {
        const long part = (begin + i / RLX_DIM) * RLX_SPLITS;
        out[begin * RLX_DIM + i] = from_float<RLX_T>(
            combine_parts<RLX_SPLITS>(partial + part * RLX_DIM + i % RLX_DIM, RLX_DIM, stats + part * 2));
    }
}
