/* What decoders have beside encoders: RMS norm, rotary positions, attention over a paged cache.
 *
 * Rotary positions and attention come twice: over the packed rows of a span, and, `_padded`, over
 * rectangles of sequences * tokens rows. */
#ifndef RLX_DECODER_H
#define RLX_DECODER_H

#include "cache.h"

/* RMS norm of each row:  y = x / sqrt(mean(x^2) + eps) * g.  Source: arXiv:1910.07467. */
RLX_INLINE void rms_norm(const long rows, const long n, const float eps, const float *x,
                         const float *g, float *y) {
    const long whole = n - n % RLX_LANES;
    for (long r = 0; r < rows; r++, x += n, y += n) {
        vf s0 = {0}, s1 = {0};
        long i = 0;
        for (; i + 2 * RLX_LANES <= whole; i += 2 * RLX_LANES) {
            s0 += ld(x + i) * ld(x + i);
            s1 += ld(x + i + RLX_LANES) * ld(x + i + RLX_LANES);
        }
        if (i < whole) s0 += ld(x + i) * ld(x + i);
        float sum = lanes_sum(s0 + s1);
        for (i = whole; i < n; i++) sum += x[i] * x[i];
        const float scale = vrsqrt(splat(sum / n + eps))[0];
        for (i = 0; i < whole; i += RLX_LANES) st(y + i, ld(x + i) * scale * ld(g + i));
        for (; i < n; i++) y[i] = x[i] * scale * g[i];
    }
}

/* Rotary positions on one head: (x_i, x_{i + dim/2}) turned by the angle of position and i, whose
 * cosines and sines are the halves of `turn`. Source: Su et al., arXiv:2104.09864. */
RLX_INLINE void rope_head(const long dim, const float *turn, const float *x, float *y) {
    const long half = dim / 2;
    long i = 0;
    for (; i + RLX_LANES <= half; i += RLX_LANES) {
        const vf a = ld(x + i), b = ld(x + half + i), c = ld(turn + i), s = ld(turn + half + i);
        st(y + i, a * c - b * s);
        st(y + half + i, b * c + a * s);
    }
    for (; i < half; i++) {
        const float a = x[i], b = x[half + i];
        y[i] = a * turn[i] - b * turn[half + i];
        y[half + i] = b * turn[i] + a * turn[half + i];
    }
}

/* The micro-kernel on panels of a page. */
#define MICRO_HALF(ROWS) \
    RLX_KERNEL __attribute__((unused)) void half_##ROWS(const rlx_micro *t) { \
        micro_sized(ROWS, 2, t, 0); \
    }
MICRO_HALF(1)
MICRO_HALF(2)
MICRO_HALF(3)
MICRO_HALF(4)
MICRO_HALF(5)
MICRO_HALF(6)
#if RLX_TILE_ROWS == 8
MICRO_HALF(7)
MICRO_HALF(8)
#endif

RLX_INLINE void cached_micro(const rlx_micro *t, long rows, const int size) {
    if (size == 4) {
        micro(t, rows);
        return;
    }
    const rlx_micro copy = *t;
    switch (rows) {
#if RLX_TILE_ROWS == 8
    case 8: half_8(&copy); return;
    case 7: half_7(&copy); return;
#endif
    case 6: half_6(&copy); return;
    case 5: half_5(&copy); return;
    case 4: half_4(&copy); return;
    case 3: half_3(&copy); return;
    case 2: half_2(&copy); return;
    default: half_1(&copy); return;
    }
}

/* What rotary positions on a model's rows need beside the rows. With q_gain each head of q and k is
 * first RMS normed. */
typedef struct {
    const float *cos_sin, *q_gain, *k_gain;
    long positions;
    float eps;
} rlx_rope;

/* One row, token `token` of the sequence with table `pages`, in the heads [first, last) of keys and
 * the queries' that share them: rotated queries to y, rotated keys, and values, to the cache. */
