/* Rotary positions (arXiv:2104.09864), and the step's keys and values into the cache.
 *
 * A row of qkv is [heads][dim] of queries, then [kv_heads][dim] of keys, then as many of values, to
 * which a bias is added first where there is one. Row r is token p = past[b] + r % SEQ of sequence
 * b = r / SEQ. A head x of queries or keys, first RMS normed with a gain where there is one, becomes
 *
 *   y[i] = x[i] c[i] - x[i + h] s[i],   y[i + h] = x[i + h] c[i] + x[i] s[i],   h = dim / 2
 *
 * with c and s the two halves of cos_sin[p].
 *
 *   for (int r = 0; r < ROWS; r++)
 *       for (int u = 0; u < HEADS + 2 * KV_HEADS; u++)
 *           if (u < HEADS) q[r][u] = turned(qkv[r][u], cos_sin[p]);
 *           else if (u < HEADS + KV_HEADS) K(page, u - HEADS)[p % 32] = turned(qkv[r][u], cos_sin[p]);
 *           else V(page, u - HEADS - KV_HEADS)[p % 32] = qkv[r][u];
 *
 * A token that the page table has no page for is not kept.
 *
 * Constants: RLX_T; RLX_ROWS = batch * seq, RLX_SEQ; RLX_HEADS, RLX_KV_HEADS, RLX_DIM (even);
 * RLX_TABLE pages of a sequence, RLX_PAGE_STRIDE elements, RLX_POSITIONS rows of cos_sin; RLX_BIAS,
 * RLX_GAINS (0 or 1), RLX_EPS of the norm; RLX_BLOCK threads.
 * Arguments: qkv, bias [(heads + 2 kv_heads) dim], cos_sin [positions, dim], q_gain [dim], k_gain [dim],
 * lengths, past, pages, cache, q [rows, heads dim].
 * Launch: grid ceil(ROWS (HEADS + 2 KV_HEADS) LANES / BLOCK); LANES of a head as rope.cuh says. */
#include "rope.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK)
    RLX_NAME(const RLX_T *qkv, const float *bias, const float *cos_sin, const float *q_gain,
             const float *k_gain, const int *lengths, const int *past, const int *pages,
             RLX_T *cache, RLX_T *q) {
    typedef RotaryHead<RLX_T, RLX_DIM> Head;
    constexpr int UNITS = RLX_HEADS + 2 * RLX_KV_HEADS;
    const int at = (blockIdx.x * RLX_BLOCK + threadIdx.x) / Head::LANES;
    const int row = at / UNITS, unit = at % UNITS, batch = row / RLX_SEQ;
    const bool real = row < RLX_ROWS && row % RLX_SEQ < lengths[batch];
    if (!__any_sync(RLX_ALL, real)) return;
    Head head = {};
    head.lane = threadIdx.x % Head::LANES;
    if (real) head.read<RLX_BIAS>(qkv + ((long)row * UNITS + unit) * RLX_DIM, bias + unit * RLX_DIM);
    const bool query = unit < RLX_HEADS, value = unit >= RLX_HEADS + RLX_KV_HEADS;
    if constexpr (RLX_GAINS) head.norm(query ? q_gain : k_gain, RLX_EPS, !value);
    if (!real) return;
    const int token = past[batch] + row % RLX_SEQ, entry = token / RLX_PAGE;
    if (!value) head.turn(cos_sin + (long)(token < RLX_POSITIONS ? token : 0) * RLX_DIM);
    if (query) {
        head.write(q + ((long)row * RLX_HEADS + unit) * RLX_DIM);
        return;
    }
    const int page = entry < RLX_TABLE ? pages[batch * RLX_TABLE + entry] : -1;
    if (page < 0) return;
    const int own = (unit - RLX_HEADS) % RLX_KV_HEADS;
    head.write(cache + (long)page * RLX_PAGE_STRIDE +
               ((own * 2 + value) * RLX_PAGE + token % RLX_PAGE) * RLX_DIM);
}
