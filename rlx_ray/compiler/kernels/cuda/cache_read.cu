/* The keys, or with RLX_VALUES the values, that the cache holds of each sequence, token by token:
 *
 *   y[b][h][i] = i < past[b] + lengths[b] ? K(pages[b][i / 32], h)[i % 32] : 0
 *
 * What the page table has no page for is 0 too.
 *
 * Constants: RLX_T; RLX_BATCH, RLX_KV_HEADS, RLX_DIM; RLX_TABLE pages of a sequence, RLX_PAGE_STRIDE
 * elements; RLX_VALUES (0 or 1); RLX_BLOCK threads.
 * Arguments: cache, lengths, past, pages, y [batch, kv_heads, 32 table, dim].
 * Launch: grid ceil(BATCH KV_HEADS 32 TABLE DIM / BLOCK). */
#include "rlx.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK)
    RLX_NAME(const RLX_T *cache, const int *lengths, const int *past, const int *pages, RLX_T *y) {
    constexpr int TOKENS = RLX_TABLE * RLX_PAGE;
    const long at = (long)blockIdx.x * RLX_BLOCK + threadIdx.x;
    if (at >= (long)RLX_BATCH * RLX_KV_HEADS * TOKENS * RLX_DIM) return;
    const int d = at % RLX_DIM, i = at / RLX_DIM % TOKENS;
    const int head = at / (RLX_DIM * TOKENS) % RLX_KV_HEADS;
    const int batch = at / ((long)RLX_DIM * TOKENS * RLX_KV_HEADS);
    const bool held = i < past[batch] + lengths[batch];
    const int page = held ? pages[batch * RLX_TABLE + i / RLX_PAGE] : -1;
    const RLX_T *own = cache + (long)page * RLX_PAGE_STRIDE +
                       ((head * 2 + RLX_VALUES) * RLX_PAGE + i % RLX_PAGE) * RLX_DIM + d;
    y[at] = page < 0 ? from_float<RLX_T>(0.0f) : *own;
}
