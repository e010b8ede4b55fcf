"""Whole launch plans on the emulated device: small models of every kind against float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlx_ray.compiler.cpu.zig import installed_version
from rlx_ray.component import KernelDispatchConfig, QuantScheme
from rlx_ray.runtime.executable import NUMPY
from rlx_ray.weights.blocks import quantise
from tests.support.cuda_plans import TinyCard
from tests.support.mir_oracle import evaluate
from tests.support.needs import needs
from tests.support.programs import (
    COMMON,
    NATIVE,
    TINY_LLAMA,
    bert,
    llama,
    one_common,
    random_inputs,
    random_params,
    stages,
)
from tests.support.tiny_llama import KINDS, oracle_logits, tiny_params

BLOCKS = {"hidden": 64, "heads": 4, "kv_heads": 2, "dim": 16, "intermediate": 128}
"""Sizes that blocks of 32 weights divide, and by which gate and up lie side by side."""


@pytest.fixture(autouse=True, scope="module")
def _compiler() -> None:
    needs(installed_version(), "the C compiler is missing: pip install 'rlx_ray[build]'")


class Decoder:
    """A tiny Llama on an emulated device, with its cache."""

    def __init__(
        self,
        folder: Path,
        changes: Mapping[str, Any],
        config: KernelDispatchConfig = NATIVE,
        profile: Mapping[str, Any] | None = None,
        scheme: QuantScheme | None = None,
    ) -> None:
        self.config = {**TINY_LLAMA, **changes}
        template = llama(**changes)
        self.params = tiny_params(stages(template, 1, 1, past=0).program, self.config)
        self.card = TinyCard(folder, template, self.params, config, profile, scheme)
        if scheme is not None:
            for name in self.card.formats:
                self.params = self.params | {name: _rounded(self.params[name], name, scheme)}
        self.cache = self.card.load(1, 1, 0).make_cache(12)

    def step(
        self, sequences: Sequence[tuple[list[int], int, list[int]]], seq: int, past: int
    ) -> np.ndarray:
        """Logits after (new tokens, past, pages) of each sequence, of which tokens are drawn."""
        found = self.drawn(sequences, seq, past)
        assert (found["tokens"] == found["logits"].argmax(1)).all()
        return found["logits"]

    def drawn(
        self,
        sequences: Sequence[tuple[list[int], int, list[int]]],
        seq: int,
        past: int,
        **settings: object,
    ) -> dict[str, np.ndarray]:
        """Logits, and tokens drawn by settings."""
        variant = self.card.load(len(sequences), seq, past)
        x = {b.name: np.zeros(b.shape, NUMPY[b.dtype.text]) for b in variant.binding.inputs}
        x["pages"] -= 1
        for row, (tokens, start, pages) in enumerate(sequences):
            x["input_ids"][row, : len(tokens)] = tokens
            x["lengths"][row], x["past"][row] = len(tokens), start
            own = pages[: x["pages"].shape[1]]
            x["pages"][row, : len(own)] = own
        for name, value in settings.items():
            x[name][...] = value
        return variant.run(x, self.cache)

    def want(self, ids: Sequence[int]) -> np.ndarray:
        """Logits of every position in float64."""
        return oracle_logits(self.params, self.config, ids)


def _rounded(values: np.ndarray, name: str, scheme: QuantScheme) -> np.ndarray:
    """Weights as a scheme keeps them."""
    rows = values if name == "embed.word" else np.ascontiguousarray(values.T)
    kept = quantise(rows, scheme).f32()
    return kept if name == "embed.word" else kept.T


def text(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 50, length).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_and_what_follows_agree_with_float64(tmp_path: Path, kind: str) -> None:
    model = Decoder(tmp_path, KINDS[kind])
    ids = text(42)
    want = model.want(ids)
    pages = [7, 3]
    got = [model.step([(ids[:39], 0, pages)], 40, 0)[0]]
    got += [model.step([([ids[i]], i, pages)], 1, 63)[0] for i in range(39, 42)]
    np.testing.assert_allclose(got, want[38:], atol=3e-5)


def test_batches_and_parts_of_a_prompt_agree_with_float64(tmp_path: Path) -> None:
    model = Decoder(tmp_path, {"window": 30, "qkv_bias": True})
    long, short = text(50, 1), text(9, 2)
    want, other = model.want(long), model.want(short)
    tables = [4, 9], [1]
    first = [(long[:20], 0, tables[0]), (short[:4], 0, tables[1])]
    np.testing.assert_allclose(model.step(first, 20, 40), [want[19], other[3]], atol=3e-5)
    then = [(long[20:40], 20, tables[0]), (short[4:8], 4, tables[1])]
    np.testing.assert_allclose(model.step(then, 20, 40), [want[39], other[7]], atol=3e-5)
    last = [([short[8]], 8, tables[1]), ([long[40]], 40, tables[0])]
    np.testing.assert_allclose(model.step(last, 1, 63), [other[8], want[40]], atol=3e-5)


def test_a_sequence_that_nobody_asked_for_changes_nothing(tmp_path: Path) -> None:
    model = Decoder(tmp_path, {})
    ids = text(5)
    alone = model.step([(ids, 0, [2])], 6, 0)[0]
    variant = model.card.load(2, 6, 0)
    x = {b.name: np.zeros(b.shape, NUMPY[b.dtype.text]) for b in variant.binding.inputs}
    x["input_ids"][1, :5], x["lengths"][1], x["pages"][:] = ids, 5, [[0], [3]]
    got = variant.run(x, model.cache)["logits"][1]
    assert got.tobytes() == alone.tobytes()


def test_tokens_are_drawn_by_each_sequences_own_settings(tmp_path: Path) -> None:
    model = Decoder(tmp_path, {"layers": 1})
    four = [(text(6), 0, [page]) for page in range(4)]
    settings = {"temperature": 5, "top_k": [1, 0, 0, 0], "top_p": 1}
    found = model.drawn(four, 6, 0, **settings, seed=[[7, 1], [7, 1], [7, 1], [8, 1]])
    again = model.drawn(four, 6, 0, **settings, seed=[[7, 1], [7, 1], [9, 1], [8, 2]])
    assert found["tokens"][0] == found["logits"][0].argmax()
    assert found["tokens"][1] == found["tokens"][2] == again["tokens"][1]
    assert len({*found["tokens"].tolist(), *again["tokens"].tolist()}) >= 4


@pytest.mark.parametrize("precision", ["f16", "bf16"])
def test_sixteen_bits_stay_near_float64(tmp_path: Path, precision: str) -> None:
    model = Decoder(
        tmp_path, {**BLOCKS, "qk_norm": True}, profile={"precision": {"compute": precision}}
    )
    ids = text(36)
    want = model.want(ids)
    got = [model.step([(ids[:34], 0, [0, 1])], 34, 0)[0]]
    got += [model.step([([ids[i]], i, [0, 1])], 1, 63)[0] for i in (34, 35)]
    error = np.linalg.norm(got - want[33:]) / np.linalg.norm(want[33:])
    assert 1e-5 < error < {"f16": 5e-3, "bf16": 4e-2}[precision]


@pytest.mark.parametrize("fusion", [{"skip": True}, {"policy": "fusable"}], ids=["skip", "fusable"])
def test_profiles_of_fusion_mean_the_same(tmp_path: Path, fusion: dict) -> None:
    model = Decoder(tmp_path, {"qkv_bias": True}, profile={"fusion": fusion})
    ids = text(37, 5)
    want = model.want(ids)
    got = [model.step([(ids[:36], 0, [1, 0])], 36, 0)[0]]
    got += [model.step([(ids[36:], 36, [1, 0])], 1, 63)[0]]
    np.testing.assert_allclose(got, want[35:], atol=3e-5)


@pytest.mark.parametrize(
    ("scheme", "config"),
    [("gguf_q4_1", NATIVE), ("gguf_q8_0", NATIVE), ("int4/32", NATIVE), ("gguf_q8_0", COMMON)],
    ids=["gguf_q4_1", "gguf_q8_0", "int4/32", "gguf_q8_0 common"],
)
def test_quantised_weights_mean_what_their_scheme_says(
    tmp_path: Path, scheme: str, config: KernelDispatchConfig
) -> None:
    model = Decoder(tmp_path, BLOCKS, config, scheme=QuantScheme.parse(scheme))
    ids = text(36)
    want = model.want(ids)
    got = [model.step([(ids[:34], 0, [0, 1])], 34, 0)[0]]  # dequantised for the library
    got += [model.step([([ids[i]], i, [0, 1])], 1, 63)[0] for i in (34, 35)]  # read in blocks
    np.testing.assert_allclose(got, want[33:], atol=2e-4)


MIXED = {k: one_common(k) for k in ("Rope", "Attention", "MatMul", "Pool", "RmsNorm", "Gather")}


@pytest.mark.parametrize("config", [*MIXED.values(), COMMON], ids=[*MIXED, "all"])
def test_one_kind_of_a_decoder_common_and_the_rest_native(tmp_path: Path, config) -> None:
    model = Decoder(tmp_path, {"qkv_bias": True, "window": 9, "layers": 1}, config)
    one, other = text(16, 3), text(12, 4)
    want = model.want(one)
    got = model.step([(one[:11], 0, [2]), (other, 0, [9])], 18, 14)
    np.testing.assert_allclose(got, [want[10], model.want(other)[11]], atol=3e-5)
    np.testing.assert_allclose(model.step([(one[11:15], 11, [2])], 4, 14), want[14:15], atol=3e-5)
    np.testing.assert_allclose(model.step([(one[15:], 15, [2])], 1, 15), want[15:], atol=3e-5)


NEAR = {"f16": 2e-3, "bf16": 1.6e-2}
"""How far native and common kernels may be apart in 16 bits: some four roundings."""


@pytest.mark.parametrize("precision", NEAR)
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(COMMON, id="all"),
        *(pytest.param(c, id=kind, marks=pytest.mark.slow) for kind, c in MIXED.items()),
    ],
)
def test_sixteen_bits_of_a_decoder_are_near_the_native_ones(
    tmp_path: Path, config: KernelDispatchConfig, precision: str
) -> None:
    ids, other = text(16, 3), text(12, 4)
    found = []
    for i, kernels in enumerate((NATIVE, config)):
        folder = tmp_path / str(i)
        folder.mkdir()
        profile = {"precision": {"compute": precision}}
        changes = {"qkv_bias": True, "window": 9, "layers": 1}
        model = Decoder(folder, changes, kernels, profile)
        steps = [
            ([(ids[:11], 0, [2]), (other, 0, [9])], 18, 14),
            ([(ids[11:15], 11, [2])], 4, 14),
            ([(ids[15:], 15, [2])], 1, 15),
        ]
        found.append(np.concatenate([model.step(*step) for step in steps]))
    native, common = found
    assert np.linalg.norm(common - native) <= NEAR[precision] * np.linalg.norm(native)


ENCODERS = {
    "native": (NATIVE, "mean"),
    "all": (COMMON, "mean"),
    "largest": (one_common("Pool"), "max"),
    "first": (one_common("Gather"), "cls"),
    **{
        kind: (one_common(kind), "mean")
        for kind in ("Attention", "MatMul", "Pool", "LayerNorm", "Softmax", "Activation")
    },
}


@pytest.mark.parametrize(("config", "pooling"), ENCODERS.values(), ids=list(ENCODERS))
@pytest.mark.parametrize(("batch", "seq"), [(3, 5), (3, 16)], ids=["few rows", "many rows"])
def test_an_encoder_agrees_with_float64(
    tmp_path: Path, config: KernelDispatchConfig, pooling: str, batch: int, seq: int
) -> None:
    template = bert(pooling=pooling, activation="gelu_tanh", first_position=2)
    made = stages(template, batch, seq)
    params = random_params(made.program)
    inputs = random_inputs(batch, seq, lengths=[seq, 2, seq - 1])
    (want,) = evaluate(made.mir, params | inputs)
    got = TinyCard(tmp_path, template, params, config).load(batch, seq).run(inputs)["embedding"]
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("precision", NEAR)
@pytest.mark.parametrize(
    "name",
    [
        *("all", "Attention"),
        *(pytest.param(n, marks=pytest.mark.slow) for n in [*ENCODERS][2:] if n != "Attention"),
    ],
)
def test_sixteen_bits_of_an_encoder_are_near_the_native_ones(
    tmp_path: Path, name: str, precision: str
) -> None:
    config, pooling = ENCODERS[name]
    template = bert(pooling=pooling, activation="gelu_tanh", first_position=2)
    params = random_params(stages(template, 3, 16).program)
    inputs = random_inputs(3, 16, lengths=[16, 0, 15])
    found = []
    for i, kernels in enumerate((NATIVE, config)):
        folder = tmp_path / str(i)
        folder.mkdir()
        card = TinyCard(folder, template, params, kernels, {"precision": {"compute": precision}})
        found.append(card.load(3, 16).run(inputs)["embedding"])
    native, common = found
    assert np.linalg.norm(common - native) <= NEAR[precision] * np.linalg.norm(native)
    assert not common[1].any(), "nobody asked for this one"
