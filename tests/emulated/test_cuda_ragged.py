"""Sequences that stand one after the other: CUDA kernels and whole ragged plans, on the host."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rlx_ray.compiler.cuda.kernel_table import Instance, instance
from rlx_ray.dtype import DType
from tests.support.cuda_emulator import ORDERS, Unit
from tests.support.cuda_oracle import IDS, TYPES, attention, check, empty, floats, values, wide
from tests.support.cuda_plans import TinyCard
from tests.support.mir_oracle import evaluate
from tests.support.programs import (
    bert,
    pack_inputs,
    random_inputs,
    random_params,
    stages,
)

BATCH, SEQ, ROWS, N = 37, 48, 48, 24
LENGTHS = {
    "odd": [0, 3, 0, 17, 1, 0, 9, *[0] * 29, 5],
    "one fills all": [*[0] * 20, 48, *[0] * 16],
    "one token each": [1] * 37,
    "none": [0] * 37,
}
HEADS = {
    # heads, kv_heads, dim, constants
    "minilm": (2, 2, 32, {"bias": 1}),
    "tall": (1, 1, 64, {"m": 2, "warps": 2, "keys": 32}),
    "window": (4, 2, 8, {"causal": 1, "window": 6, "keys": 16, "warps": 1}),
}
POOLS = ["mean", "max", "cls", "last"]
RUN = {"batch": BATCH, "seq": SEQ, "ragged": ROWS}


def of_type(t: DType) -> list[Instance]:
    tables = {"vocab": 30, "positions": SEQ + 2, "types": 2, "first": 2}
    return [
        *(
            instance("attention", f"{name}_{t}", t=t, heads=h, kv_heads=kv, dim=dim, **RUN, **how)
            for name, (h, kv, dim, how) in HEADS.items()
        ),
        *(
            instance("pool", f"{kind}_{t}", t=t, n=N, pool=i, **RUN, **({} if i % 2 else {"l2": 1}))
            for i, kind in enumerate(POOLS)
        ),
        instance("embed", f"embed_{t}", t=t, rows=ROWS, n=N, seq=ROWS, ragged=ROWS, **tables),
    ]


INSTANCES = [
    *(one for t in TYPES for one in of_type(t)),
    instance("starts", "starts", batch=BATCH, seq=SEQ, rows=ROWS),
]
each_type = pytest.mark.parametrize("t", TYPES, ids=IDS)
each_run = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=list(LENGTHS))


def find(kernels: Unit, lengths: list[int]) -> dict[str, np.ndarray]:
    """What `starts` says of lengths."""
    return kernels.run(
        "starts",
        lengths=np.array(lengths, np.int32),
        starts=np.full(BATCH + 1, -1, np.int32),
        rows=np.full(1, -1, np.int32),
        places=np.full(ROWS, -1, np.int32),
    )


def parts(lengths: list[int]) -> list[slice]:
    """The rows of each sequence."""
    ends = np.cumsum(lengths)
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


@each_run
def test_starts_are_the_sums_of_lengths(kernels: Unit, lengths: list[int]) -> None:
    found, total = find(kernels, lengths), sum(lengths)
    assert found["starts"].tolist() == [0, *np.cumsum(lengths)]
    assert found["rows"].tolist() == [total]
    assert found["places"].tolist() == [i for n in lengths for i in range(n)] + [-1] * (
        ROWS - total
    )


def test_starts_stay_within_the_rows_whatever_lengths_are(kernels: Unit) -> None:
    found = find(kernels, [-5, 30, 2**31 - 1, 7, *[1] * 33])
    assert found["starts"].tolist() == [0, 0, 30, *[ROWS] * 35]
    assert found["rows"].tolist() == [ROWS]
    assert found["places"].tolist() == [*range(30), *range(18)]


@each_type
@each_run
@pytest.mark.parametrize("name", HEADS)
def test_attention(kernels: Unit, name: str, lengths: list[int], t: DType) -> None:
    heads, kv_heads, dim, how = HEADS[name]
    rng = np.random.default_rng(dim)
    width, total = (heads + 2 * kv_heads) * dim, sum(lengths)
    qkv, bias = values(rng, (ROWS, width), t), floats(rng, width)
    x = (wide(qkv) + (bias if "bias" in how else 0)).reshape(ROWS, -1, dim)
    want = np.zeros((total, heads * dim))
    for own in parts(lengths):
        q, k, v = np.split(x[own], [heads, heads + kv_heads], axis=1)
        token, key = np.ogrid[: len(q), : len(q)]
        seen = (key <= token) & (key > token - how.get("window", 0)) | ("causal" not in how)
        want[own] = attention(q, k, v, seen) if len(q) else 0
    qkv[total:] = np.nan
    given = {"qkv": qkv, "bias": bias, "lengths": find(kernels, lengths)["starts"]}
    found = [
        kernels.run(f"{name}_{t}", order, **given, out=empty((ROWS, heads * dim), t))["out"]
        for order in (ORDERS if name == "minilm" else ["shuffled"])
    ]
    assert len({one.tobytes() for one in found}) == 1
    check(found[0][:total], want, t)
    assert np.isnan(wide(found[0][total:])).all(), "what is behind the last row stays as it is"


@each_type
@each_run
@pytest.mark.parametrize("kind", POOLS)
def test_poolings(kernels: Unit, kind: str, lengths: list[int], t: DType) -> None:
    x = values(np.random.default_rng(1), (ROWS, N), t)
    x[sum(lengths) :] = np.nan
    want = np.zeros((BATCH, N))
    for b, own in enumerate(parts(lengths)):
        part = wide(x)[own]
        if len(part):
            of_rows = {"mean": part.mean(0), "max": part.max(0), "cls": part[0], "last": part[-1]}
            want[b] = of_rows[kind]
    if POOLS.index(kind) % 2 == 0:
        want /= np.maximum(np.linalg.norm(want, axis=1, keepdims=True), 1e-12)
    starts = find(kernels, lengths)["starts"]
    check(kernels.run(f"{kind}_{t}", x=x, lengths=starts, y=empty((BATCH, N), t))["y"], want, t)


@each_type
@each_run
def test_positions_of_embeddings(kernels: Unit, lengths: list[int], t: DType) -> None:
    rng = np.random.default_rng(2)
    word, position, kind = (values(rng, (n, N), t) for n in (30, SEQ + 2, 2))
    ids, types = (rng.integers(0, n, ROWS).astype(np.int32) for n in (30, 2))
    found, total = find(kernels, lengths), sum(lengths)
    tables = {"word": word, "position": position, "kind": kind, "places": found["places"]}
    y = empty((ROWS, N), t)
    given = {"ids": ids, "types": types, "lengths": found["rows"], "y": y}
    got = kernels.run(f"embed_{t}", **given, **tables)["y"]
    at = np.array([i for n in lengths for i in range(n)], int) + 2
    want = wide(word)[ids[:total]] + wide(position)[at] + wide(kind)[types[:total]]
    check(got[:total], want, t)
    assert np.isnan(wide(got[total:])).all()


# Whole plans ------------------------------------------------------------------------------------

BOUND = {"f32": 2e-6, "f16": 1.5e-3, "bf16": 1.2e-2}
"""Of each number of an embedding of unit length."""


class Encoder:
    """A tiny BERT on an emulated device, ragged and as a rectangle."""

    def __init__(self, folder: Path, precision: str = "f32", **changes: object) -> None:
        self.template = bert(activation="gelu_tanh", first_position=2, **changes)
        self.params = random_params(stages(self.template, 1, 8).program)
        profile = {"precision": {"compute": precision}}
        self.card = TinyCard(folder, self.template, self.params, profile=profile)

    def check(self, lengths: list[int], seq: int, rows: int, bound: float) -> None:
        """A run of a ragged variant gives what float64 and a rectangle's run give."""
        batch = len(lengths)
        inputs = random_inputs(batch, seq, sum(lengths), lengths)
        (want,) = evaluate(stages(self.template, batch, seq).mir, self.params | inputs)
        ragged = self.card.load(batch, seq, rows=rows)
        got = ragged.run(pack_inputs(inputs, rows))["embedding"]
        np.testing.assert_allclose(got, want, atol=bound)
        padded = self.card.load(batch, seq).run(inputs)["embedding"]
        np.testing.assert_allclose(got, padded, atol=bound)


