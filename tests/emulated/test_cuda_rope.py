"""Rotary positions and the write to the cache as a CUDA kernel, on the host."""

from __future__ import annotations

import numpy as np
import pytest

from rlx_ray.compiler.cuda.kernel_table import instance
from rlx_ray.dtype import DType
from rlx_ray.shape import PAGE
from rlx_ray.weights.rope import cos_sin
from tests.support.cuda_emulator import NUMPY, Unit
from tests.support.cuda_oracle import IDS, TYPES, check, empty, floats, values, wide

BATCH, SEQ, TABLE, POSITIONS, EPS = 3, 5, 4, 128, 1e-6
LENGTHS = np.array([5, 2, 0], np.int32)
PAST = np.array([30, 64, 7], np.int32)
LAYERS, PAGES = 2, 9
SHAPES = {
    # heads, kv_heads, dim, bias, gains
    "llama": (4, 2, 64, 0, 0),
    "qwen2": (2, 2, 16, 1, 0),
    "qwen3": (3, 1, 96, 0, 1),
    "odd": (2, 1, 6, 1, 1),
}
INSTANCES = [
    instance(
        "rope",
        f"{name}_{t}",
        t=t,
        rows=BATCH * SEQ,
        seq=SEQ,
        heads=heads,
        kv_heads=kv_heads,
        dim=dim,
        table=TABLE,
        page_stride=LAYERS * kv_heads * 2 * PAGE * dim,
        positions=POSITIONS,
        bias=bias,
        gains=gains,
        eps=EPS,
    )
    for name, (heads, kv_heads, dim, bias, gains) in SHAPES.items()
    for t in TYPES
]


def tables(rng: np.random.Generator) -> np.ndarray:
    """Page tables without a page twice."""
    return rng.permutation(PAGES)[: BATCH * TABLE // 2].reshape(BATCH, -1).astype(np.int32)


@pytest.mark.parametrize("t", TYPES, ids=IDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_queries_are_turned_and_keys_and_values_kept(kernels: Unit, shape: str, t: DType) -> None:
    heads, kv_heads, dim, biased, gained = SHAPES[shape]
    rng = np.random.default_rng(dim)
    units = heads + 2 * kv_heads
    qkv, bias = values(rng, (BATCH * SEQ, units * dim), t), floats(rng, units * dim)
    gains = [1 + 0.1 * floats(rng, dim) for _ in range(2)]
    table = cos_sin(POSITIONS, dim, {"theta": 10000.0, "kind": "default"})
    pages = np.full((BATCH, TABLE), -1, np.int32)
    pages[:2, :3] = rng.permutation(PAGES)[:6].reshape(2, 3)
    pages[1, 2] = -1
    before = values(rng, (PAGES, LAYERS, kv_heads, 2, PAGE, dim), t)
    got = kernels.run(
        f"{shape}_{t}",
        qkv=qkv,
        bias=bias,
        cos_sin=table,
        q_gain=gains[0],
        k_gain=gains[1],
        lengths=LENGTHS,
        past=PAST,
        pages=pages,
        cache=before,
        q=empty((BATCH * SEQ, heads * dim), t),
    )
    want_q, kept = np.full((BATCH * SEQ, heads, dim), np.nan), wide(before)
    x = (wide(qkv) + (bias if biased else 0)).reshape(BATCH, SEQ, units, dim)
    for b in range(BATCH):
        for s in range(LENGTHS[b]):
            token = PAST[b] + s
            for u in range(units):
                v = x[b, s, u]
                if u < heads + kv_heads:
                    if gained:
                        v = v / np.sqrt((v * v).mean() + EPS) * wide(gains[u >= heads])
                    low, high = np.split(v, 2)
                    c, n = np.split(wide(table[token]), 2)
                    v = np.concatenate([low * c - high * n, high * c + low * n])
                if u < heads:
                    want_q[b * SEQ + s, u] = v
                elif pages[b, token // PAGE] >= 0:
                    own, is_value = (u - heads) % kv_heads, int(u >= heads + kv_heads)
                    kept[pages[b, token // PAGE], 0, own, is_value, token % PAGE] = v
    real = ~np.isnan(want_q[:, 0, 0])
    assert real.sum() == LENGTHS.sum()
    check(got["q"][real], want_q.reshape(BATCH * SEQ, -1)[real], t)
    assert np.isnan(wide(got["q"][~real])).all()
    written = kept != wide(before)
    assert written.any()
    check(got["cache"][written], kept[written], t)
    assert (got["cache"][~written] == before[~written]).all()


@pytest.mark.parametrize("t", TYPES, ids=IDS)
def test_a_layer_writes_its_own_part_of_a_page(kernels: Unit, t: DType) -> None:
    heads, kv_heads, dim, _, _ = SHAPES["llama"]
    stride = kv_heads * 2 * PAGE * dim
    rng = np.random.default_rng(0)
    qkv = values(rng, (BATCH * SEQ, (heads + 2 * kv_heads) * dim), t)
    given = {
        "qkv": qkv,
        "cos_sin": cos_sin(POSITIONS, dim, {"theta": 10000.0, "kind": "default"}),
        "lengths": LENGTHS,
        "past": PAST,
        "pages": np.arange(BATCH * TABLE, dtype=np.int32).reshape(BATCH, TABLE),
        "q": empty((BATCH * SEQ, heads * dim), t),
    }
    cache = np.zeros((BATCH * TABLE, LAYERS, stride), NUMPY[t])
    first = kernels.run(f"llama_{t}", **given, cache=cache)["cache"]
    assert not wide(first[:, 1]).any()
    assert (wide(first[:, 0]) != 0).sum() == LENGTHS.sum() * kv_heads * 2 * dim
