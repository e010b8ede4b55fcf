"""A model in this process on an emulated card: the ladder of targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rlx_ray.compiler.cpu import zig
from rlx_ray.compiler.cuda import nvrtc
from rlx_ray.config.load import load
from rlx_ray.errors import ConfigError, DeviceError, VariantMissing
from rlx_ray.host import this_host
from rlx_ray.inference.loader import TargetLoader, tiered
from rlx_ray.inference.local import LocalModel
from rlx_ray.job.build import build
from rlx_ray.job.compile_miss import load as open_local
from rlx_ray.runtime.executable import pad_tokens
from rlx_ray.target import target
from rlx_serve.table import open_table
from tests.support.emulated_loader import put_in_card
from tests.support.needs import needs
from tests.support.tiny import write_tiny_bert

TEXTS = ["the quick brown fox", "ray"]
CPU = this_host().best().name
LADDER = ("cuda-compute_80", "cuda-sm_90", CPU)


@pytest.fixture(autouse=True)
def _toolchains() -> None:
    needs(zig.installed_version(), "the C compiler is missing: pip install 'rlx_ray[build]'")
    needs(nvrtc.installed_version(), "NVRTC is missing: pip install 'rlx_ray[cuda13]'")


def config(folder: Path, family: str, rows: str, targets: Sequence[str], mode: str = "lazy"):
    path = folder / "config.yaml"
    path.write_text(
        f"""
store: {{url: "file://store", cache_dir: cache}}
targets: [{", ".join(targets)}]
models: [{{name: tiny, family: {family}, source: model, mode: {mode}, matrix: [{rows}]}}]
"""
    )
    return load(path)


def bert(
    folder: Path,
    targets: Sequence[str],
    mode: str = "lazy",
    rows: str = "{phase: encoder, batch: 2, seq: 16}",
) -> LocalModel:
    if not (folder / "model").exists():
        write_tiny_bert(folder / "model")
    return open_local(config(folder, "bert", rows, targets, mode), "tiny", 1)


def test_the_best_targets_artifact_is_loaded_and_equals_the_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = bert(tmp_path, [CPU]).embed(TEXTS)
    device = put_in_card(monkeypatch, tmp_path / "units")
    model = bert(tmp_path, LADDER)
    assert model.cells[0].spec.target.name == "cuda-sm_90"
    for tier in ("compiled", "memory", "memory"):
        got = model.embed(TEXTS)
        assert got.tiers == (tier,)
        np.testing.assert_allclose(got.vectors, want.vectors, atol=1e-5)
    assert model.passed_over == []
    assert device.held > 0
    model.close()
    del model
    assert device.held == 0


def test_a_mixed_list_is_one_ragged_run_on_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*TEXTS, "a lazy dog jumps over the key", "fox"]
    rows = "{phase: encoder, batch: 1, seq: 16}, {phase: encoder, batch: 8, seq: 32, rows: 48}"
    want = bert(tmp_path, [CPU], rows=rows).embed(texts)
    put_in_card(monkeypatch, tmp_path / "units")
    model = bert(tmp_path, LADDER, rows=rows)
    assert model.cells[0].spec.target.name == "cuda-sm_90"
    got = model.embed(texts)
    assert [str(v) for v in got.calls] == ["encoder:b8:s32:x2=48"]
    np.testing.assert_allclose(got.vectors, want.vectors, atol=1e-5)
    assert want.pad_waste == 0
    assert got.pad_waste == pytest.approx(1 - sum(got.tokens) / 48), "products compute all rows"
    model.close()


def test_what_the_driver_refuses_is_passed_over_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_card(monkeypatch, tmp_path / "units", ("cuda-sm_90",))
    model = bert(tmp_path, LADDER)
    on_ptx = model.embed(TEXTS).vectors
    assert model.cells[0].spec.target.name == "cuda-compute_80"
    assert model.passed_over == ["cuda-sm_90: the device refused the code for sm_90: status 222"]
    put_in_card(monkeypatch, tmp_path / "more", LADDER[:2])
    other = bert(tmp_path, LADDER)
    np.testing.assert_allclose(other.embed(TEXTS).vectors, on_ptx, atol=1e-5)
    assert other.cells[0].spec.target.kind == "cpu"
    assert [reason.partition(":")[0] for reason in other.passed_over] == [
        "cuda-sm_90",
        "cuda-compute_80",
    ]
    put_in_card(monkeypatch, tmp_path / "none", LADDER[:2])
    with pytest.raises(DeviceError, match="status 222"):
        bert(tmp_path, LADDER[:2]).embed(TEXTS)


def test_what_the_store_lacks_in_aot_mode_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_card(monkeypatch, tmp_path / "units")
    bert(tmp_path, [CPU]).embed(TEXTS)
    model = bert(tmp_path, LADDER, "aot")
    assert model.embed(TEXTS).tiers == ("disk",)
    assert model.cells[0].spec.target.kind == "cpu"
    assert len(model.passed_over) == 2
    with pytest.raises(VariantMissing, match="cuda-sm_90"):
        bert(tmp_path, LADDER[:2], "aot").embed(TEXTS)


def test_a_host_without_a_card_takes_its_cpu(tmp_path: Path) -> None:
    model = bert(tmp_path, LADDER)
    assert model.cells[0].spec.target.kind == "cpu"


def test_a_replica_runs_on_the_card_and_says_why_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = bert(tmp_path, LADDER)
    wanted = target("cuda-sm_90")
    with pytest.raises(ConfigError, match="'cuda-sm_90' cannot run here: "):
        TargetLoader(tiered(opened.config.store), wanted, 1, lambda spec, reason: None)
    device = put_in_card(monkeypatch, tmp_path / "units")
    row = next(row for row in open_table(opened.config).rows if row.spec.target == wanted)
    store = tiered(opened.config.store)
    replica = TargetLoader(store, wanted, 1, lambda spec, reason: store.store.put(build(spec)))
    assert replica.add_weights(opened.model, [row.spec], row.route.weights) > 0
    assert device.held == 0
    loaded = replica.load(row.spec)
    assert loaded.tier == "compiled"
    assert loaded.nbytes > loaded.executable.arena_bytes > 0
    encoded = opened.tokenizer.encode_batch(TEXTS)
    inputs = pad_tokens(row.variant, [(e.ids, e.type_ids) for e in encoded])
    got = loaded.executable.run(inputs)["embedding"]
    np.testing.assert_allclose(got, opened.embed(TEXTS).vectors, atol=1e-5)
    del loaded
    assert device.held == 0
    replica.close()