@pytest.mark.parametrize("precision", BOUND)
@pytest.mark.parametrize(("seq", "rows"), [(12, 40), (12, 20)], ids=["many rows", "few rows"])
def test_a_ragged_plan_gives_what_a_rectangle_gives(
    tmp_path: Path, precision: str, seq: int, rows: int
) -> None:
    model = Encoder(tmp_path, precision)
    for lengths in ([3, 0, 1, 5, 0, 7], [0, 0, 0, 0, 12, 8], [1] * 6, [0, 0, 0, 0, 0, 11]):
        model.check(lengths, seq, rows, BOUND[precision])


@pytest.mark.parametrize(
    ("pooling", "fusion"), [("max", {"skip": True}), ("cls", {"policy": "fusable"})]
)
def test_poolings_and_profiles_of_fusion_mean_the_same(
    tmp_path: Path, pooling: str, fusion: dict
) -> None:
    model = Encoder(tmp_path, pooling=pooling, normalize=False)
    model.card.profile = model.card.profile.override({"fusion": fusion})
    model.check([0, 0, 9, 0, 2, 0, 0, 0, 0, 0, 0, 1], 9, 12, 1e-4)  # as many rows as sequences


def test_a_run_stays_within_its_rows_whatever_lengths_say(tmp_path: Path) -> None:
    ragged = Encoder(tmp_path).card.load(6, 12, rows=40)
    x = pack_inputs(random_inputs(6, 12, lengths=[6] * 6), 40)
    x["lengths"] = np.array([12, -3, 9000, 12, 12, 12], np.int32)
    assert np.isfinite(ragged.run(x)["embedding"]).all()
