"""The source digest of a local checkpoint is kept by its files' stamp, and never outlives it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlx_ray.catalog import OpenModel, open_model
from rlx_ray.checkpoint.source import Checkpoint
from rlx_ray.config.load import load
from rlx_ray.store import HostCache
from tests.support.tiny import write_tiny_bert


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_bert(tmp_path / "model")
    (tmp_path / "config.yaml").write_text(
        """
store: {url: "memory://source-digest"}
targets: [cpu-aarch64]
models:
  - {name: tiny, family: bert, source: model, matrix: [{phase: encoder, batch: 1, seq: 8}]}
"""
    )
    return tmp_path


def opened(folder: Path) -> OpenModel:
    return open_model(load(folder / "config.yaml").models[0])


def test_a_second_process_does_not_hash(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = HostCache(folder / "cache")
    digest = opened(folder).source_digest(cache)
    assert digest == opened(folder).checkpoint.source_digest()
    monkeypatch.setattr(Checkpoint, "source_digest", lambda self: pytest.fail("hashed again"))
    assert opened(folder).source_digest(cache) == digest


@pytest.mark.parametrize("keep_time", [True, False])
def test_a_changed_file_is_hashed_anew(folder: Path, keep_time: bool) -> None:
    cache = HostCache(folder / "cache")
    before = opened(folder).source_digest(cache)
    weights = folder / "model" / "model.safetensors"
    found = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    if keep_time:
        os.utime(weights, ns=(found.st_atime_ns, found.st_mtime_ns))
    after = opened(folder).source_digest(cache)
    assert after != before
    assert after == opened(folder).checkpoint.source_digest()


def test_what_is_no_digest_in_the_cache_is_not_taken(folder: Path) -> None:
    cache = HostCache(folder / "cache")
    digest = opened(folder).source_digest(cache)
    (copy,) = (folder / "cache" / "manifests").glob("source-*.json")
    copy.write_bytes(b"nonsense")
    assert opened(folder).source_digest(cache) == digest
    copy.chmod(0o644)
    copy.write_bytes(b"0" * 64)
    assert opened(folder).source_digest(cache) == digest
