/* Attention within sequences of whole rows, as encoders have it:
 *
 *   out[r][h] = sum over keys j of softmax_j(scale Q[r][h] . K[j][h / G]) V[j][h / G],  scale = dim^-1/2
 *
 * over the tokens j of row r's own sequence; with RLX_CAUSAL over those up to r's own, of them the
 * last WINDOW where there is a window. A row of qkv is [heads][dim] of Q, [kv_heads][dim] of K and as
 * many of V; G = heads / kv_heads. A bias of qkv is added here: to Q as it is read; K's changes all
 * scores of a query alike, which softmax does not see; V's is added to the result, since weights sum
 * to one.
 *
 *   for (int r = 0; r < BATCH * SEQ; r++)
 *       for (int h = 0; h < HEADS; h++) {
 *           float sum = 0;
 *           for (int j = 0; j < lengths[r / SEQ]; j++) sum += exp(scale * dot(Q[r][h], K[j][h / G]));
 *           for (int j = 0; j < lengths[r / SEQ]; j++)
 *               out[r][h] += exp(scale * dot(Q[r][h], K[j][h / G])) / sum * V[j][h / G];
 *       }
 *
 * Constants: RLX_T; RLX_BATCH, RLX_SEQ, RLX_RAGGED, RLX_HEADS, RLX_KV_HEADS, RLX_DIM; RLX_BIAS,
 * RLX_CAUSAL (0 or 1), RLX_WINDOW (0 for none, else with CAUSAL); RLX_WARPS of a block, RLX_M times 16
 * rows of a warp, RLX_KEYS of a tile (a multiple of 16), RLX_BLOCK = 32 WARPS.
 * Arguments: qkv, bias, lengths (starts where rows are ragged), out [rows, heads dim].
 * Launch: grid (ceil(SEQ G / (16 M WARPS)), KV_HEADS, BATCH), or, ragged, (floor(RAGGED G / (16 M
 * WARPS)) + BATCH, KV_HEADS, 1), whose tiles ragged.cuh gives to sequences; shared, with W = dim up
 * to a multiple of 16 and E = 16 / sizeof(T), 4 KEYS (W + E) sizeof(T) bytes, and 64 M WARPS (W + E)
 * for float.
 *
 * The heads that share keys stand in one tile of rows: row i is token i / G, head i % G of them. */
#include "prefill.cuh"
#include "ragged.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK)
    RLX_NAME(const RLX_T *qkv, const float *bias, const int *lengths, RLX_T *out) {
    constexpr int GROUP = RLX_HEADS / RLX_KV_HEADS, ROWS = 16 * RLX_M * RLX_WARPS;
    constexpr int PITCH = (RLX_HEADS + 2 * RLX_KV_HEADS) * RLX_DIM;
    static_assert(RLX_HEADS % RLX_KV_HEADS == 0, "heads of keys do not divide the heads");
    static_assert(RLX_CAUSAL || RLX_WINDOW == 0, "a window without CAUSAL");
    static_assert(RLX_KEYS % 16 == 0 && RLX_BLOCK == 32 * RLX_WARPS, "tiles of 16, whole warps");
    const int head = blockIdx.y;
    /* The tiles with most keys to see begin first. */
    int batch = blockIdx.z, tile = RLX_CAUSAL ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    if constexpr (RLX_RAGGED != 0) {
        batch = sequence_of<ROWS, GROUP, RLX_BATCH>(lengths, tile);
        tile -= first_tile<ROWS, GROUP>(lengths[batch], batch);
    }
    tile *= ROWS;
    const Span span = span_of<RLX_SEQ, RLX_RAGGED != 0>(lengths, batch);
    const Visible<GROUP, RLX_CAUSAL, RLX_WINDOW> sees = {0, span.length, tile};
    if (sees.token(0) >= sees.length) return;

    const RLX_T *own = qkv + (long)span.first * PITCH;
    struct {
        const RLX_T *base;
        enum { VALUE = RLX_KV_HEADS * RLX_DIM };
        RLX_MEMBER const RLX_T *key(int i) const { return base + (long)i * PITCH; }
    } source = {own + (RLX_HEADS + head) * RLX_DIM};
    const int last = min(sees.token(ROWS - 1), sees.length - 1);
    const int end = RLX_CAUSAL ? last + 1 : sees.end();
    const int begin = sees.low(0) / RLX_KEYS * RLX_KEYS;
    attend<RLX_T, RLX_DIM, RLX_WARPS, RLX_M, RLX_KEYS>(
        sees, source, begin, end,
        [&](int row, int d) {
            const int token = sees.token(row), of = head * GROUP + (tile + row) % GROUP;
            float2 x = {0, 0};
            if (token < sees.length)
                x = read_pair<RLX_DIM>(own + (long)token * PITCH + of * RLX_DIM, d);
            if constexpr (RLX_BIAS) add_pair<RLX_DIM>(bias + of * RLX_DIM, d, x);
            return x;
        },
        [&](int row, int d, float x, float y) {
            const int token = sees.token(row), of = head * GROUP + (tile + row) % GROUP;
            float2 sum = {x, y};
            if constexpr (RLX_BIAS)
                add_pair<RLX_DIM>(bias + (RLX_HEADS + RLX_KV_HEADS + head) * RLX_DIM, d, sum);
            if (token < sees.length)
                write_pair<RLX_DIM>(
                    out + (((long)span.first + token) * RLX_HEADS + of) * RLX_DIM, d, sum);
        });
}
