"""The identity of a model's weights: what is hashed is what is packed, and nothing outlives a file.

The digests of a checkpoint's tensors are kept on the host by the stamp of its files.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from rlx_ray.checkpoint import folder as folders
from rlx_ray.checkpoint.checkpoint import Checkpoint, open_checkpoint
from rlx_ray.checkpoint.folder import open_folder
from rlx_ray.config.load import load
from rlx_ray.config.schema import StoreSpec
from rlx_ray.errors import CheckpointError
from rlx_ray.inference.catalog import OpenModel, ensure_weights, open_model
from rlx_ray.job.build import BuildLimits
from rlx_ray.job.prebuild import prebuild
from rlx_ray.matrix.expand import expand
from rlx_ray.spec import BuildSpec
from rlx_ray.store import AotStore, HostCache
from tests.support.s3 import BUCKET, S3Server
from tests.support.specs import make_artifact
from tests.support.tiny import write_tiny_bert

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folders, "SETTLED_S", 0.0)
    for name, seed in (("model", 0), ("other", 1)):
        write_tiny_bert(tmp_path / name, seed=seed)
    (tmp_path / "config.yaml").write_text(
        """
store: {url: "store"}
targets: [cpu-aarch64, cuda-sm_90]
models:
  - {name: tiny, family: bert, source: model, matrix: [{phase: encoder, batch: 1, seq: 8}]}
"""
    )
    return tmp_path


def opened(folder: Path, source: str | None = None) -> OpenModel:
    spec = load(folder / "config.yaml").models[0]
    return open_model(spec if source is None else replace(spec, source=source))


def specs(model: OpenModel) -> list[BuildSpec]:
    return [c.spec for c in expand(model.spec, model.family, model.info, {})]


def store(folder: Path) -> AotStore:
    return AotStore(str(folder / "store"))


def files(folder: Path) -> list[Path]:
    return [p for p in (folder / "store").rglob("*") if p.is_file()]


def test_a_second_process_does_not_hash(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = HostCache(folder / "cache")
    digest = opened(folder).weights_digest(cache)
    assert digest == opened(folder).weights_digest()
    monkeypatch.setattr(Checkpoint, "tensor_digests", lambda *_: pytest.fail("hashed again"))
    assert opened(folder).weights_digest(cache) == digest


def test_a_file_that_has_just_changed_has_no_stamp(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two changes within one tick of the file system's clock leave the same times."""
    assert open_folder(str(folder / "model")).stamp() is not None
    monkeypatch.setattr(folders, "SETTLED_S", 60.0)
    assert open_folder(str(folder / "model")).stamp() is None


@pytest.mark.parametrize("keep_time", [True, False])
def test_a_changed_file_is_hashed_anew(folder: Path, keep_time: bool) -> None:
    cache = HostCache(folder / "cache")
    before = opened(folder).weights_digest(cache)
    weights = folder / "model" / WEIGHTS
    found = weights.stat()
    data = bytearray(weights.read_bytes())
    tensor = opened(folder).checkpoint.tensors[opened(folder).info.tensors[0].name]
    data[tensor.start] ^= 1
    time.sleep(0.02)  # a tick of the file system's clock
    weights.write_bytes(data)
    if keep_time:
        os.utime(weights, ns=(found.st_atime_ns, found.st_mtime_ns))
    after = opened(folder).weights_digest(cache)
    assert after != before
    assert after == opened(folder).weights_digest()


def test_what_is_no_digest_in_the_cache_is_not_taken(folder: Path) -> None:
    cache = HostCache(folder / "cache")
    digest = opened(folder).weights_digest(cache)
    (copy,) = (folder / "cache" / "manifests").glob("source-*.json")
    for nonsense in (b"nonsense", b"[]", b'{"a": 3}', b"{}"):
        copy.write_bytes(nonsense)
        assert opened(folder).weights_digest(cache) == digest
    copy.chmod(0o644)
    copy.write_bytes(b"{}")
    assert opened(folder).weights_digest(cache) == digest


