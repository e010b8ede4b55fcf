"""What a config says of places: stores and sources, hosts, executors, compilers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rlx_ray.config.load import _SERVE, load
from rlx_ray.config.serve import Placement, ServeSpec
from rlx_ray.errors import ConfigError
from rlx_ray.host import Host, this_host
from rlx_ray.target import CPU_TARGETS, target
from tests.support.configs import (
    BASE,
    MODEL,
    ROW,
    Drop,
    loaded,
    put,
    write,
)


@pytest.mark.parametrize(
    ("text", "store", "source"),
    [
        ("file://../a", "file://{up}/a", "file://{up}/a"),
        ("../a/./b", "file://{up}/a/b", "{up}/a/b"),
        ("/a", "file:///a", "/a"),
        ("file:///a", "file:///a", "file:///a"),
        ("s3://bucket/a", "s3://bucket/a", "s3://bucket/a"),
        ("pkg://p/a", "pkg://p/a", "pkg://p/a"),
        ("memory://x", "memory://x", "memory://x"),
        ("simplecache::s3://b", "simplecache::s3://b", "simplecache::s3://b"),
    ],
)
def test_relative_places_are_taken_from_the_configs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, store: str, source: str
) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    write(folder, put(BASE, (("store", "url"), text), ((*MODEL, "source"), text)))
    monkeypatch.chdir(tmp_path)
    config = load("configs/config.yaml")
    assert config.store.url == store.format(up=tmp_path)
    assert config.models[0].source == source.format(up=tmp_path)


def test_a_store_override_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    for value in (BASE, put(BASE, (("store",), Drop))):
        path = write(tmp_path / "configs", value)
        assert load(path, store_override="mine").store.url == f"file://{tmp_path}/mine"
        assert load(path, store_override="s3://b/x").store.url == "s3://b/x"


def test_host_is_this_machines_best_target_and_counts_once(tmp_path: Path) -> None:
    best = this_host().best()
    assert loaded(tmp_path, (("targets",), ["host"])).targets == (best,)
    assert loaded(tmp_path, (("targets",), ["host", best.name])).targets == (best,)
    row = loaded(tmp_path, ((*ROW, "targets"), ["host"])).models[0].matrix[0]
    assert row.targets == (best.name,)


def test_storage_options_keep_what_the_file_system_wants(tmp_path: Path) -> None:
    options = {"key": "k", "client_kwargs": {"endpoint_url": "http://x"}}
    store = loaded(tmp_path, (("store", "storage_options"), options)).store
    assert dict(store.storage_options) == options
    with pytest.raises(ConfigError, match=r"^\$\.store\.storage_options\.day: .* JSON"):
        load(write(tmp_path, "store: {url: x, storage_options: {day: 2026-01-01}}\n"
                   "targets: [host]\nmodels: [1]\n"))  # fmt: skip


def test_serve_reads_every_field(tmp_path: Path) -> None:
    assert set(_SERVE) == {f.name for f in dataclasses.fields(ServeSpec)}
    values = {
        f.name: getattr(ServeSpec(), f.name) for f in dataclasses.fields(ServeSpec)
    } | {"port": 9000, "warm": ["minilm"], "request_timeout_s": 2, "executors": {}, "gateway": {},
         "max_slot_bytes": 5}  # fmt: skip
    serve = loaded(tmp_path, (("serve",), values)).serve
    assert serve == dataclasses.replace(
        ServeSpec(), port=9000, warm=("minilm",), request_timeout_s=2.0, max_slot_bytes=5
    )
    assert loaded(tmp_path, (("serve",), None)).serve == ServeSpec()
    assert loaded(tmp_path, (("serve",), {"warm": []})).serve == ServeSpec()


def test_a_gateways_bytes_are_for_what_it_runs(tmp_path: Path) -> None:
    values = {"max_slot_bytes": 5, "gateway": {"max_slot_bytes": 7}}
    serve = loaded(tmp_path, (("serve",), values)).serve
    assert serve.placement(target("cpu-aarch64")).max_slot_bytes == 7
    assert serve.placement(target("cuda-sm_90")).max_slot_bytes == 5
    serve = loaded(tmp_path, (("serve",), {**values, "executors": {"cpu": {}}})).serve
    assert serve.placement(target("cpu-aarch64")).max_slot_bytes == 5


def test_a_targets_entry_wins_over_its_kinds_and_the_default(
    tmp_path: Path,
) -> None:
    values = {
        "cuda": {"label_selector": {"zone": "a", "ray.io/accelerator-type": "H100"}},
        "cuda-sm_80": {"label_selector": {"zone": "b"}, "num_gpus": 0.5, "max_replicas": 4},
        "cpu": {"num_cpus": 2.5, "replicas": 1},
        "cpu-znver5": {"num_cpus": 0},
    }
    serve = loaded(tmp_path, (("serve",), {"replicas": 3, "executors": values})).serve
    labels = (("ray.io/accelerator-type", "H100"), ("zone", "a"))
    assert serve.placement(target("cuda-sm_90")) == Placement(0, 1, labels, 3)
    assert serve.placement(target("cuda-sm_80")) == Placement(0, 0.5, (("zone", "b"),), 3, 4)
    assert serve.placement(target("cpu-aarch64")) == Placement(2.5, 0, (), 1)
    assert serve.placement(target("cpu-znver5")) == Placement(0, 0, (), 1)
    assert ServeSpec().placement(target("cpu-aarch64")) == Placement(0, 0, (), 1)


H100_BOX = Host("x86_64", frozenset(CPU_TARGETS[1].features), "Xeon", ("sm_90", "sm_90"))


def test_host_is_also_the_exact_cuda_target_of_a_visible_device(tmp_path: Path) -> None:
    asked = []

    def found() -> Host:
        asked.append(1)
        return H100_BOX

    path = write(tmp_path, put(BASE, (("targets",), ["cpu-x86_64-v3"])))
    load(path, host=found)
    assert not asked  # looking for devices costs time
    config = load(write(tmp_path, put(BASE, (("targets",), ["host"]))), host=found)
    assert [t.name for t in config.targets] == ["cuda-sm_90", "cpu-x86_64-v4"]
    row = put(BASE, ((*ROW, "targets"), ["cpu-x86_64-v4", "host"]))
    (found_row,) = load(write(tmp_path, row), host=found).models[0].matrix
    assert found_row.targets == ("cpu-x86_64-v4", "cuda-sm_90")


def test_the_toolchain_is_read(tmp_path: Path) -> None:
    assert loaded(tmp_path, (("toolchain",), {})).toolchain == ()
    assert loaded(tmp_path, (("toolchain",), None)).toolchain == ()
    assert loaded(tmp_path, (("toolchain",), {"cuda": 13})).toolchain == (("cuda", 13),)
