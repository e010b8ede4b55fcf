"""Attention of few tokens over the paged cache as CUDA kernels, on the host."""

from __future__ import annotations

import numpy as np
import pytest

from rlx_ray.compiler.cuda.kernel_table import Instance, instance
from rlx_ray.dtype import DType
from rlx_ray.shape import PAGE
from rlx_ray.weights.rope import cos_sin
from tests.support.cuda_cache import Sequences, sequences
from tests.support.cuda_emulator import NUMPY, ORDERS, Unit
from tests.support.cuda_oracle import IDS, TYPES, check, empty, floats, values, wide

TABLE, LAYERS = 9, 2
SHAPES = {
    # heads, kv_heads, dim, seq, window, splits
    "smollm2": (9, 3, 64, 1, 0, 3),
    "llama": (8, 2, 128, 1, 0, 1),
    "window": (4, 2, 32, 1, 40, 2),
    "chunk": (8, 2, 64, 5, 0, 2),
    "wide_group": (20, 1, 16, 1, 0, 1),
    "rest": (2, 1, 80, 2, 70, 1),
    "odd": (6, 2, 10, 3, 0, 2),
}
BATCH = 4


def build(name: str, t: DType) -> list[Instance]:
    heads, kv_heads, dim, seq, window, splits = SHAPES[name]
    stride = LAYERS * kv_heads * 2 * PAGE * dim
    rows = {"t": t, "batch": BATCH, "seq": seq, "heads": heads, "dim": dim, "splits": splits}
    how = {"kv_heads": kv_heads, "table": TABLE, "page_stride": stride, "window": window}
    made = [instance("attention_decode", f"{name}_{t}", **rows, **how, warps=2)]
    if splits > 1:
        made.append(instance("attention_combine", f"combine_{name}_{t}", **rows))
    return made


STEPS = {
    # heads, kv_heads, dim, window, splits, bias, gains
    "smollm2": (9, 3, 64, 0, 3, 0, 0),
    "llama": (8, 2, 128, 0, 1, 0, 0),
    "qwen": (4, 2, 32, 40, 2, 1, 1),
    "wide_group": (20, 1, 16, 0, 2, 1, 0),
    "odd": (6, 2, 10, 0, 2, 0, 1),
}
POSITIONS, EPS = 512, 1e-6
INSTANCES = [
    *(one for name in SHAPES for t in TYPES for one in build(name, t)),
    *(
        instance(
            "attention_step",
            f"step_{name}_{t}",
            t=t,
            batch=BATCH,
            heads=heads,
            kv_heads=kv_heads,
            dim=dim,
            table=TABLE,
            page_stride=LAYERS * kv_heads * 2 * PAGE * dim,
            positions=POSITIONS,
            window=window,
            splits=splits,
            bias=bias,
            gains=gains,
            eps=EPS,
            warps=2,
        )
        for name, (heads, kv_heads, dim, window, splits, bias, gains) in STEPS.items()
        for t in TYPES
    ),
]
each_type = pytest.mark.parametrize("t", TYPES, ids=IDS)


def attend(kernels: Unit, name: str, t: DType, q: np.ndarray, own: Sequences, order="shuffled"):
    _, _, dim, _, _, splits = SHAPES[name]
    count = q.size // dim
    got = kernels.run(
        f"{name}_{t}",
        order=order,
        q=q,
        cache=own.cache,
        lengths=own.lengths,
        past=own.past,
        pages=own.pages,
        partial=empty((count, splits, dim), DType.F32),
        stats=empty((count, splits, 2), DType.F32),
        out=empty(q.shape, t),
    )
    if splits == 1:
        return got["out"]
    parts = {"partial": got["partial"], "stats": got["stats"], "lengths": own.lengths}
    return kernels.run(f"combine_{name}_{t}", order=order, **parts, out=got["out"])["out"]


def case(name: str, t: DType, past: list[int], lengths: list[int]) -> tuple[np.ndarray, Sequences]:
    heads, kv_heads, dim, seq, _, _ = SHAPES[name]
    rng = np.random.default_rng(dim)
    own = sequences(rng, t, past, lengths, TABLE, kv_heads, dim, LAYERS)
    return values(rng, (BATCH * seq, heads * dim), t), own


@each_type
@pytest.mark.parametrize("name", SHAPES)
def test_it_agrees_with_float64(kernels: Unit, name: str, t: DType) -> None:
    heads, _, _, seq, window, _ = SHAPES[name]
    past, lengths = [0, 31, 250, 100], [1, seq, max(1, seq - 1), 0]
    q, own = case(name, t, past, lengths)
    got, want = attend(kernels, name, t, q, own), own.attended(q, seq, heads, window)
    real = ~np.isnan(want[:, 0])
    assert real.sum() == sum(lengths)
    check(got[real], want[real], t)
    assert np.isnan(wide(got[~real])).all(), "padding stays as it is"


