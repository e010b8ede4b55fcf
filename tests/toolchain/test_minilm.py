"""The real model against the reference embeddings, in every bucket and dispatch policy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlx_ray.component import (
    CompileProfile,
    KernelDispatchConfig,
    KernelDispatchPolicy,
    ModelVariant,
    Preset,
)
from rlx_ray.config.load import load
from rlx_ray.config.schema import Config
from rlx_ray.inference.local import LocalModel
from rlx_ray.job.compile_miss import load as open_local
from rlx_ray.runtime.executable import pad_tokens
from tests.support.needs import needs_minilm

ROOT = Path(__file__).parent.parent.parent
CASES = json.loads((ROOT / "tests" / "golden" / "minilm.json").read_text())["cases"]
BUCKETS = [(b, s) for b in (1, 2, 4, 8, 16, 32) for s in (16, 32, 64, 128, 256)]
SAMPLE = {
    KernelDispatchPolicy.PREFER_NATIVE: [(1, 16), (1, 128), (2, 32), (8, 64), (32, 256)],
    KernelDispatchPolicy.FORCE_COMMON: [(1, 128), (4, 16)],
    KernelDispatchPolicy.FORCE_NATIVE: [(1, 256), (4, 128)],
}
ALL = [
    pytest.param(
        policy,
        bucket,
        marks=() if bucket in SAMPLE[policy] else pytest.mark.slow,
        id=f"{policy.spelling}-b{bucket[0]}s{bucket[1]}",
    )
    for policy in KernelDispatchPolicy
    for bucket in BUCKETS
]


def config_with(folder: Path, policy: KernelDispatchPolicy) -> Config:
    found = load(ROOT / "configs" / "minilm.yaml", store_override=f"file://{folder}/store")
    model = replace(found.models[0], dispatch=KernelDispatchConfig(policy))
    store = replace(found.store, cache_dir=str(folder / "cache"))
    return replace(found, models=(model,), store=store)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    needs_minilm()
    made = {
        policy: open_local(config_with(tmp_path_factory.mktemp(policy.spelling), policy), "minilm")
        for policy in KernelDispatchPolicy
    }
    yield made
    for model in made.values():
        model.close()


def test_token_ids_are_the_references(models: dict) -> None:
    model = models[KernelDispatchPolicy.PREFER_NATIVE]
    for case in CASES:
        (encoded,) = model.tokenizer.encode_batch([case["text"]])
        assert list(encoded.ids) == case["input_ids"]


@pytest.mark.parametrize(("policy", "bucket"), ALL)
def test_embeddings_are_the_references(models: dict, policy, bucket: tuple[int, int]) -> None:
    model: LocalModel = models[policy]
    batch, seq = bucket
    cases = [c for c in CASES if len(c["input_ids"]) <= seq]
    executable, _ = model.executable(ModelVariant.encoder(batch, seq))
    for start in range(0, len(cases), batch):
        part = cases[start : start + batch]
        tokens = [(c["input_ids"], [0] * len(c["input_ids"])) for c in part]
        rows = executable.run(pad_tokens(ModelVariant.encoder(batch, seq), tokens))["embedding"]
        for row, case in zip(rows, part, strict=False):
            assert np.abs(row - np.array(case["embedding"])).max() <= 2e-5


def test_a_list_of_mixed_lengths_is_split_and_answered_in_order(models: dict) -> None:
    model: LocalModel = models[KernelDispatchPolicy.PREFER_NATIVE]
    done = model.embed([c["text"] for c in CASES])
    for row, case in zip(done.vectors, CASES, strict=True):
        assert np.abs(row - np.array(case["embedding"])).max() <= 2e-5
    assert done.pad_waste < 0.5


def test_a_mixed_list_runs_ragged_without_padding(models: dict, tmp_path: Path) -> None:
    padded: LocalModel = models[KernelDispatchPolicy.PREFER_NATIVE]
    found = load(ROOT / "configs" / "minilm-ragged.yaml", store_override=f"file://{tmp_path}/store")
    config = replace(found, store=replace(found.store, cache_dir=str(tmp_path / "cache")))
    ragged = open_local(config, "minilm")
    texts = [c["text"] for c in CASES] * 3
    done = ragged.embed(texts)
    assert done.pad_waste == 0
    assert all(v.ragged_rows for v in done.calls)
    for row, case in zip(done.vectors, CASES * 3, strict=True):
        assert np.abs(row - np.array(case["embedding"])).max() <= 2e-5
    assert (
        done.vectors[: len(CASES)].tobytes() == padded.embed(texts).vectors[: len(CASES)].tobytes()
    )
    ragged.close()


def test_a_text_past_the_models_limit_is_truncated(models: dict) -> None:
    model: LocalModel = models[KernelDispatchPolicy.PREFER_NATIVE]
    done = model.embed(["word " * 5000])
    assert done.truncated == 1
    assert done.tokens == (256,)


@pytest.mark.parametrize(
    ("name", "least"),
    [("minilm-int8", 0.99), pytest.param("minilm-bf16", 0.9999, marks=pytest.mark.slow)],
)
def test_lower_precision_stays_near_the_reference(tmp_path: Path, name: str, least: float) -> None:
    needs_minilm()
    found = load(ROOT / "configs" / "minilm-low.yaml", store_override=f"file://{tmp_path}/store")
    config = replace(found, store=replace(found.store, cache_dir=str(tmp_path / "cache")))
    model = open_local(config, name)
    rows = [model.embed([c["text"]]).vectors[0] for c in CASES]
    cosines = [row @ np.array(c["embedding"]) for row, c in zip(rows, CASES, strict=True)]
    assert least <= min(cosines) < 1 - 1e-6
    together = model.embed([c["text"] for c in CASES]).vectors
    assert together.tobytes() == np.stack(rows).tobytes()
    model.close()


def test_one_model_may_have_variants_of_two_precisions(tmp_path: Path) -> None:
    needs_minilm()
    found = load(ROOT / "configs" / "minilm-low.yaml", store_override=f"file://{tmp_path}/store")
    row = replace(found.models[0].matrix[0], batch=(1,), seq=(16,))
    exact = CompileProfile.preset(Preset.ENCODER)
    mixed = replace(found.models[0], matrix=(row, replace(row, seq=(128,), profile=exact)))
    config = replace(
        found, models=(mixed,), store=replace(found.store, cache_dir=str(tmp_path / "cache"))
    )
    model = open_local(config, "minilm-int8")
    for case in CASES:
        (vector,) = model.embed([case["text"]]).vectors
        error = np.abs(vector - np.array(case["embedding"])).max()
        assert (error <= 2e-5) == (len(case["input_ids"]) > 16)
    model.close()