RLX_INLINE void rope_row(const rlx_rope *r, long first, long last, long token, const long heads,
                         const long kv_heads, const long dim, const int size, const long layers,
                         const long layer, const long table, const float *qkv, const int *pages,
                         char *cache, float *y) {
    float k[dim], q[dim];
    const float *turn = r->cos_sin + (token < r->positions ? token : 0) * dim;
    const long shared = heads / kv_heads;
    for (long h = first * shared; h < last * shared; h++) {
        const float *x = qkv + h * dim;
        if (r->q_gain) rms_norm(1, dim, r->eps, x, r->q_gain, q), x = q;
        rope_head(dim, turn, x, y + h * dim);
    }
    for (long g = first; g < last; g++) {
        const float *x = qkv + (heads + g) * dim;
        char *page = cache_head(cache, pages, table, token, layers, kv_heads, dim, size, layer, g);
        if (!page) continue;
        if (r->k_gain) rms_norm(1, dim, r->eps, x, r->k_gain, k), rope_head(dim, turn, k, q);
        else rope_head(dim, turn, x, q);
        cache_put(page, token % CACHE_PAGE, dim, size, q, x + kv_heads * dim);
    }
}

/* Rows [sequences * tokens][(heads + 2 kv_heads) * dim] to rotated queries y [..][heads * dim];
 * those of a row without a token are 0. */
RLX_INLINE void rope_cache_padded(const long sequences, const long tokens, const long heads,
                                  const long kv_heads, const long dim, const int size,
                                  const long layers, const long layer, const long table,
                                  const long positions, const float eps, const float *qkv,
                                  const int *lengths, const int *past, const int *pages,
                                  const float *cos_sin, const float *q_gain, const float *k_gain,
                                  char *cache, float *y) {
    const rlx_rope r = {cos_sin, q_gain, k_gain, positions, eps};
    const long width = (heads + 2 * kv_heads) * dim;
    for (long n = 0; n < sequences; n++)
        for (long i = 0; i < tokens; i++, qkv += width, y += heads * dim) {
            if (i < lengths[n])
                rope_row(&r, 0, kv_heads, past[n] + i, heads, kv_heads, dim, size, layers, layer,
                         table, qkv, pages + n * table, cache, y);
            else for (long d = 0; d < heads * dim; d++) y[d] = 0;
        }
}

/* Softmax of scores [first, length) in place, without the division; what a tile computed outside
 * of them, up to `padded`, becomes 0. Returns the divisor. */
RLX_INLINE float cached_softmax(long first, long length, long padded, float scale, float *scores) {
    vf most = splat(-3.0e38f);
    const long start = first / RLX_LANES * RLX_LANES;
    for (long i = 0; i < start; i += RLX_LANES) st(scores + i, (vf){0});
    for (long i = start; i < first; i++) scores[i] = -3.0e38f;
    for (long i = length; i < padded; i++) scores[i] = -3.0e38f;
    for (long i = start; i < padded; i += RLX_LANES) most = vmax(most, ld(scores + i));
    const vf top = splat(lanes_max(most) * scale);
    vf sum = {0};
    for (long i = start; i < padded; i += RLX_LANES) {
        vf e = vexp(RLX_FMA(ld(scores + i), splat(scale), -top));
        if (i < first || i + RLX_LANES > length)
            RLX_UNROLL for (int j = 0; j < RLX_LANES; j++)
                e[j] = i + j >= first && i + j < length ? e[j] : 0;
        st(scores + i, e);
        sum += e;
    }
    return lanes_sum(sum);
}

typedef struct {
    char *cache;
    const int *pages;
    long table, layers, kv_heads, layer, head, window;
} rlx_cached;

/* Where a tile's next page begins: its own, or the first of the next head, whose tile comes next. */
RLX_INLINE const char *cached_next(const rlx_cached *c, long at, long first, long length,
                                   const long dim, const int size) {
    const long next = at / CACHE_PAGE * CACHE_PAGE + CACHE_PAGE, more = next < length;
    if (!more && c->head + 1 == c->kv_heads) return 0;
    return cache_head(c->cache, c->pages, c->table, more ? next : first, c->layers, c->kv_heads, dim,
                      size, c->layer, more ? c->head : c->head + 1);
}

/* `rows` query rows at distance ld, of which row r is token position + r * step of its sequence, all
 * against one head of the cache. `scores` has RLX_TILE_ROWS rows of `stride` floats, then as many of
 * the result's width. Results go to out + r * ld. Pages before the window of the first row are not
 * touched: they may be gone. */
