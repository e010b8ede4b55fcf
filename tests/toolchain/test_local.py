"""A model in this process: tiny checkpoints against the float64 reference, modes, damage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlx_ray.component import CompilationMode, ModelVariant
from rlx_ray.config.load import load
from rlx_ray.config.schema import Config
from rlx_ray.errors import ConfigError, InputError, UnknownModelError, VariantMissing
from rlx_ray.inference.catalog import open_model
from rlx_ray.job import build as job_build
from rlx_ray.job.compile_miss import load as open_local
from tests.support.bert_reference import forward
from tests.support.programs import Bench
from tests.support.tiny import tiny_tensors, write_tiny_bert

TEXTS = ["the quick brown fox", "ray", "a key over the lazy dog, a key", ""]


def write_config(folder: Path, mode: str = "lazy", **tiny: object) -> Path:
    write_tiny_bert(folder / "model", **tiny)
    text = f"""
store: {{url: "file://store", cache_dir: cache}}
targets: [host]
models:
  - name: tiny
    family: bert
    source: model
    mode: {mode}
    matrix:
      - {{phase: encoder, batch: [1, 2], seq: [8, 16]}}
"""
    path = folder / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("pooling", "seed"),
    [("mean", 0), *(pytest.param(p, 1, marks=pytest.mark.slow) for p in ("max", "cls"))],
)
def test_embeddings_of_a_random_checkpoint(
    bench: Bench, tmp_path: Path, pooling: str, seed: int
) -> None:
    config = write_config(tmp_path, pooling=pooling, seed=seed)
    model = open_local(load(config), "tiny")
    try:
        done = model.embed(TEXTS)
        encoded = model.tokenizer.encode_batch(TEXTS)
        width = max(len(e.ids) for e in encoded)
        ids = np.zeros((len(TEXTS), width), int)
        for row, e in zip(ids, encoded, strict=True):
            row[: len(e.ids)] = e.ids
        raw = json.loads((tmp_path / "model" / "config.json").read_text())
        tensors = tiny_tensors(raw, seed, "")
        want = forward(tensors, raw, ids, [len(e.ids) for e in encoded], pooling=pooling)
        np.testing.assert_allclose(done.vectors, want, atol=3e-6)
        assert set(done.tiers) <= {"compiled", "memory"}
    finally:
        model.close()


def with_mode(config: Config, mode: CompilationMode) -> Config:
    return replace(config, models=tuple(replace(m, mode=mode) for m in config.models))


@pytest.mark.parametrize("built", list(CompilationMode), ids=lambda m: m.spelling)
def test_prebuilt_in_one_mode_loads_in_each_other(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: CompilationMode
) -> None:
    config = load(write_config(tmp_path))
    model = open_local(with_mode(config, built), "tiny")
    for cell in model.cells:
        model.store.store.put(job_build.build(cell.spec))
    builds: list[object] = []
    monkeypatch.setattr("rlx_ray.job.compile_miss.build", lambda spec, limits: builds.append(spec))
    for mode in CompilationMode:
        other = open_local(with_mode(config, mode), "tiny")
        assert other.embed(TEXTS).vectors.shape == (4, 32)
        other.close()
    assert not builds


def test_aot_refuses_a_missing_variant_and_names_the_command(bench: Bench, tmp_path: Path) -> None:
    model = open_local(load(write_config(tmp_path, "aot")), "tiny")
    with pytest.raises(VariantMissing, match=r"encoder:b1:s8 .*rlx-ray prebuild CONFIG --model"):
        model.embed(["ray"])


def damage(folder: Path) -> None:
    for blob in (folder / "store" / "blobs").rglob("*"):
        if blob.is_file() and blob.read_bytes().startswith(b"\x7fELF"):
            data = bytearray(blob.read_bytes())
            data[len(data) // 2] ^= 0xFF
            blob.write_bytes(data)
    for kept in (folder / "cache").rglob("*"):
        if kept.is_file():
            kept.unlink()


def test_a_damaged_artifact_is_rebuilt_in_lazy_refused_in_aot(bench: Bench, tmp_path: Path) -> None:
    config = load(write_config(tmp_path))
    first = open_local(config, "tiny")
    want = first.embed(["ray"]).vectors
    first.close()
    damage(tmp_path)
    aot = open_local(with_mode(config, CompilationMode.AOT), "tiny")
    with pytest.raises(VariantMissing, match="altered"):
        aot.embed(["ray"])
    lazy = open_local(config, "tiny")
    again = lazy.embed(["ray"])
    lazy.close()
    assert again.tiers == ("compiled",)
    assert again.vectors.tobytes() == want.tobytes()


def test_two_models_of_equal_shape_keep_their_own_weights(bench: Bench, tmp_path: Path) -> None:
    vectors = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        model = open_local(load(write_config(folder, seed=seed)), "tiny")
        vectors.append(model.embed(["ray"]).vectors)
        model.close()
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_bad_requests_are_named(bench: Bench, tmp_path: Path) -> None:
    config = load(write_config(tmp_path, max_tokens=40))
    with pytest.raises(UnknownModelError, match="did you mean 'tiny'"):
        open_local(config, "tinny")
    model = open_local(config, "tiny")
    with pytest.raises(InputError, match="empty list"):
        model.embed([])
    with pytest.raises(InputError, match=r"has 22 tokens, the largest variant of 'tiny' takes 16"):
        model.embed(["ray " * 20])
    with pytest.raises(InputError, match="did you mean"):
        model.spec(ModelVariant.encoder(1, 9))
    other = replace(config, models=(replace(config.models[0], name="a"),))
    assert open_model(other.models[0]).info.limits.max_tokens == 40


def test_a_model_for_other_hosts_only_says_so(bench: Bench, tmp_path: Path) -> None:
    text = write_config(tmp_path).read_text().replace("[host]", "[cpu-aarch64-neoverse_v1]")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match="no target that this host can run"):
        open_local(load(tmp_path / "config.yaml"), "tiny")
