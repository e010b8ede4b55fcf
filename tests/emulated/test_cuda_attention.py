"""Attention of many tokens as CUDA kernels, on the host: encoders, and prompts over a cache."""

from __future__ import annotations

import numpy as np
import pytest

from rlx_ray.compiler.cuda.kernel_table import Instance, instance
from rlx_ray.dtype import DType
from rlx_ray.shape import PAGE
from tests.support.cuda_cache import Sequences, sequences
from tests.support.cuda_emulator import NUMPY, ORDERS, Unit
from tests.support.cuda_oracle import IDS, TYPES, attention, check, empty, floats, values, wide

ENCODERS = {
    # heads, kv_heads, dim, seq, lengths, constants
    "minilm": (2, 2, 32, 80, [80, 33, 0], {"bias": 1}),
    "tall": (1, 1, 64, 70, [70, 1, 65], {"m": 2, "warps": 2, "keys": 32}),
    "short": (3, 3, 16, 5, [5, 2, 1], {"bias": 1}),
    "rest": (2, 1, 48, 40, [40, 17, 39], {"bias": 1, "causal": 1}),
    "window": (2, 2, 24, 90, [90, 50, 3], {"causal": 1, "window": 20, "keys": 16, "warps": 1}),
    "odd": (1, 1, 11, 20, [20, 7, 13], {"bias": 1, "warps": 1}),
}
TABLE, LAYERS = 5, 2
PROMPTS = {
    # heads, kv_heads, dim, seq, past, lengths, window, constants
    "smollm2": (3, 1, 64, 24, [0, 100, 40], [24, 11, 0], 0, {}),
    "window": (4, 2, 16, 40, [0, 60, 96], [40, 40, 1], 33, {"keys": 32, "warps": 2}),
    "wide": (2, 1, 128, 20, [0, 30, 64], [20, 3, 20], 0, {"warps": 2, "m": 1}),
    "tall": (2, 2, 64, 40, [64, 0, 31], [40, 40, 33], 0, {"m": 2, "warps": 1}),
    "odd": (2, 2, 6, 9, [40, 31, 0], [9, 9, 4], 0, {"warps": 1}),
}


def build(t: DType) -> list[Instance]:
    made = []
    for name, (heads, kv_heads, dim, seq, _, how) in ENCODERS.items():
        sizes = {"batch": 3, "seq": seq, "heads": heads, "kv_heads": kv_heads, "dim": dim}
        made.append(instance("attention", f"encoder_{name}_{t}", t=t, **sizes, **how))
    for name, (heads, kv_heads, dim, seq, _, _, window, how) in PROMPTS.items():
        sizes = {"batch": 3, "seq": seq, "heads": heads, "kv_heads": kv_heads, "dim": dim}
        sizes |= {"table": TABLE, "page_stride": LAYERS * kv_heads * 2 * PAGE * dim}
        kernel = f"prompt_{name}_{t}"
        made.append(instance("attention_cached", kernel, t=t, **sizes, window=window, **how))
    return made


INSTANCES = [one for t in TYPES for one in build(t)]
each_type = pytest.mark.parametrize("t", TYPES, ids=IDS)


def encode(name: str, qkv: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """What attention of an encoder gives in float64; NaN for padding."""
    heads, kv_heads, dim, seq, lengths, how = ENCODERS[name]
    x = wide(qkv) + (bias if how.get("bias") else 0)
    x = x.reshape(-1, heads + 2 * kv_heads, dim)
    out = np.full((len(qkv), heads * dim), np.nan)
    window = how.get("window", 0)
    for b, length in enumerate(lengths):
        if not length:
            continue
        rows = slice(b * seq, b * seq + length)
        q, k, v = np.split(x[rows], [heads, heads + kv_heads], axis=1)
        token, key = np.ogrid[:length, :length]
        seen = np.ones((length, length), bool)
        if how.get("causal"):
            seen = (key <= token) & ((key > token - window) | (window == 0))
        out[rows] = attention(q, k, v, seen)
    return out


@each_type
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(kernels: Unit, name: str, t: DType) -> None:
    heads, kv_heads, dim, seq, lengths, _ = ENCODERS[name]
    rng = np.random.default_rng(dim)
    width = (heads + 2 * kv_heads) * dim
    qkv, bias = values(rng, (3 * seq, width), t), floats(rng, width)
    given = {"bias": bias, "lengths": np.array(lengths, np.int32)}
    out = empty((3 * seq, heads * dim), t)
    want = encode(name, qkv, bias)
    real = ~np.isnan(want[:, 0])
    qkv[~real] = np.nan
    got = kernels.run(f"encoder_{name}_{t}", qkv=qkv, **given, out=out)["out"]
    assert real.sum() == sum(lengths)
    check(got[real], want[real], t)
    assert np.isnan(wide(got[~real])).all(), "padding stays as it is"


def prompt(kernels: Unit, name: str, t: DType, q: np.ndarray, own: Sequences, order="shuffled"):
    return kernels.run(
        f"prompt_{name}_{t}",
        order=order,
        q=q,
        cache=own.cache,
        lengths=own.lengths,
        past=own.past,
        pages=own.pages,
        out=empty(q.shape, t),
    )["out"]


def case(name: str, t: DType) -> tuple[np.ndarray, Sequences]:
    heads, kv_heads, dim, seq, past, lengths, _, _ = PROMPTS[name]
    rng = np.random.default_rng(dim)
    own = sequences(rng, t, past, lengths, TABLE, kv_heads, dim, LAYERS)
    return values(rng, (3 * seq, heads * dim), t), own


@each_type
@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(kernels: Unit, name: str, t: DType) -> None:
    heads, _, _, seq, _, lengths, window, _ = PROMPTS[name]
    q, own = case(name, t)
    got, want = prompt(kernels, name, t, q, own), own.attended(q, seq, heads, window)
    real = ~np.isnan(want[:, 0])
    assert real.sum() == sum(lengths)
    check(got[real], want[real], t)
    assert np.isnan(wide(got[~real])).all(), "padding stays as it is"


@each_type
def test_a_row_has_its_bits_in_any_order_beside_any_other(kernels: Unit, t) -> None:
    q, own = case("window", t)
    found = {prompt(kernels, "window", t, q, own, order).tobytes() for order in ORDERS}
    assert len(found) == 1
    turned = Sequences(own.cache, *(x[::-1] for x in (own.pages, own.past, own.lengths)), [], [])
    back = prompt(kernels, "window", t, q.reshape(3, 40, -1)[::-1].reshape(q.shape), turned)
    assert {back.reshape(3, 40, -1)[::-1].tobytes()} == found


@each_type
def test_a_prompt_in_pieces_gives_what_it_gives_whole(kernels: Unit, t: DType) -> None:
    q, own = case("tall", t)
    whole = prompt(kernels, "tall", t, q, own)
    first = np.array([20, 0, 0], np.int32)
    split = Sequences(own.cache, own.pages, own.past + first, own.lengths - first, [], [])
    moved = q.copy()
    moved[:20] = q[20:40]
    assert prompt(kernels, "tall", t, moved, split)[:20].tobytes() == whole[20:40].tobytes()


@each_type
def test_large_scores_do_not_overflow(kernels: Unit, t: DType) -> None:
    q, own = case("smollm2", t)
    q = q * NUMPY[t].type(64)
    got, want = prompt(kernels, "smollm2", t, q, own), own.attended(q, 24, 3, 0)
    real = ~np.isnan(want[:, 0])
    check(got[real], want[real], t)
