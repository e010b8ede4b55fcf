"""Compiled programs against float64: odd sizes, tails, padding, threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from rlx_ray.compiler.cpu import layout
from rlx_ray.compiler.cpu.regions import Tiling
from rlx_ray.errors import InputError
from tests.support.mir_oracle import evaluate
from tests.support.programs import (
    COMMON,
    FORCED,
    NATIVE,
    Bench,
    bert,
    one_common,
    pack_inputs,
    random_inputs,
    random_params,
    stages,
)

SLOW = pytest.mark.slow
SIZES = [
    {"hidden": 24, "heads": 3, "intermediate": 40},
    {"hidden": 6, "heads": 2, "intermediate": 5},
    {"hidden": 33, "heads": 3, "intermediate": 17},
    {"hidden": 64, "heads": 1, "intermediate": 100},
    {"hidden": 40, "heads": 1, "intermediate": 400},
]


def run_both(bench: Bench, hir, batch: int, seq: int, config, lengths=None, threads: int = 2):
    made = stages(hir, batch, seq, config)
    params = random_params(made.program)
    inputs = random_inputs(batch, seq, lengths=lengths)
    (want,) = evaluate(made.lowered, params | inputs)
    got = bench.load(made.program, params, threads).run(inputs)["embedding"]
    return got, want


@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: f"h{s['hidden']}")
@pytest.mark.parametrize("config", [NATIVE, COMMON], ids=["native", "common"])
@pytest.mark.parametrize(
    ("batch", "seq"), [(3, 5), pytest.param(1, 7, marks=SLOW), pytest.param(2, 32, marks=SLOW)]
)
def test_a_program_agrees_with_float64(bench: Bench, sizes, config, batch: int, seq: int) -> None:
    got, want = run_both(bench, bert(**sizes), batch, seq, config)
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize("kind", ["MatMul", "LayerNorm", "Attention", "Softmax", "Gather", "Pool"])
def test_one_kernel_common_and_the_rest_native(bench: Bench, kind: str) -> None:
    got, want = run_both(bench, bert(), 2, 9, one_common(kind))
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize(
    ("pooling", "activation"), [("mean", "gelu_tanh"), ("max", "relu"), ("cls", "gelu")]
)
@pytest.mark.parametrize("config", [FORCED, COMMON], ids=["native", "common"])
def test_poolings_and_activations(bench: Bench, pooling: str, activation: str, config) -> None:
    hir = bert(pooling=pooling, activation=activation, normalize=False, layers=1)
    got, want = run_both(bench, hir, 2, 6, config, lengths=[6, 2])
    np.testing.assert_allclose(got, want, atol=5e-6)


@pytest.mark.parametrize(("batch", "seq"), [(1, 16), (1, 32), (2, 12), (6, 4)])
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_any_number_of_threads_gives_the_same_bits(bench: Bench, batch, seq, threads) -> None:
    made = stages(bert(), batch, seq)
    params, inputs = random_params(made.program), random_inputs(batch, seq)
    alone = bench.load(made.program, params, 1).run(inputs)["embedding"]
    shared = bench.load(made.program, params, threads).run(inputs)["embedding"]
    assert alone.tobytes() == shared.tobytes()


WAYS = [
    *(Tiling("sequences", n) for n in (1, 2, 4)),
    *(Tiling("rows", n) for n in (1, 3, 8)),
    Tiling("columns", 0),
]


@pytest.mark.parametrize("lengths", [[12, 3, 1, 7], [12, 12, 12, 12], [0, 1, 0, 0], [0, 0, 0, 0]])
@pytest.mark.parametrize("sizes", SIZES[:2], ids=lambda s: f"h{s['hidden']}")
def test_every_way_to_cut_gives_the_same_bits(bench: Bench, sizes, lengths: list[int]) -> None:
    params = random_params(stages(bert(**sizes), 4, 12).program)
    inputs = random_inputs(4, 12)
    inputs["lengths"][:] = lengths
    (want,) = evaluate(stages(bert(**sizes), 4, 12).lowered, params | inputs)
    found = set()
    for way in WAYS:
        made = stages(bert(**sizes), 4, 12, tiling=way)
        got = bench.load(made.program, params).run(inputs)["embedding"]
        np.testing.assert_allclose(got, want, atol=2e-6)
        found.add(got.tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("lengths", [[12, 3, 1, 7, 0, 2], [9, 9, 9, 1, 1, 1], [0, 0, 4, 0, 0, 0]])
@pytest.mark.parametrize("rows", [30, 40])
def test_a_ragged_variant_gives_the_bits_of_a_padded_one(bench: Bench, lengths, rows: int) -> None:
    padded, ragged = stages(bert(), 6, 12), stages(bert(), 6, 12, rows=rows)
    params, inputs = random_params(padded.program), random_inputs(6, 12)
    inputs["lengths"][:] = lengths
    want = bench.load(padded.program, params).run(inputs)["embedding"]
    assert [t.shape for t in ragged.program.inputs] == [(rows,), (rows,), (6,)]
    for threads in (1, 2, 3):
        got = bench.load(ragged.program, params, threads).run(pack_inputs(inputs, rows))[
            "embedding"
        ]
        assert got.tobytes() == want.tobytes()


def test_lengths_past_the_bounds_are_cut_to_them(bench: Bench) -> None:
    made = stages(bert(), 6, 12, rows=30)
    loaded = bench.load(made.program, random_params(made.program))
    inputs = pack_inputs(random_inputs(6, 12, lengths=[5] * 6), 30)
    inputs["lengths"][:] = [99, -4, 12, 12, 2**31 - 1, -(2**31)]
    assert np.isfinite(loaded.run(inputs)["embedding"]).all()


def test_a_chunked_feed_forward_gives_the_bits_of_a_whole_one(bench: Bench, monkeypatch) -> None:
    hir = bert(intermediate=512, layers=1)
    whole = stages(hir, 4, 16, tiling=Tiling("sequences", 2))
    monkeypatch.setattr(layout, "CHUNK_BYTES", 1 << 13)
    parts = stages(hir, 4, 16, tiling=Tiling("sequences", 2))
    assert len(parts.program.regions[0].calls) > len(whole.program.regions[0].calls)
    params, inputs = random_params(whole.program), random_inputs(4, 16)
    one = bench.load(whole.program, params).run(inputs)["embedding"]
    assert bench.load(parts.program, params).run(inputs)["embedding"].tobytes() == one.tobytes()


def test_padding_never_leaks(bench: Bench) -> None:
    made = stages(bert(), 3, 16)
    params = random_params(made.program)
    loaded = bench.load(made.program, params)
    inputs = random_inputs(3, 16, lengths=[5, 16, 0])
    first = loaded.run(inputs)["embedding"]
    noisy = {k: v.copy() for k, v in inputs.items()}
    noisy["input_ids"][0, 5:] = 49
    noisy["token_type_ids"][0, 5:] = 1
    noisy["input_ids"][2] = 7
    second = loaded.run(noisy)["embedding"]
    assert first[:2].tobytes() == second[:2].tobytes()
    assert not second[2].any()


def test_a_row_does_not_depend_on_its_neighbours(bench: Bench) -> None:
    made = stages(bert(), 4, 8)
    loaded = bench.load(made.program, random_params(made.program))
    inputs = random_inputs(4, 8, lengths=[8, 3, 5, 1])
    whole = loaded.run(inputs)["embedding"]
    for row in range(4):
        alone = {k: np.zeros_like(v) for k, v in inputs.items()}
        for name in alone:
            alone[name][3 - row] = inputs[name][row]
        assert loaded.run(alone)["embedding"][3 - row].tobytes() == whole[row].tobytes()


def test_many_callers_at_once_get_their_own_answers(bench: Bench) -> None:
    loaded, wanted, inputs = [], [], []
    for batch, seq in [(1, 8), (2, 16), (4, 4)]:
        made = stages(bert(), batch, seq)
        loaded.append(bench.load(made.program, random_params(made.program)))
        inputs.append(random_inputs(batch, seq))
        wanted.append(loaded[-1].run(inputs[-1])["embedding"].tobytes())
    wrong = []

    def caller(start: int) -> None:
        for i in range(60):
            k = (start + i) % 3
            if loaded[k].run(inputs[k])["embedding"].tobytes() != wanted[k]:
                wrong.append(k)

    threads = [threading.Thread(target=caller, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert bench.arenas.nbytes <= 6 * max(e.arena_bytes for e in loaded) + (1 << 20)


def test_wrong_inputs_are_named(bench: Bench) -> None:
    made = stages(bert(), 2, 4)
    loaded = bench.load(made.program, random_params(made.program))
    good = random_inputs(2, 4)
    with pytest.raises(InputError, match="'lengths' is missing"):
        loaded.run({k: v for k, v in good.items() if k != "lengths"})
    with pytest.raises(InputError, match=r"int64\[2, 4\], the variant takes int32\[2, 4\]"):
        loaded.run(good | {"input_ids": good["input_ids"].astype(np.int64)})
    with pytest.raises(InputError, match="'mask' is not known"):
        loaded.run(good | {"mask": good["lengths"]})


def test_token_ids_outside_the_table_do_not_read_outside_it(bench: Bench) -> None:
    made = stages(bert(), 1, 4)
    loaded = bench.load(made.program, random_params(made.program))
    inputs = random_inputs(1, 4)
    inputs["input_ids"][:] = 2**31 - 1
    assert np.isfinite(loaded.run(inputs)["embedding"]).all()
