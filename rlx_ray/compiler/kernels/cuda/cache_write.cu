/* The step's keys and values into the cache, as they are: rope.cu without its turning.
 *
 *   for (int r = 0; r < ROWS; r++)
 *       for (int h = 0; h < KV_HEADS; h++) K(page, h)[p % 32] = k[r][h], V(page, h)[p % 32] = v[r][h];
 *
 * Row r is token p = past[b] + r % SEQ of sequence b = r / SEQ. A token that the page table has no page
 * for is not kept.
 *
 * Constants: RLX_T; RLX_ROWS = batch * seq, RLX_SEQ; RLX_KV_HEADS, RLX_DIM; RLX_TABLE pages of a
 * sequence, RLX_PAGE_STRIDE elements; RLX_BLOCK threads.
 * Arguments: k [rows, kv_heads dim], v likewise, lengths, past, pages, cache.
 * Launch: grid ceil(ROWS KV_HEADS DIM / BLOCK). */
#include "rlx.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK)
    RLX_NAME(const RLX_T *k, const RLX_T *v, const int *lengths, const int *past, const int *pages,
             RLX_T *cache) {
    constexpr int WIDTH = RLX_KV_HEADS * RLX_DIM;
    const int at = blockIdx.x * RLX_BLOCK + threadIdx.x, row = at / WIDTH;
    if (row >= RLX_ROWS || is_padding<RLX_SEQ>(lengths, row)) return;
    const int token = past[row / RLX_SEQ] + row % RLX_SEQ, entry = token / RLX_PAGE;
    const int page = entry < RLX_TABLE ? pages[row / RLX_SEQ * RLX_TABLE + entry] : -1;
    if (page < 0) return;
    const int head = at % WIDTH / RLX_DIM, d = at % RLX_DIM;
    RLX_T *to = cache + (long)page * RLX_PAGE_STRIDE + head * 2 * RLX_PAGE * RLX_DIM +
                token % RLX_PAGE * RLX_DIM + d;
    to[0] = k[at];
    to[RLX_PAGE * RLX_DIM] = v[at];
}