@each_type
def test_a_row_has_its_bits_in_any_order_beside_any_other(kernels: Unit, t) -> None:
    q, own = case("smollm2", t, [5, 200, 64, 130], [1, 1, 1, 1])
    found = {attend(kernels, "smollm2", t, q, own, order).tobytes() for order in ORDERS}
    assert len(found) == 1
    turned = Sequences(own.cache, *(x[::-1] for x in (own.pages, own.past, own.lengths)), [], [])
    assert {attend(kernels, "smollm2", t, q[::-1], turned)[::-1].tobytes()} == found


@each_type
def test_large_scores_do_not_overflow(kernels: Unit, t: DType) -> None:
    q, own = case("smollm2", t, [40, 100, 33, 63], [1, 1, 1, 1])
    q = q * NUMPY[t].type(64)
    got = attend(kernels, "smollm2", t, q, own)
    check(got, own.attended(q, 1, 9, 0), t)


def test_pages_outside_the_table_are_not_read(kernels: Unit) -> None:
    q, own = case("smollm2", DType.F16, [40, 100, 33, 63], [1, 1, 1, 1])
    own.past[0] = 10_000
    got = attend(kernels, "smollm2", DType.F16, q, own)
    rest = Sequences(
        own.cache, own.pages[1:], own.past[1:], own.lengths[1:], own.keys[1:], own.values[1:]
    )
    check(got[1:], rest.attended(q[1:], 1, 9, 0), DType.F16)


def turned(x: np.ndarray, gain: np.ndarray | None, angles: np.ndarray) -> np.ndarray:
    """Heads [n, dim] normed, if there is a gain, and turned."""
    if gain is not None:
        x = x / np.sqrt((x * x).mean(1, keepdims=True) + EPS) * wide(gain)
    (low, high), (c, s) = np.split(x, 2, axis=1), np.split(wide(angles), 2)
    return np.concatenate([low * c - high * s, high * c + low * s], axis=1)


@each_type
@pytest.mark.parametrize("name", STEPS)
def test_a_whole_step(kernels: Unit, name: str, t: DType) -> None:
    heads, kv_heads, dim, window, splits, biased, gained = STEPS[name]
    rng = np.random.default_rng(dim + 1)
    past, lengths = [0, 31, 250, 100], [1, 1, 1, 0]
    own = sequences(rng, t, past, lengths, TABLE, kv_heads, dim, LAYERS)
    units = heads + 2 * kv_heads
    qkv, bias = values(rng, (BATCH, units * dim), t), floats(rng, units * dim)
    gains = [1 + 0.1 * floats(rng, dim) for _ in range(2)]
    table = cos_sin(POSITIONS, dim, {"theta": 10000.0, "kind": "default"})

    x = (wide(qkv) + (bias if biased else 0)).reshape(BATCH, units, dim)
    queries = np.zeros((BATCH, heads, dim))
    cache, fresh = own.cache.copy(), np.zeros(own.cache.shape, bool)
    for b in range(BATCH):
        if not lengths[b]:
            continue
        g = gains if gained else (None, None)
        queries[b] = turned(x[b, :heads], g[0], table[past[b]])
        own.keys[b][-1] = turned(x[b, heads : heads + kv_heads], g[1], table[past[b]])
        own.values[b][-1] = x[b, heads + kv_heads :]
        slot = own.pages[b, past[b] // PAGE], 0, slice(None), slice(None), past[b] % PAGE
        cache[slot], fresh[slot] = np.nan, True
    want = own.attended(wide(queries.astype(NUMPY[t])).reshape(BATCH, -1), 1, heads, window)

    given = {
        **{"qkv": qkv, "bias": bias, "cos_sin": table, "q_gain": gains[0], "k_gain": gains[1]},
        **{"lengths": own.lengths, "past": own.past, "pages": own.pages, "cache": cache},
        "partial": empty((BATCH * heads, splits, dim), DType.F32),
        "stats": empty((BATCH * heads, splits, 2), DType.F32),
        "tickets": np.zeros(BATCH * kv_heads * -(-heads // kv_heads // 16), np.int32),
        "out": empty((BATCH, heads * dim), t),
    }
    found = set()
    for order in ORDERS:
        got = kernels.run(f"step_{name}_{t}", order=order, **given)
        check(got["out"][:3], want[:3], t)
        assert np.isnan(wide(got["out"][3])).all(), "padding stays as it is"
        kept = [k[-1] for k in own.keys[:3]], [v[-1] for v in own.values[:3]]
        for b in range(3):
            slot = got["cache"][own.pages[b, past[b] // PAGE], 0, :, :, past[b] % PAGE]
            check(slot, wide(np.stack([kept[0][b], kept[1][b]], axis=1)), t)
        same = got["cache"][~fresh].view(f"u{t.size}") == cache[~fresh].view(f"u{t.size}")
        assert same.all(), "nothing else is written"
        assert not got["tickets"].any(), "ready for the next launch"
        found.add(got["out"][:3].tobytes())
    assert len(found) == 1
