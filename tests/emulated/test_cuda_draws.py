"""Biases, penalties and reported logprobs of the sampling kernel, on the host."""

from __future__ import annotations

import numpy as np
import pytest

from rlx_ray.compiler.cuda.kernel_table import instance
from rlx_ray.dtype import DType
from tests.emulated.test_cuda_sample import KINDS, PLAIN, expected, numbers
from tests.support.cuda_emulator import ORDERS, Unit
from tests.support.cuda_oracle import TYPES, values, wide

SIZES = {"tiny": (7, 32), "small": (70, 32), "odd": (517, 64), "large": (3000, 128)}
ROWS = 4
INSTANCES = [
    instance("sample", f"{size}_{t}", t=t, rows=ROWS, n=n, block=block)
    for size, (n, block) in SIZES.items()
    for t in (TYPES if size == "odd" else [DType.F32])
]
KERNELS = [one.name for one in INSTANCES]
ENTRY = np.dtype([("token", "<i4"), ("bias", "<f4"), ("repetition", "<f4"), ("penalty", "<f4")])
GREEDY = {"temperature": 0.0}


def facts(name: str) -> tuple[int, int, DType]:
    size, _, t = name.partition("_")
    return (*SIZES[size], DType.parse(t))


def entries(rng: np.random.Generator, n: int, count: int) -> np.ndarray:
    """Adjustments of some tokens, of few bits: fused or not they come out alike, or nearly so."""
    made = np.zeros(count, ENTRY)
    made["token"] = rng.permutation(n)[:count]
    made["bias"] = rng.integers(-8, 9, count) / 4
    made["repetition"] = rng.choice([0.5, 1, 2, 4], count)
    made["penalty"] = rng.integers(-4, 5, count) / 2
    return made


def changed(x: np.ndarray, own: np.ndarray) -> np.ndarray:
    """A row with its changes, token by token."""
    scores = x.copy()
    for token, bias, repetition, penalty in own.tolist():
        v = float(wide(x)[token]) + bias
        scores[token] = (v / repetition if v > 0 else v * repetition) - penalty
    return scores


def run(
    kernels: Unit,
    name: str,
    x: np.ndarray,
    hows: list[dict],
    changes: list[np.ndarray],
    reported: list[int] | None = None,
    order: str = "shuffled",
) -> dict[str, np.ndarray]:
    """All that a launch leaves; what it does not write is -1, or NaN."""
    each = [PLAIN | how for how in hows]
    given = {key: np.array([how[key] for how in each], kind) for key, kind in KINDS.items()}
    starts = np.cumsum([0, *(len(own) for own in changes)]).astype(np.int32)
    flat = np.concatenate([*changes, np.zeros(1, ENTRY)])  # no buffer is empty
    likely = min(20, x.shape[1])
    return kernels.run(
        name,
        order=order,
        x=x,
        **given,
        change_starts=starts,
        changes=flat.view(np.int32).reshape(-1, 4),
        reported=np.array(reported or [0] * ROWS, np.int32),
        y=np.full(ROWS, -1, np.int32),
        logprob=np.full(ROWS, np.nan, np.float32),
        likely=np.full((ROWS, likely), -1, np.int32),
        likely_logprobs=np.full((ROWS, likely), np.nan, np.float32),
    )