RLX_INLINE void cached_tile(const rlx_cached *c, long rows, long step, long position,
                            const long dim, const int size, long ld_, long stride,
                            float scale, const float *q, float *scores, float *out) {
    const long width = ATT_PANELS(dim) * RLX_PANEL, last = position + (rows - 1) * step;
    const long length = least(last + 1, c->table * CACHE_PAGE);
    long first = c->window ? position + 1 - c->window : 0;
    first = (first < 0 ? 0 : first) / CACHE_PAGE * CACHE_PAGE;
    float *part = scores + RLX_TILE_ROWS * stride, sums[RLX_TILE_ROWS];
    /* Cache lines of a page that each step of the products with the page before it fetches. */
    const long part_lines =
        (CACHE_HEAD(dim) * size / 64 * GEMM_UNROLL * RLX_PANEL / CACHE_PAGE + dim - 1) / dim;
    rlx_micro t = {.k = dim, .a = q, .lda = ld_, .ldc = stride};
    if (!step && !c->head) { /* no tile before this one has fetched its first page */
        const char *page = cache_head(c->cache, c->pages, c->table, first, c->layers, c->kv_heads, dim,
                                      size, c->layer, 0);
        for (long at = 0; page && at < CACHE_HEAD(dim) * size; at += 64)
            __builtin_prefetch(page + at, 0, 2);
    }
    for (long at = first; at < length; at += RLX_PANEL) {
        const char *page = cache_head(c->cache, c->pages, c->table, at, c->layers, c->kv_heads,
                                      dim, size, c->layer, c->head);
        if (!page) return;
        t.panel = page + at % CACHE_PAGE * dim * size, t.c = scores + at;
        if (!step) { /* one token reads all of this once, from memory, and pages lie apart */
            const char *next = cached_next(c, at, first, length, dim, size);
            const long done = at % CACHE_PAGE / RLX_PANEL * (dim / GEMM_UNROLL) * part_lines;
            t.ahead = next ? next + done * 64 : 0, t.lines = next ? part_lines : 0;
        }
        cached_micro(&t, rows, size);
    }
    const long padded = (length + RLX_PANEL - 1) / RLX_PANEL * RLX_PANEL;
    for (long r = 0; r < rows; r++) {
        const long own = least(position + r * step + 1, length);
        const long begin = c->window && own > c->window ? own - c->window : 0;
        float *row = scores + r * stride;
        sums[r] = cached_softmax(begin - first > 0 ? begin - first : 0, own - first,
                                 padded - first, scale, row + first);
    }
    t = (rlx_micro){.lda = stride, .ldc = width};
    for (long at = first; at < length; at += CACHE_PAGE) {
        const char *page = cache_head(c->cache, c->pages, c->table, at, c->layers, c->kv_heads,
                                      dim, size, c->layer, c->head) + CACHE_K(dim) * size;
        t.a = scores + at, t.k = least(CACHE_PAGE, length - at), t.more = at > first;
        for (long p = 0; p < ATT_PANELS(dim); p++) {
            t.panel = page + p * CACHE_PAGE * RLX_PANEL * size, t.c = part + p * RLX_PANEL;
            cached_micro(&t, rows, size);
        }
    }
    for (long r = 0; r < rows; r++) {
        const vf share = splat(1.0f / sums[r]);
        long d = 0;
        for (; d + RLX_LANES <= dim; d += RLX_LANES)
            st(out + r * ld_ + d, ld(part + r * width + d) * share);
        if (d < dim) st_part(out + r * ld_ + d, ld(part + r * width + d) * share, dim - d);
    }
}

/* Tokens [from, to) of one sequence, the queries of one head of keys. q and out are row `from`. Few
 * tokens: the heads that share the keys make a tile; many: tokens do. */
RLX_KERNEL __attribute__((unused)) void cached_sequence(
    const rlx_cached *c, long from, long to, long past, const long heads, const long dim,
    const int size, float scale, const float *q, float *out, float *scratch) {
    const long shared = heads / c->kv_heads, width = heads * dim, head = c->head * shared;
    const long stride = c->table * CACHE_PAGE;
    if (to - from < shared) {
        for (long i = from; i < to; i++, q += width, out += width)
            for (long h = 0; h < shared; h += RLX_TILE_ROWS)
                cached_tile(c, least(RLX_TILE_ROWS, shared - h), 0, past + i, dim, size, dim, stride,
                            scale, q + (head + h) * dim, scratch, out + (head + h) * dim);
        return;
    }
    for (long h = head; h < head + shared; h++)
        for (long i = from; i < to; i += RLX_TILE_ROWS)
            cached_tile(c, least(RLX_TILE_ROWS, to - i), 1, past + i, dim, size, width, stride, scale,
                        q + (i - from) * width + h * dim, scratch,
                        out + (i - from) * width + h * dim);
}