def test_how_parameters_are_made_counts(folder: Path) -> None:
    model = opened(folder)
    first, *others = model.info.params
    turned = replace(first, heads=(2,) * len(first.sources))
    info = replace(model.info, params=(turned, *others))
    assert replace(model, info=info).weights_digest() != model.weights_digest()


def test_a_schemes_block_size_tells_packed_weights_apart(folder: Path) -> None:
    """Blocks of 32 and of 64 weights have one format, and other scales."""
    model = opened(folder)
    families = set()
    for quant in ("int4/32", "int4/64"):
        wide = replace(model.spec, quant=quant, matrix=model.spec.matrix)
        spec = expand(wide, model.family, model.info, {})[0].spec
        families.add(replace(spec, matrices=(("layer.0.qkv", "b4"),)).weights_family)
    assert len(families) == 2


Change = Callable[[Path, Path], None]


def overwrite(old: Path, new: Path) -> None:
    old.write_bytes(new.read_bytes())


def cut(old: Path, new: Path) -> None:
    os.truncate(old, old.stat().st_size // 2)


def swap(old: Path, new: Path) -> None:
    shutil.copy(new, old.with_name("next"))
    os.replace(old.with_name("next"), old)


@pytest.mark.parametrize("which", [0, 1], ids=["cpu", "cuda"])
@pytest.mark.parametrize(
    ("change", "words"),
    [(overwrite, "has changed since the checkpoint was hashed"), (cut, "was cut while it was")],
)
def test_a_change_between_hashing_and_packing_publishes_nothing(
    folder: Path, change: Change, words: str, which: int
) -> None:
    model = opened(folder)
    model.weights_digest()
    change(folder / "model" / WEIGHTS, folder / "other" / WEIGHTS)
    with pytest.raises(CheckpointError, match=words) as caught:
        ensure_weights(store(folder), model, specs(model)[which])
    assert str(folder / "model") in str(caught.value)
    assert not files(folder)


def test_a_replaced_file_packs_what_was_opened(folder: Path) -> None:
    """The file that was opened stays what it was though another has its name."""
    old = opened(folder).weights_digest()
    model = opened(folder)
    swap(folder / "model" / WEIGHTS, folder / "other" / WEIGHTS)
    manifest = ensure_weights(store(folder), model, specs(model)[0])
    assert manifest.source == old
    assert opened(folder).weights_digest() == opened(folder, str(folder / "other")).weights_digest()


def test_a_writer_while_packing_never_gives_mixed_weights(folder: Path) -> None:
    """Whatever is published under a digest is what that digest is of, by a writer at full speed."""
    target = folder / "model" / WEIGHTS
    one, two = target.read_bytes(), (folder / "other" / WEIGHTS).read_bytes()
    right = {}
    for name in ("model", "other"):
        model = opened(folder, str(folder / name))
        manifest = ensure_weights(store(folder / name), model, specs(model)[0])
        right[manifest.source] = manifest.blob.sha256
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            for data in (one, two):
                target.write_bytes(data)

    writer = threading.Thread(target=write)
    writer.start()
    failures, published = 0, 0
    try:
        for _ in range(60):
            place = AotStore(f"memory://{folder.name}")
            try:
                model = opened(folder)
                manifest = ensure_weights(place, model, specs(model)[0])
            except CheckpointError:
                failures += 1
                continue
            published += 1
            if manifest.source in right:  # else a mixture was hashed, and the same one packed
                assert manifest.blob.sha256 == right[manifest.source]
    finally:
        done.set()
        writer.join()
    assert failures + published == 60


def test_wanted_weights_are_taken_from_the_store_or_refused(folder: Path) -> None:
    wanted = opened(folder).weights_digest()
    first = specs(opened(folder))[0]
    ensure_weights(store(folder), opened(folder), first)
    overwrite(folder / "model" / WEIGHTS, folder / "other" / WEIGHTS)
    model = opened(folder)
    assert model.weights_digest() != wanted
    found = ensure_weights(store(folder), model, first, wanted=wanted)
    assert found.source == wanted
    with pytest.raises(CheckpointError, match="Deploy again") as caught:
        ensure_weights(store(folder), model, specs(model)[1], wanted=wanted)
    assert wanted[:16] in str(caught.value)
    assert len([p for p in files(folder) if p.parent.name == "tiny"]) == 1


def test_a_text_that_changes_after_the_open_is_an_error(folder: Path) -> None:
    model = opened(folder)
    assert model.texts_digest() == opened(folder).texts_digest()
    path = folder / "model" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has changed since"):
        model.tokenizer()
    assert opened(folder).texts_digest() != opened(folder, str(folder / "other")).texts_digest()


class Versioned:
    """A remote file system that says which version of a file it has, or does not."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def invalidate_cache(self, path: str) -> None:
        pass

    def ls(self, path: str, detail: bool) -> list[dict[str, Any]]:
        return self.rows


def test_a_remote_stamp_is_of_sizes_and_versions() -> None:
    row = {"name": "b/m/x", "size": 3, "type": "file", "ETag": "a"}
    rows = [[row], [{**row, "ETag": "b"}], [{**row, "size": 4}], [row, {**row, "name": "b/m/y"}]]
    stamps = {folders.RemoteFolder("s3://b/m", Versioned(r), "b/m").stamp() for r in rows}
    assert len(stamps) == len(rows)
    assert None not in stamps
    bare = {"name": "b/m/x", "size": 3, "type": "file"}
    assert folders.RemoteFolder("s3://b/m", Versioned([row, bare]), "b/m").stamp() is None


def test_a_remote_checkpoint_that_changes_publishes_nothing(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    root = f"/{folder.name}/model"
    memory.put(f"{folder / 'model'}/", root, recursive=True)
    model = opened(folder, f"memory:/{root}")
    model.weights_digest()
    memory.put(str(folder / "other" / WEIGHTS), f"{root}/{WEIGHTS}")
    with pytest.raises(CheckpointError, match="has changed since the checkpoint was hashed"):
        ensure_weights(store(folder), model, specs(model)[0])
    assert not files(folder)


def test_an_s3_checkpoint_that_changes_publishes_nothing(folder: Path, s3: S3Server) -> None:
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}/model"
    bucket = fsspec.filesystem("s3", **s3.options)
    bucket.put(f"{folder / 'model'}/", url, recursive=True)
    checkpoint = open_checkpoint(url, s3.options)
    assert checkpoint.stamp is not None
    assert checkpoint.stamp == checkpoint.stamp_now()
    model = replace(opened(folder), checkpoint=checkpoint, _texts={}, _hashes={})
    cache = HostCache(folder / "cache")
    assert model.weights_digest(cache) == opened(folder).weights_digest()
    bucket.put(str(folder / "other" / WEIGHTS), f"{url}/{WEIGHTS}")
    assert checkpoint.stamp_now() != checkpoint.stamp
    with pytest.raises(CheckpointError, match="has changed since the checkpoint was hashed"):
        ensure_weights(store(folder), model, specs(model)[0], cache)
    assert not files(folder)


def test_prebuild_tells_of_a_checkpoint_that_changed(folder: Path) -> None:
    model = opened(folder)
    cells = expand(model.spec, model.family, model.info, {})
    for cell in cells:
        store(folder).put(make_artifact(cell.spec))
    model.weights_digest()
    overwrite(folder / "model" / WEIGHTS, folder / "other" / WEIGHTS)
    place = StoreSpec(str(folder / "store"), str(folder / "cache"))
    report = prebuild(cells, [model], place, BuildLimits(), None, lambda _: None, lambda _: None)
    assert report.failed == len(cells) == 2
    for kind, message in report.weights:
        assert kind == "CheckpointError"
        assert "has changed since the checkpoint was hashed" in message
    assert not [p for p in files(folder) if "weights" in p.parts]
