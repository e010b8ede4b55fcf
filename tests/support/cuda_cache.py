"""A paged key-value cache with sequences in it, as decoders' CUDA kernels read it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlx_ray.dtype import DType
from rlx_ray.shape import PAGE
from tests.support.cuda_oracle import attention, empty, values


@dataclass(frozen=True)
class Sequences:
    """Sequences of a step.

    Attributes:
        cache: [pages, layers, kv_heads, 2, PAGE, dim]; free slots are NaN. Layer 0 is theirs.
        pages: int32 [batch, table], -1 for none.
        past: int32 [batch].
        lengths: int32 [batch].
        keys: of each sequence [tokens, kv_heads, dim].
        values: likewise.
    """

    cache: np.ndarray
    pages: np.ndarray
    past: np.ndarray
    lengths: np.ndarray
    keys: list[np.ndarray]
    values: list[np.ndarray]

    def attended(self, q: np.ndarray, seq: int, heads: int, window: int) -> np.ndarray:
        """What attention gives in float64 [batch * seq, heads * dim]; NaN for padding."""
        dim = self.cache.shape[-1]
        out = np.full((len(q), heads * dim), np.nan)
        for b, (past, length) in enumerate(zip(self.past, self.lengths, strict=True)):
            if not length:
                continue
            rows = slice(b * seq, b * seq + length)
            token, key = np.ogrid[past : past + length, : past + length]
            seen = (key <= token) & ((key > token - window) | (window == 0))
            own = q[rows].reshape(length, heads, dim)
            out[rows] = attention(own, self.keys[b], self.values[b], seen)
        return out


def sequences(
    rng: np.random.Generator,
    t: DType,
    past: list[int],
    lengths: list[int],
    table: int,
    kv_heads: int,
    dim: int,
    layers: int = 2,
) -> Sequences:
    """Random sequences whose new tokens are in the cache already."""
    count = table * len(past)
    cache = empty((count, layers, kv_heads, 2, PAGE, dim), t)
    pages = np.full((len(past), table), -1, np.int32)
    free = rng.permutation(count)
    keys, kept = [], []
    for b, (before, new) in enumerate(zip(past, lengths, strict=True)):
        total = before + new
        k, v = (values(rng, (total, kv_heads, dim), t) for _ in range(2))
        used = -(-total // PAGE)
        assert used <= table
        pages[b, :used], free = free[:used], free[used:]
        for i in range(total):
            cache[pages[b, i // PAGE], 0, :, 0, i % PAGE] = k[i]
            cache[pages[b, i // PAGE], 0, :, 1, i % PAGE] = v[i]
        keys.append(k)
        kept.append(v)
    arrays = (np.array(x, np.int32) for x in (past, lengths))
    return Sequences(cache, pages, *arrays, keys, kept)