/* Rows [sequences * tokens][heads * dim] against all heads; the result of a row without a token is
 * 0. */
RLX_INLINE void attention_cached_padded(const long sequences, const long tokens, const long heads,
                                        const long kv_heads, const long dim, const int size,
                                        float scale, const long layers, const long layer,
                                        const long table, const long window, const float *q,
                                        const int *lengths, const int *past, const int *pages,
                                        char *cache, float *out, float *scratch) {
    const long width = heads * dim;
    rlx_cached c = {cache, pages, table, layers, kv_heads, layer, 0, window};
    for (long n = 0; n < sequences; n++, q += tokens * width, out += tokens * width) {
        const long length = lengths[n] < 0 ? 0 : least(lengths[n], tokens);
        c.pages = pages + n * table;
        for (c.head = 0; c.head < kv_heads; c.head++)
            cached_sequence(&c, 0, length, past[n], heads, dim, size, scale, q, out, scratch);
        for (long i = length * width; i < tokens * width; i++) out[i] = 0;
    }
}

#if defined(SPAN_BATCH)
/* The rows of a span: qkv [rows][(heads + 2 kv_heads) * dim] to rotated queries y [rows][heads *
 * dim]; rotated keys, and values, go to the cache. qkv and y are the span's first row. Where `one`
 * is not negative it is the tile of a single sequence's head, as in attention_cached, and only what
 * that tile reads is made. */
RLX_INLINE void rope_cache(const rlx_span *s, long one, const long heads, const long kv_heads,
                           const long dim, const int size, const long layers,
                           const long layer, const long table, const long positions,
                           const float eps, const float *qkv, const int *past, const int *pages,
                           const float *cos_sin, const float *q_gain, const float *k_gain,
                           char *cache, float *y) {
    const rlx_rope r = {cos_sin, q_gain, k_gain, positions, eps};
    const long end = s->row + s->rows, width = (heads + 2 * kv_heads) * dim;
    const long first = one >= 0 ? one % kv_heads : 0, last = one >= 0 ? first + 1 : kv_heads;
    for (long n = s->seq, at = s->start; at < end; n++) {
        const long length = span_length(s->lengths, n, at);
        const long from = s->row > at ? s->row : at, to = end < at + length ? end : at + length;
        for (long row = from; row < to; row++, qkv += width, y += heads * dim)
            if (one < 0 || one / kv_heads == n)
                rope_row(&r, first, last, past[n] + row - at, heads, kv_heads, dim, size, layers,
                         layer, table, qkv, pages + n * table, cache, y);
        at += length;
    }
}

/* The rows of a span against all heads, or, where `one` is not negative, a tile of a single
 * sequence's head: tile = sequence * kv_heads + head. q is row 0 of all, out the span's first. */
RLX_INLINE void attention_cached(const rlx_span *s, long one, const long heads,
                                 const long kv_heads, const long dim, const int size, float scale,
                                 const long layers, const long layer, const long table,
                                 const long window, const float *q, const int *past,
                                 const int *pages, char *cache, float *out, float *scratch) {
    const long end = s->row + s->rows, width = heads * dim;
    rlx_cached c = {cache, pages, table, layers, kv_heads, layer, 0, window};
    for (long n = s->seq, at = s->start; at < end; n++) {
        const long length = span_length(s->lengths, n, at);
        const long from = s->row > at ? s->row - at : 0;
        const long to = end - at < length ? end - at : length;
        const float *own = q + (at + from) * width;
        float *y = out + (at + from - s->row) * width;
        c.pages = pages + n * table;
        if (one >= 0) {
            c.head = one % kv_heads;
            if (one / kv_heads == n)
                cached_sequence(&c, from, to, past[n], heads, dim, size, scale, own, y, scratch);
        } else {
            for (c.head = 0; c.head < kv_heads; c.head++)
                cached_sequence(&c, from, to, past[n], heads, dim, size, scale, own, y, scratch);
        }
        at += length;
    }
}
#endif

#endif
