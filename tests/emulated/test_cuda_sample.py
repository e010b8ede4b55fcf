"""Sampling as a CUDA kernel, on the host."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from rlx_ray.compiler.cpu.zig import installed_version
from rlx_ray.compiler.cuda.kernel_table import instance
from rlx_ray.dtype import DType
from tests.support.cuda_emulator import ORDERS, Buffer, Unit, compile_host, start
from tests.support.cuda_oracle import IDS, TYPES, values, wide
from tests.support.needs import needs

SIZES = {"small": (70, 32), "large": (3000, 128), "odd": (517, 64)}
ROWS = 4
INSTANCES = [
    instance("sample", f"{size}_{t}", t=t, rows=ROWS, n=n, block=block)
    for size, (n, block) in SIZES.items()
    for t in TYPES
]
each_type = pytest.mark.parametrize("t", TYPES, ids=IDS)
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0, "step": 0}
KINDS = {
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "seed": np.uint64,
    "step": np.int32,
}


def philox(key: int, *counter: int) -> int:
    """The first word of Philox4x32-10, in Python's own numbers."""
    k, c = [key & 0xFFFFFFFF, key >> 32], list(counter)
    for _ in range(10):
        one, two = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [two >> 32 ^ c[1] ^ k[0], two & 0xFFFFFFFF, one >> 32 ^ c[3] ^ k[1], one & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c[0]


def numbers(x: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(wide(x)), -np.inf, wide(x))


def distribution(x: np.ndarray, how: dict) -> np.ndarray:
    """The probability of each token, by sorting."""
    scores = numbers(x)
    if how["temperature"] == 0:
        return np.eye(len(x))[scores.argmax()]
    order = np.argsort(-scores, kind="stable")[: how["top_k"] or None]
    w = np.exp((scores[order] - scores[order[0]]) / how["temperature"])
    w[w < how["min_p"]] = 0
    count = np.searchsorted(w.cumsum() / w.sum(), how["top_p"]) + 1 if how["top_p"] < 1 else len(w)
    w[count:] = 0
    p = np.zeros(len(x))
    p[order] = w / w.sum()
    return p


def expected(x: np.ndarray, how: dict, block: int, size: int) -> int:
    """The token that the kernel must draw: rejection over threads' tokens, in float64."""
    if how["temperature"] == 0:
        return int(numbers(x).argmax())
    scores = numbers(x)
    kept = distribution(x, how | {"top_p": 1.0})
    ranks = np.empty(len(x), int)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(len(x))
    vector = next(v for v in (16 // size, 4, 2, 1) if len(x) % v == 0)
    threads = np.argsort(np.arange(len(x)) // vector % block, kind="stable")
    limit = how["top_p"] if how["top_p"] < 1 else np.inf
    for attempt in range(1000):
        word = philox(how["seed"], how["step"], attempt, 0, 0)
        running = kept[threads].cumsum()
        target = ((word >> 8) + 0.5) * 2.0**-24 * running[-1]
        token = threads[np.searchsorted(running, target, side="right")]
        before = np.where(ranks < ranks[token], kept, 0)
        if before.sum() < limit:
            return int(token)
        kept = before
    raise AssertionError("it never ends")


def draw(kernels: Unit, name: str, x: np.ndarray, *hows: dict, order: str = "shuffled", **more):
    """The tokens of rows, each drawn in its own way."""
    each = [PLAIN | how for how in hows]
    given = {key: np.array([how[key] for how in each], kind) for key, kind in KINDS.items()}
    y = np.full(len(x), -1, np.int32)
    return kernels.run(name, order=order, x=x, **given, **more, y=y)["y"].tolist()


WAYS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.3},
    {"top_p": 0.9},
    {"top_p": 0.02},
    {"top_k": 1},
    {"top_k": 7, "temperature": 2.5},
    {"top_k": 40, "top_p": 0.5},
    {"min_p": 0.2},
    {"top_k": 60, "top_p": 0.8, "min_p": 0.05, "temperature": 1.3},
    {"top_k": 10**6, "top_p": 0.99},
]


@each_type
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_token_is_the_one_that_its_random_numbers_mean(kernels: Unit, way, size, t) -> None:
    n, block = SIZES[size]
    rng = np.random.default_rng(n)
    x = values(rng, (ROWS, n), t) * x_scale(t)
    x[1, : n // 2] = -np.inf
    x[2, 3] = np.nan
    hows = [PLAIN | way | {"seed": 2**63 + row, "step": 5 * row} for row in range(ROWS)]
    got = draw(kernels, f"{size}_{t}", x, *hows)
    assert got == [expected(x[row], hows[row], block, t.size) for row in range(ROWS)]
    assert all(distribution(x[row], hows[row])[got[row]] > 0 for row in range(ROWS))


def x_scale(t: DType) -> np.ndarray:
    return np.float32(2.5).astype(values(np.random.default_rng(0), (1,), t).dtype)


@pytest.mark.parametrize("way", [{}, {"top_k": 5, "top_p": 0.9}, {"top_p": 0.6}], ids=str)
def test_tokens_come_as_often_as_they_should(kernels: Unit, way: dict) -> None:
    rng = np.random.default_rng(7)
    x = np.tile(values(rng, (1, 70), DType.F32), (ROWS, 1))
    found: Counter[int] = Counter()
    count = 500
    for step in range(count):
        hows = [PLAIN | way | {"seed": row, "step": step} for row in range(ROWS)]
        found.update(draw(kernels, "small_f32", x, *hows))
    p = distribution(x[0], PLAIN | way)
    share = np.array([found[i] for i in range(70)]) / (count * ROWS)
    spread = np.sqrt(p * (1 - p) / (count * ROWS))
    assert (np.abs(share - p) <= 4.5 * spread).all()


@each_type
def test_equal_scores_are_told_apart_by_their_index(kernels: Unit, t: DType) -> None:
    x = np.zeros((ROWS, 3000), np.float32).astype(values(np.random.default_rng(0), (1,), t).dtype)
    x[:, 2000] = 1
    found = set()
    for seed in range(12):
        hows = [{"top_k": 3, "temperature": 5.0, "seed": seed, "step": row} for row in range(ROWS)]
        found.update(draw(kernels, f"large_{t}", x, *hows))
    assert found == {2000, 0, 1}
    assert set(draw(kernels, f"large_{t}", x, *[{"top_p": 1e-4}] * ROWS)) == {2000}


@each_type
def test_a_token_depends_on_seed_and_step_alone(kernels: Unit, t: DType) -> None:
    x = np.tile(values(np.random.default_rng(1), (1, 517), t), (ROWS, 1))
    how = {"top_p": 0.95, "top_k": 300, "seed": 11, "step": 3}
    runs = [draw(kernels, f"odd_{t}", x, *[how] * ROWS, order=order) for order in ORDERS]
    assert len({token for run in runs for token in run}) == 1
    others = [draw(kernels, f"odd_{t}", x, *[how | {"step": s}] * ROWS)[0] for s in range(20)]
    assert len(set(others)) > 5


def test_rows_of_length_0_are_skipped(kernels: Unit) -> None:
    x = values(np.random.default_rng(1), (ROWS, 70), DType.F16)
    lengths = np.array([1, 0, 0, 1], np.int32)
    got = draw(kernels, "small_f16", x, *[{"temperature": 0.0}] * ROWS, lengths=lengths)
    assert got == [x[0].argmax(), -1, -1, x[3].argmax()]


def test_a_row_without_a_number_gives_its_first_token(kernels: Unit) -> None:
    x = np.full((ROWS, 70), -np.inf, np.float32)
    x[1] = np.nan
    assert draw(kernels, "small_f32", x, {}, {}, {"top_k": 3}, {"top_p": 0.5}) == [0, 0, 0, 0]


@each_type
def test_infinite_scores_and_temperature_zero_take_the_best(kernels: Unit, t: DType) -> None:
    x = values(np.random.default_rng(7), (ROWS, 70), t)
    x[0, 5] = np.inf
    x[1, 9] = x[1, 3] = np.inf
    hows = [{}, {"top_p": 0.5}, {"temperature": np.nan}, {"temperature": -1.0}]
    got = draw(kernels, f"small_{t}", x, *hows)
    assert got == [5, 3, *(int(wide(row).argmax()) for row in x[2:])]


PHILOX = """
#include "cuda_shim.h"
#include "sample.cuh"
RLX_KERNEL words(const uint2 *key, const uint4 *counter, unsigned *y) {
    if (threadIdx.x < 3) y[threadIdx.x] = philox(key[threadIdx.x], counter[threadIdx.x]);
}
RLX_EXPORT(words)
"""


def test_philox_gives_its_authors_numbers(tmp_path) -> None:
    """The known answers of Random123's kat_vectors."""
    needs(installed_version(), "the C compiler is missing: pip install 'rlx_ray[build]'")
    ones = 0xFFFFFFFF
    key = np.array([[0, 0], [ones, ones], [0xA4093822, 0x299F31D0]], np.uint32)
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    counter = np.array([[0] * 4, [ones] * 4, pi], np.uint32)
    y = Buffer(np.zeros(3, np.uint32))
    library = compile_host(tmp_path, PHILOX)
    start(library, "words", (1, 1, 1, 32, 1, 1), 0, [Buffer(key), Buffer(counter), y])
    assert [hex(v) for v in y.array] == ["0x6627e8d5", "0x408f276d", "0xd16cfe09"]
    joined = [int(k[0]) | int(k[1]) << 32 for k in key]
    assert [philox(k, *map(int, c)) for k, c in zip(joined, counter, strict=True)] == list(y.array)
