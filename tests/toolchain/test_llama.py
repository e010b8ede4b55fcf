"""Decoders against float64: every way of batching, chunking and sharing, and the real SmolLM2."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlx_ray.compiler.cpu.c import emit
from rlx_ray.compiler.cpu.precision import lower_precision
from rlx_ray.compiler.cpu.regions import Tiling
from rlx_ray.compiler.cpu.schedule import schedule
from rlx_ray.component import ModelVariant
from rlx_ray.config.load import load
from rlx_ray.engine.sampling import Sampling
from rlx_ray.inference.text_model import TextModel
from rlx_ray.job.compile_miss import load as open_local
from tests.support.needs import needs_smollm2
from tests.support.programs import COMMON, NATIVE, TINY_LLAMA, Bench, llama, one_common, stages
from tests.support.tiny_llama import KINDS, oracle_logits, tiny_params

ROOT = Path(__file__).parent.parent.parent


class Model:
    """A tiny model with random weights, its variants, its cache, and its oracle."""

    def __init__(self, bench: Bench, changes: dict, config=NATIVE, half: bool = False) -> None:
        self.bench, self.config = bench, {**TINY_LLAMA, **changes}
        self.dispatch, self.half = config, half
        self.hir = llama(**changes)
        lir = self.stages(1, 1, 0).program
        self.params = tiny_params(lir, self.config)
        self.cache = np.zeros((40, lir.page), np.uint8)

    def stages(self, batch: int, seq: int, past: int, tiling: Tiling | None = None):
        target = self.bench.target
        made = stages(self.hir, batch, seq, self.dispatch, tiling=tiling, past=past, target=target)
        if not self.half:
            return made
        mir = lower_precision(made.mir, {}, "f32", target)  # a float16 cache, and nothing else
        return replace(made, mir=mir, program=schedule(mir, target, tiling, self.hir.outputs))

    def step(
        self,
        sequences: list[tuple[list[int], int, list[int]]],
        seq: int,
        past: int,
        batch: int = 0,
        threads: int = 2,
        tiling: Tiling | None = None,
    ) -> np.ndarray:
        """Logits after (new tokens, past, pages) of each sequence."""
        batch = batch or len(sequences)
        made = self.stages(batch, seq, past, tiling)
        inputs = {
            t.name: np.zeros(t.shape, np.int32) - (t.name == "pages") for t in made.program.inputs
        }
        for row, (tokens, start, pages) in enumerate(sequences):
            inputs["input_ids"][row, : len(tokens)] = tokens
            inputs["lengths"][row], inputs["past"][row] = len(tokens), start
            own = pages[: inputs["pages"].shape[1]]
            inputs["pages"][row, : len(own)] = own
        program = self.bench.load(made.program, self.params, threads)
        return program.run(inputs, self.cache)["logits"][: len(sequences)]

    def want(self, ids: list[int]) -> np.ndarray:
        """Logits of every position by the oracle."""
        return oracle_logits(self.params, self.config, ids)


def text(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 50, length).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_and_what_follows_agree_with_float64(bench: Bench, kind: str) -> None:
    model = Model(bench, KINDS[kind])
    ids = text(45)
    want = model.want(ids)
    pages = [7, 3]
    got = [model.step([(ids[:37], 0, pages)], 40, 0)[0]]
    got += [model.step([([ids[i]], i, pages)], 1, 63)[0] for i in range(37, 45)]
    np.testing.assert_allclose(got, want[36:], atol=2e-5)


def test_chunks_batches_threads_and_tilings_give_the_same_bits(bench: Bench) -> None:
    model = Model(bench, {"window": 50})
    texts = [text(70, 1), text(5, 2), text(33, 3)]
    tables = [[0, 1, 2], [10, 11, 12], [20, 21, 22]]
    alone = [model.step([(t, 0, p)], 70, 0)[0] for t, p in zip(texts, tables, strict=True)]
    for t, one in zip(texts, alone, strict=True):
        np.testing.assert_allclose(one, model.want(t)[-1], atol=2e-5)

    def same(tiling: Tiling | None, threads: int) -> None:
        model.cache[:] = 0
        together = model.step(
            [(t, 0, p) for t, p in zip(texts, tables, strict=True)], 70, 0, 4, threads, tiling
        )
        assert together.tobytes() == np.stack(alone).tobytes()

    same(None, 2)
    same(Tiling("columns", 0), 3)
    same(Tiling("rows", 5), 2)
    same(Tiling("sequences", 2), 2)
    model.cache[:] = 0
    for start, stop in ((0, 20), (20, 21), (21, 64), (64, 70)):
        got = model.step([(texts[0][start:stop], start, tables[0])], 48, 32)
    assert got[0].tobytes() == alone[0].tobytes()


def test_shared_pages_serve_two_sequences(bench: Bench) -> None:
    model = Model(bench, {})
    ids = text(40)
    first = model.step([(ids, 0, [5, 6])], 40, 0)
    again = model.step([(ids[32:], 32, [5, 9])], 8, 32)
    assert first.tobytes() == again.tobytes()


def test_rms_norm_common_is_rms_norm_native(bench: Bench) -> None:
    ids = text(9)
    model = Model(bench, {}, one_common("RmsNorm"))
    np.testing.assert_allclose(model.step([(ids, 0, [0])], 9, 0)[0], model.want(ids)[-1], atol=2e-5)


CACHED = one_common("Rope", "Attention")


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "as many heads"])
def test_common_positions_and_attention_agree_with_float64(bench: Bench, kind: str) -> None:
    model = Model(bench, KINDS[kind], CACHED)
    model.cache[:] = 0xFF  # NaN
    long, short = text(45, 1), text(30, 2)
    want, other = model.want(long), model.want(short)
    pages, others = [7, 3], [5]
    steps = [
        ([(long[:24], 0, pages), (short[:3], 0, others)], [want[23], other[2]]),
        ([(long[24:37], 24, pages), (short[3:27], 3, others)], [want[36], other[26]]),
        ([(short[27:], 27, others), (long[37:44], 37, pages)], [other[29], want[43]]),
    ]
    for sequences, expected in steps:
        got = model.step(sequences, 24, 40)
        np.testing.assert_allclose(got, expected, atol=2e-5)
    last = model.step([(long[44:], 44, pages)], 1, 63)
    np.testing.assert_allclose(last, want[44:], atol=2e-5)


@pytest.mark.parametrize("half", [False, True], ids=["f32", "f16"])
def test_native_and_common_programs_share_a_cache(bench: Bench, half: bool) -> None:
    changes = {"qk_norm": True, "layers": 1}
    native, common = (Model(bench, changes, way, half) for way in (NATIVE, CACHED))
    common.cache = native.cache
    ids = text(40)
    want, found = native.want(ids)[37:], []
    for first, then in ((native, native), (native, common), (common, native)):
        native.cache[:] = 0xFF
        got = [first.step([(ids[:38], 0, [1, 2])], 38, 0)[0]]
        got += [then.step([([ids[i]], i, [1, 2])], 1, 63)[0] for i in (38, 39)]
        np.testing.assert_allclose(got, want, atol=2e-2 if half else 2e-5)
        found.append(np.stack(got))
    np.testing.assert_allclose(found[1:], [found[0]] * 2, atol=1e-3 if half else 2e-5)
    assert (abs(found[0] - want).max() > 1e-3) == half


MIXED = {kind: one_common(kind) for kind in ("Rope", "Attention", "MatMul", "Pool")}


@pytest.mark.parametrize("config", [*MIXED.values(), COMMON], ids=[*MIXED, "all"])
def test_one_kind_common_and_the_rest_native(bench: Bench, config) -> None:
    model = Model(bench, {"qkv_bias": True, "window": 9}, config)
    model.cache[:] = 0xFF
    one, other = text(20, 3), text(12, 4)
    want = model.want(one)
    got = model.step([(one[:11], 0, [2]), (other, 0, [9])], 12, 20)
    np.testing.assert_allclose(got, [want[10], model.want(other)[11]], atol=2e-5)
    got = model.step([(one[11:], 11, [2])], 12, 20, batch=2)
    np.testing.assert_allclose(got, want[19:], atol=2e-5)


# SmolLM2 ----------------------------------------------------------------------------------------

GOLDEN = json.loads((ROOT / "tests" / "golden" / "smollm2.json").read_text())["cases"]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextModel]:
    needs_smollm2()
    folder = tmp_path_factory.mktemp("smollm2")
    found = load(ROOT / "configs" / "smollm2.yaml", store_override=f"file://{folder}/store")
    prefill = replace(found.models[0].matrix[0], batch=(1,), seq=(32,))
    decode = replace(found.models[0].matrix[-1], batch=(1, 4), past_seq=(255,))
    model = replace(found.models[0], matrix=(prefill, decode), quant=None)
    store = replace(found.store, cache_dir=str(folder / "cache"))
    opened = open_local(replace(found, models=(model,), store=store), "smollm2")
    made = TextModel(opened)
    yield made
    made.close()
    opened.close()


def test_smollm2_generates_the_reference(smollm2: TextModel) -> None:
    for case in GOLDEN:
        assert smollm2.model.tokenizer.encode(case["prompt"]) == case["input_ids"]
        assert generated(smollm2, [case]) == [case["greedy_ids"]]


def test_smollm2_in_a_batch_and_after_prefix_reuse(smollm2: TextModel) -> None:
    assert generated(smollm2, GOLDEN) == [c["greedy_ids"] for c in GOLDEN]
    padded = [0] * 64
    long = [{"input_ids": padded + c["input_ids"]} for c in GOLDEN[:2]]
    first, again = generated(smollm2, long), generated(smollm2, long)
    assert first == again


def generated(model: TextModel, cases: list[dict]) -> list[list[int]]:
    from rlx_ray.engine.generation import Request

    greedy = Sampling(temperature=0)
    streams = [model.engine.submit(Request(tuple(c["input_ids"]), 32, greedy)) for c in cases]
    return [[piece.chosen.token for piece in s if piece.chosen] for s in streams]


def test_a_cancelled_stream_ends_and_the_others_go_on(smollm2: TextModel) -> None:
    from rlx_ray.engine.generation import Request

    ids = tuple(GOLDEN[0]["input_ids"])
    one = smollm2.engine.submit(Request(ids, 200, Sampling(temperature=0)))
    other = smollm2.engine.submit(Request(ids, 32, Sampling(temperature=0)))
    next(one)
    smollm2.engine.cancel(one)
    rest = list(one)
    assert rest[-1].finish == "cancelled"
    assert len(rest) < 200
    assert [p.chosen.token for p in other if p.chosen] == GOLDEN[0]["greedy_ids"]


def test_a_chat_ends_at_its_stop_token(smollm2: TextModel) -> None:
    prompt = smollm2.chat_prompt([{"role": "user", "content": "What is 2+2?"}])
    done = smollm2.generate(prompt, 40)
    assert done.finish == "stop"
    assert "4" in done.text
    assert "<|im_end|>" not in done.text
    assert done.variants[0].phase == ModelVariant.prefill(1, 32).phase


def test_a_unit_does_not_grow_with_depth(bench: Bench) -> None:
    def functions(layers: int) -> list[str]:
        lir = Model(bench, {"layers": layers}).stages(2, 1, 63).program
        text = emit(lir, bench.target)
        return [line for line in text.splitlines() if line.startswith(("static void", "RLX_"))]

    assert len(functions(9)) == len(functions(5))
