"""CUDA kernels that only common lowerings use, on the host: masks, rows side by side, the cache."""

from __future__ import annotations

import numpy as np
import pytest

from rlx_ray.compiler.cuda.kernel_table import Instance, instance
from rlx_ray.dtype import DType
from rlx_ray.shape import PAGE
from tests.support.cuda_cache import sequences
from tests.support.cuda_emulator import NUMPY, Unit
from tests.support.cuda_oracle import IDS, TYPES, empty, values

BATCH, SEQ, TABLE, KV_HEADS, DIM, LAYERS = 3, 5, 3, 2, 6, 2
PAST, LENGTHS = [0, 30, 62], [5, 0, 4]
STRIDE = LAYERS * KV_HEADS * 2 * PAGE * DIM
SIZES = {"kv_heads": KV_HEADS, "dim": DIM, "table": TABLE, "page_stride": STRIDE}


def of_type(t: DType) -> list[Instance]:
    mask = {"t": t, "batch": BATCH, "tokens": SEQ, "keys": TABLE * PAGE}
    return [
        instance("causal_mask", f"mask_{t}", **mask),
        instance("causal_mask", f"window_{t}", **mask, window=7),
        instance("concat", f"concat_{t}", t=t, rows=7, m=5, n=3),
        instance("cache_write", f"write_{t}", t=t, rows=BATCH * SEQ, seq=SEQ, **SIZES),
        instance("cache_read", f"keys_{t}", t=t, batch=BATCH, values=0, **SIZES),
        instance("cache_read", f"values_{t}", t=t, batch=BATCH, values=1, **SIZES),
    ]


INSTANCES = [
    *(one for t in TYPES for one in of_type(t)),
    instance("iota", "counted", rows=12, period=4, first=1, base=1),
]


@pytest.mark.parametrize("t", TYPES, ids=IDS)
def test_a_token_sees_what_is_not_behind_it_nor_its_window(kernels: Unit, t: DType) -> None:
    past = np.array(PAST, np.int32)
    out = empty((BATCH, SEQ, TABLE * PAGE), t)
    token = (past[:, None] + np.arange(SEQ))[:, :, None]
    key = np.arange(TABLE * PAGE)
    got = kernels.run(f"mask_{t}", past=past, y=out)["y"]
    assert (got == (key <= token)).all()
    got = kernels.run(f"window_{t}", past=past, y=out)["y"]
    assert (got == ((key <= token) & (key > token - 7))).all()


@pytest.mark.parametrize("t", TYPES, ids=IDS)
def test_rows_are_put_side_by_side(kernels: Unit, t: DType) -> None:
    rng = np.random.default_rng(0)
    a, b = values(rng, (7, 5), t), values(rng, (7, 3), t)
    got = kernels.run(f"concat_{t}", a=a, b=b, y=empty((7, 8), t))["y"]
    assert (got == np.concatenate((a, b), axis=1)).all()


@pytest.mark.parametrize("t", TYPES, ids=IDS)
def test_new_tokens_are_put_where_the_page_table_says(kernels: Unit, t: DType) -> None:
    rng = np.random.default_rng(1)
    held = sequences(rng, t, PAST, LENGTHS, TABLE, KV_HEADS, DIM, LAYERS)
    k, v = (values(rng, (BATCH * SEQ, KV_HEADS, DIM), t) for _ in range(2))
    want = held.cache.copy()
    for b, length in enumerate(LENGTHS):
        for i in range(length):
            page, slot = held.pages[b, (PAST[b] + i) // PAGE], (PAST[b] + i) % PAGE
            want[page, 0, :, 0, slot], want[page, 0, :, 1, slot] = k[b * SEQ + i], v[b * SEQ + i]
    rest = {"lengths": held.lengths, "past": held.past, "pages": held.pages}
    got = kernels.run(f"write_{t}", k=k, v=v, cache=held.cache, **rest)["cache"]
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("t", TYPES, ids=IDS)
@pytest.mark.parametrize("part", ["keys", "values"])
def test_the_cache_is_read_token_by_token_and_zero_behind_them(
    kernels: Unit, t: DType, part: str
) -> None:
    held = sequences(np.random.default_rng(2), t, PAST, LENGTHS, TABLE, KV_HEADS, DIM, LAYERS)
    want = np.zeros((BATCH, KV_HEADS, TABLE * PAGE, DIM), NUMPY[t])
    for b, rows in enumerate(getattr(held, part)):
        want[b, :, : len(rows)] = rows.swapaxes(0, 1)
    rest = {"lengths": held.lengths, "past": held.past, "pages": held.pages}
    out = empty(want.shape, t)
    got = kernels.run(f"{part}_{t}", cache=held.cache, y=out, **rest)["y"]
    assert (got == want).all()


def test_positions_are_counted_from_what_each_sequence_has(kernels: Unit) -> None:
    base = np.array([10, 0, 7], np.int32)
    got = kernels.run("counted", base=base, y=np.zeros(12, np.int32))["y"]
    assert got.tolist() == [11, 12, 13, 14, 1, 2, 3, 4, 8, 9, 10, 11]
