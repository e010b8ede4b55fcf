"""Store and host cache together: who decides, who delivers."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from rlx_ray.errors import StoreError
from rlx_ray.store import AotStore, Fetched, FetchedWeights, HostCache, Miss, TieredStore
from tests.store.conformance import Place, blob_of, manifest_of
from tests.support.specs import make_artifact, make_spec, make_weights


@pytest.fixture
def place() -> Place:
    return Place(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def tiered(place: Place, tmp_path: Path) -> TieredStore:
    return TieredStore(place.store(), HostCache(tmp_path))


def _cut_off(tiered: TieredStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, path: str) -> bytes:
        raise StoreError("no answer.")

    monkeypatch.setattr("rlx_ray.store.fs.FsspecFiles.read", refuse)


def test_the_first_fetch_is_from_the_store_the_next_from_disk(
    tiered: TieredStore,
) -> None:
    artifact = make_artifact()
    tiered.store.put(artifact)
    tiers = []
    for _ in range(2):
        found = tiered.fetch(make_spec())
        assert isinstance(found, Fetched)
        assert found.manifest == artifact.manifest
        assert [p.read_bytes() for p in found.paths.values()] == list(artifact.blobs)
        assert list(found.paths) == ["code", "pool", "text"]
        assert found.note == ""
        tiers.append(found.tier)
    assert tiers == ["store", "disk"]


def test_only_the_store_decides_what_is_present(tiered: TieredStore, place: Place) -> None:
    artifact = make_artifact()
    tiered.store.put(artifact)
    assert isinstance(tiered.fetch(make_spec()), Fetched)
    place.remove(manifest_of(artifact))
    found = tiered.fetch(make_spec())
    assert isinstance(found, Miss)
    assert found.kind == "absent"


def test_a_warm_disk_stands_in_for_a_store_that_does_not_answer(
    tiered: TieredStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = make_artifact()
    manifest, data = make_weights()
    key = manifest.key
    tiered.store.put(artifact)
    tiered.store.put_weights(manifest, data)
    tiered.fetch(make_spec())
    tiered.fetch_weights(key)
    _cut_off(tiered, monkeypatch)
    found = tiered.fetch(make_spec())
    assert isinstance(found, Fetched)
    assert found.manifest == artifact.manifest
    assert found.tier == "disk"
    assert "no answer" in found.note
    weights = tiered.fetch_weights(key)
    assert isinstance(weights, FetchedWeights)
    assert weights.path.read_bytes() == data
    assert "no answer" in weights.note


def test_a_cold_or_altered_disk_does_not(
    tiered: TieredStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiered.store.put(make_artifact())
    tiered.store.put(make_artifact(make_spec(seq=32)))
    tiered.fetch(make_spec())
    _cut_off(tiered, monkeypatch)
    cold = tiered.fetch(make_spec(seq=32))
    assert isinstance(cold, Miss)
    assert cold.kind == "unreachable"
    (copy,) = (tiered.cache.folder / "manifests").iterdir()
    good = copy.read_bytes()
    copy.write_bytes(good.replace(b'"offset":', b'"offset":1', 1))
    assert isinstance(tiered.fetch(make_spec()), Miss)
    copy.write_bytes(good)
    assert isinstance(tiered.fetch(make_spec()), Fetched)
    path = next(p for p in (tiered.cache.folder / "blobs").glob("??/*") if p.suffix != ".stamp")
    path.unlink()
    found = tiered.fetch(make_spec())
    assert isinstance(found, Miss)
    assert found.kind == "unreachable"


def test_a_blob_altered_in_the_store_is_a_miss(tiered: TieredStore, place: Place) -> None:
    artifact = make_artifact()
    tiered.store.put(artifact)
    place.write(blob_of(artifact), b"x" * len(artifact.blobs[0]))
    found = tiered.fetch(make_spec())
    assert isinstance(found, Miss)
    assert found.kind == "damaged"
    assert tiered.store.put(artifact) is True
    assert isinstance(tiered.fetch(make_spec()), Fetched)


def test_weights_are_fetched_once_for_all_variants(tiered: TieredStore) -> None:
    manifest, data = make_weights()
    key = manifest.key
    assert isinstance(tiered.fetch_weights(key), Miss)
    tiered.store.put_weights(manifest, data)
    tiers = []
    for _ in range(2):
        found = tiered.fetch_weights(key)
        assert isinstance(found, FetchedWeights)
        assert found.manifest == manifest
        assert found.path.read_bytes() == data
        tiers.append(found.tier)
    assert tiers == ["store", "disk"]


def test_pull_fills_the_cache(tiered: TieredStore) -> None:
    specs = [make_spec(seq=16 * n) for n in range(1, 5)]
    for spec in specs[:3]:
        tiered.store.put(make_artifact(spec, blobs={"code": spec.digest.encode()}))
    pulled = list(tiered.pull(specs))
    assert [spec for spec, _ in pulled] == specs
    assert [isinstance(found, Fetched) for _, found in pulled] == [True] * 3 + [False]
    for spec in specs[:3]:
        found = tiered.fetch(spec)
        assert isinstance(found, Fetched)
        assert found.tier == "disk"


def test_a_cache_that_cannot_be_written_is_a_miss(tmp_path: Path, place: Place) -> None:
    store: AotStore = place.store()
    store.put(make_artifact())
    cache = HostCache(tmp_path / "cache")
    (cache.folder / "locks").touch()
    found = TieredStore(store, cache).fetch(make_spec())
    assert isinstance(found, Miss)
    assert "cache" in found.reason
