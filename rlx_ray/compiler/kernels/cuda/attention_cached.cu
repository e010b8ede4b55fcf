/* Attention of a prompt, or a piece of one, over the paged cache:
 *
 *   out[r][h] = sum over keys j of softmax_j(scale q[r][h] . K[j][h / G]) V[j][h / G],  scale = dim^-1/2
 *
 * Row r is token p = past[b] + r % SEQ of sequence b = r / SEQ; it sees keys [0, p], of them the last
 * WINDOW where there is a window. The step's own keys are in the cache already (rope.cu). The plain
 * loop is that of attention_decode.cu, which is for fewer tokens: here tiles of keys and values go
 * through shared memory, and no block has but a part of a row's keys.
 *
 * Constants: RLX_T; RLX_BATCH, RLX_SEQ, RLX_HEADS, RLX_KV_HEADS, RLX_DIM; RLX_TABLE, RLX_PAGE_STRIDE;
 * RLX_WINDOW (0 for none); RLX_WARPS of a block, RLX_M times 16 rows of a warp, RLX_KEYS of a tile (a
 * multiple of 16), RLX_BLOCK = 32 WARPS.
 * Arguments: q [batch seq, heads dim], cache, lengths, past, pages, out [batch seq, heads dim].
 * Launch: grid (ceil(SEQ G / (16 M WARPS)), KV_HEADS, BATCH), G = heads / kv_heads; shared, with W =
 * dim up to a multiple of 16 and E = 16 / sizeof(T), 4 KEYS (W + E) sizeof(T) bytes, and 64 M WARPS
 * (W + E) for float.
 *
 * The heads that share keys stand in one tile of rows: row i is token i / G, head i % G of them. */
#include "prefill.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK)
    RLX_NAME(const RLX_T *q, const RLX_T *cache, const int *lengths, const int *past,
             const int *pages, RLX_T *out) {
    constexpr int GROUP = RLX_HEADS / RLX_KV_HEADS, ROWS = 16 * RLX_M * RLX_WARPS;
    static_assert(RLX_HEADS % RLX_KV_HEADS == 0, "heads of keys do not divide the heads");
    static_assert(RLX_KEYS % 16 == 0 && RLX_BLOCK == 32 * RLX_WARPS, "tiles of 16, whole warps");
    const int batch = blockIdx.z, head = blockIdx.y;
    const int tile = (gridDim.x - 1 - blockIdx.x) * ROWS; /* those with most keys begin first */
    const Visible<GROUP, true, RLX_WINDOW> sees = {past[batch], min(lengths[batch], RLX_SEQ), tile};
    if (sees.token(0) >= sees.length) return;

    struct {
        const RLX_T *base;
        const int *table;
        enum { VALUE = RLX_PAGE * RLX_DIM };
        RLX_MEMBER const RLX_T *key(int i) const {
            const int page = table[i / RLX_PAGE];
            return page < 0 ? 0 : base + (long)page * RLX_PAGE_STRIDE + i % RLX_PAGE * RLX_DIM;
        }
    } source = {cache + head * 2 * RLX_PAGE * RLX_DIM, pages + batch * RLX_TABLE};
    const int last = sees.past + min(sees.token(ROWS - 1), sees.length - 1);
    const int end = min(last + 1, RLX_TABLE * RLX_PAGE);
    const int begin = sees.low(0) / RLX_KEYS * RLX_KEYS;
    auto place = [&](int row) { /* of a row's head in q and out */
        const int of = head * GROUP + (tile + row) % GROUP;
        return (((long)batch * RLX_SEQ + sees.token(row)) * RLX_HEADS + of) * RLX_DIM;
    };
    attend<RLX_T, RLX_DIM, RLX_WARPS, RLX_M, RLX_KEYS>(
        sees, source, begin, end,
        [&](int row, int d) {
            const float2 none = {0, 0};
            return sees.token(row) < sees.length ? read_pair<RLX_DIM>(q + place(row), d) : none;
        },
        [&](int row, int d, float x, float y) {
            const float2 sum = {x, y};
            if (sees.token(row) < sees.length) write_pair<RLX_DIM>(out + place(row), d, sum);
        });
}
