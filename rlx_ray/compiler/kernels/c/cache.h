/* The key-value cache: where its numbers lie, and its plain writing and reading.
 *
 * The cache is pages of CACHE_PAGE tokens. A page holds, for each layer and each head of keys and
 * values, K as panels [CACHE_PAGE / RLX_PANEL][dim][RLX_PANEL] (K^T as gemm.h reads it) and V as
 * panels [ceil(dim / RLX_PANEL)][CACHE_PAGE][RLX_PANEL], in float32 or float16: `size` is a number's
 * bytes. Token t of a sequence lies in page pages[t / CACHE_PAGE] of the sequence's table, at
 * t % CACHE_PAGE; -1 stands for a page past its end or behind its window. The tables are a run-time
 * input: sequences of any length share a step, and equal beginnings may share pages. */
#ifndef RLX_CACHE_H
#define RLX_CACHE_H

#include "attention.h"

#ifndef CACHE_PAGE
#error "the unit defines CACHE_PAGE: tokens of a page"
#endif
#define CACHE_K(dim) ((dim) * CACHE_PAGE) /* numbers of a head's keys in a page */
#define CACHE_HEAD(dim) (CACHE_K(dim) + ATT_PANELS(dim) * RLX_PANEL * CACHE_PAGE) /* and values */

/* Where layer `layer`, head `head` of the page of a sequence's token lies; 0 if the table has none. */
RLX_INLINE char *cache_head(char *cache, const int *pages, const long table, long token,
                            const long layers, const long kv_heads, const long dim, const int size,
                            long layer, long head) {
    const long at = token / CACHE_PAGE;
    if (at >= table || pages[at] < 0) return 0;
    return cache +
           (((long)pages[at] * layers + layer) * kv_heads + head) * CACHE_HEAD(dim) * size;
}

/* One number of a page; float16 saturates. */
RLX_INLINE void cache_store(char *page, long at, const int size, float x) {
    if (size == 4) ((float_any *)page)[at] = x;
    else ((half_any *)page)[at] = (_Float16)(x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x);
}

RLX_INLINE float cache_load(const char *page, long at, const int size) {
    return size == 4 ? ((const float_any *)page)[at] : (float)((const half_any *)page)[at];
}

/* Which number of a page is number d of a token's key, and of its value. */
RLX_INLINE long cache_key(long slot, long d, const long dim) {
    return (slot / RLX_PANEL * dim + d) * RLX_PANEL + slot % RLX_PANEL;
}
RLX_INLINE long cache_value(long slot, long d, const long dim) {
    return CACHE_K(dim) + (d / RLX_PANEL * CACHE_PAGE + slot) * RLX_PANEL + d % RLX_PANEL;
}

RLX_INLINE void cache_put(char *page, long slot, const long dim, const int size, const float *k,
                          const float *v) {
    for (long d = 0; d < dim; d++) cache_store(page, cache_key(slot, d, dim), size, k[d]);
    const vf most = splat(65504.0f);
    long d = 0;
    for (; d + RLX_LANES <= dim; d += RLX_LANES) { /* a register of a value is one run of a panel */
        char *to = page + cache_value(slot, d, dim) * size;
        const vf x = ld(v + d);
        if (size == 4) st((float *)to, x);
        else *(vhalf *)to = __builtin_convertvector(vmax(vmin(x, most), -most), vhalf);
    }
    for (; d < dim; d++) cache_store(page, cache_value(slot, d, dim), size, v[d]);
}

/* Keys and values of new tokens, row-major [sequences * tokens][kv_heads * dim], go to the cache;
 * y = q, the queries [sequences * tokens][heads * dim]: who reads y reads the cache after this. */
RLX_INLINE void cache_write(const long sequences, const long tokens, const long heads,
                            const long kv_heads, const long dim, const int size, const long layers,
                            const long layer, const long table, const float *q, const float *k,
                            const float *v, const int *lengths, const int *past, const int *pages,
                            char *cache, float *y) {
    const long width = kv_heads * dim;
    for (long i = 0; i < sequences * tokens * heads * dim; i++) y[i] = q[i];
    for (long s = 0; s < sequences; s++)
        for (long t = 0; t < least(lengths[s], tokens); t++)
            for (long g = 0; g < kv_heads; g++) {
                const long token = past[s] + t, from = (s * tokens + t) * width + g * dim;
                char *page = cache_head(cache, pages + s * table, table, token, layers, kv_heads,
                                        dim, size, layer, g);
                if (page) cache_put(page, token % CACHE_PAGE, dim, size, k + from, v + from);
            }
}

/* y[s][g][t][d] = number d of the key, or of the value, of token t in head g; 0 where sequence s
 * holds no such token, or its table no page of it. */
RLX_INLINE void cache_read(const long sequences, const long kv_heads, const long dim,
                           const int size, const long layers, const long layer, const long table,
                           const int values, const int *lengths, const int *past, const int *pages,
                           char *cache, float *y) {
    for (long s = 0; s < sequences; s++)
        for (long g = 0; g < kv_heads; g++)
            for (long t = 0; t < table * CACHE_PAGE; t++, y += dim) {
                const long slot = t % CACHE_PAGE;
                const char *page = cache_head(cache, pages + s * table, table, t, layers, kv_heads,
                                              dim, size, layer, g);
                if (t >= past[s] + lengths[s]) page = 0;
                for (long d = 0; d < dim; d++) {
                    const long at = values ? cache_value(slot, d, dim) : cache_key(slot, d, dim);
                    y[d] = page ? cache_load(page, at, size) : 0;
                }
            }
}

#endif