def unchanged() -> list[np.ndarray]:
    return [np.zeros(0, ENTRY) for _ in range(ROWS)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "way", [GREEDY, {}, {"top_k": 5, "temperature": 2.0}, {"top_p": 0.7}, {"min_p": 0.1}], ids=str
)
def test_tokens_are_drawn_by_adjusted_scores_and_logits_stay(
    kernels: Unit, way: dict, name: str, order: str
) -> None:
    n, block, t = facts(name)
    rng = np.random.default_rng(n)
    x = values(rng, (ROWS, n), t)
    x[2, : n // 3] = -np.inf
    x[2, n // 2] = np.nan
    changes = [entries(rng, n, count) for count in (0, 1, n, n // 2)]
    changes[1]["token"], changes[1]["penalty"] = numbers(x[1]).argmax(), 9
    hows = [PLAIN | way | {"seed": 2**63 + row, "step": 5 * row} for row in range(ROWS)]
    got = run(kernels, name, x, hows, changes, order=order)
    assert got["y"].tolist() == [
        expected(changed(x[row], changes[row]), hows[row], block, t.size) for row in range(ROWS)
    ]
    assert got["x"].tobytes() == x.tobytes()
    assert np.isnan(got["logprob"]).all()
    assert (got["likely"] == -1).all()


def logs_of(x: np.ndarray) -> np.ndarray:
    scores = wide(x).astype(np.float64)
    e = scores - scores.max()
    return e - np.log(np.exp(e).sum())


def check_report(got: dict, row: int, x: np.ndarray, count: int) -> None:
    logs = logs_of(x)
    kept = min(count, len(x))
    best = np.argsort(-logs, kind="stable")[:kept]
    np.testing.assert_allclose(got["logprob"][row], logs[got["y"][row]], rtol=1e-6, atol=2e-6)
    assert got["likely"][row].tolist() == [*best, *[-1] * (len(got["likely"][row]) - kept)]
    logprobs = got["likely_logprobs"][row]
    np.testing.assert_allclose(logprobs[:kept], logs[best], rtol=1e-6, atol=2e-6)
    assert np.isnan(logprobs[kept:]).all()


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("counts", [(0, 1, 2, 3), (20, 5, 7, 19), (4, 20, 20, 20)], ids=str)
def test_reported_logprobs_are_those_of_the_logits(
    kernels: Unit, counts: tuple[int, ...], name: str
) -> None:
    n, _, t = facts(name)
    rng = np.random.default_rng(n + counts[0])
    x = values(rng, (ROWS, n), t)
    x[0, 1::2] = -np.inf
    x[1] = np.round(wide(x[1])).astype(x.dtype)  # many are equal
    x[2], x[2, ::2] = 0.0, -0.0
    x[3] = x[3, 0]
    changes = [entries(rng, n, count) for count in (3, 0, n, 1)]
    hows = [{"seed": 3, "step": row, "top_p": 0.5 + row % 2} for row in range(ROWS)]
    got = run(kernels, name, x, hows, changes, [1 + count for count in counts])
    for row in range(ROWS):
        check_report(got, row, x[row], counts[row])
    assert got["x"].tobytes() == x.tobytes()


@pytest.mark.parametrize("order", ORDERS)
def test_every_count_of_the_likeliest_and_no_report_beside_them(kernels: Unit, order: str) -> None:
    rng = np.random.default_rng(3)
    x = values(rng, (ROWS, 517), DType.F32) * np.float32(9)
    x[:, 100:110] = x[:, 100:101]
    for first in range(0, 21, 3):
        counts = [first, first + 1, first + 2, -1]
        got = run(
            kernels, "odd_f32", x, [GREEDY] * ROWS, unchanged(), [1 + c for c in counts], order
        )
        for row in range(3):
            check_report(got, row, x[row], counts[row])
        assert np.isnan(got["logprob"][3])
        assert (got["likely"][3] == -1).all()


def test_what_is_asked_of_a_row_changes_no_other(kernels: Unit) -> None:
    rng = np.random.default_rng(5)
    x = np.tile(values(rng, (1, 517), DType.F16), (ROWS, 1))
    how, own = {"seed": 8, "step": 2, "top_p": 0.9}, entries(rng, 517, 200)
    alone = run(kernels, "odd_f16", x, [how] * ROWS, [own, *unchanged()[1:]], [4, 0, 0, 0])
    others = [entries(rng, 517, 517), own, entries(rng, 517, 1), own]
    beside = run(kernels, "odd_f16", x, [GREEDY, how, GREEDY, how], others, [0, 4, 21, 1])
    for row in (1, 3):
        assert beside["y"][row] == alone["y"][0]
        assert beside["logprob"][row].tobytes() == alone["logprob"][0].tobytes()
    assert beside["likely"][1].tolist() == alone["likely"][0].tolist()
    assert beside["likely_logprobs"][1].tobytes() == alone["likely_logprobs"][0].tobytes()


def test_scores_of_minus_infinity_stay_so_and_are_reported(
    kernels: Unit,
) -> None:
    x = np.full((ROWS, 70), -np.inf, np.float32)
    x[:, 7] = 2
    own = np.zeros(2, ENTRY)
    own["token"], own["bias"], own["repetition"] = [3, 7], [100, -100], [0.5, 2]
    got = run(kernels, "small_f32", x, [GREEDY] * ROWS, [own] * ROWS, [3] * ROWS)
    assert got["y"].tolist() == [7] * ROWS
    assert got["logprob"].tolist() == [0] * ROWS
    assert got["likely"][:, :2].tolist() == [[7, 0]] * ROWS
    assert got["likely_logprobs"][:, :2].tolist() == [[0, -np.inf]] * ROWS


def test_rows_of_length_0_are_skipped_whatever_is_asked(kernels: Unit) -> None:
    """A row of the batch that no stream has: its logits may be anything."""
    x = values(np.random.default_rng(1), (ROWS, 70), DType.F32)
    own = np.zeros(1, ENTRY)
    own["token"], own["repetition"], own["penalty"] = x[1].argmax(), 1, 50
    given = {key: np.zeros(ROWS, kind) for key, kind in KINDS.items()}
    got = kernels.run(
        "small_f32",
        x=x,
        **given,
        change_starts=np.array([0, 0, 1, 1, 1], np.int32),
        changes=own.view(np.int32).reshape(1, 4),
        reported=np.full(ROWS, 2, np.int32),
        lengths=np.array([0, 1, 0, 0], np.int32),
        y=np.full(ROWS, -1, np.int32),
        logprob=np.full(ROWS, np.nan, np.float32),
        likely=np.full((ROWS, 20), -1, np.int32),
        likely_logprobs=np.full((ROWS, 20), np.nan, np.float32),
    )
    second = int(np.argsort(-x[1])[1])
    assert got["y"].tolist() == [-1, second, -1, -1]
    assert np.isnan(got["logprob"]).tolist() == [True, False, True, True]
    assert got["likely"][:, 0].tolist() == [-1, x[1].argmax(), -1, -1]
