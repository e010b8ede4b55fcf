"""What every store must do. A file system's test class inherits it and says where to put one."""

from __future__ import annotations

import contextlib
import copy
import json
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlx_ray.artifact.manifest import Artifact
from rlx_ray.digest import sha256_hex
from rlx_ray.errors import ArtifactError, ConfigError
from rlx_ray.spec import BuildSpec
from rlx_ray.store import AotStore, Hit, Lookup, Miss
from rlx_ray.store.base import manifest_path
from rlx_ray.target import target
from tests.support.specs import make_artifact, make_spec, make_weights

_SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]
_BLOBS = st.fixed_dictionaries(
    {"code": st.binary(max_size=4096)},
    optional={"pool": st.binary(max_size=512), "text": st.binary(max_size=512)},
)


@dataclass(frozen=True)
class Place:
    """A store's root, and the raw files below it, seen past the code under test."""

    url: str
    options: dict[str, object] = field(default_factory=dict)

    def store(self) -> AotStore:
        return AotStore(self.url, self.options)

    def beside(self) -> Place:
        return Place(f"{self.url}-{uuid.uuid4().hex[:8]}", self.options)

    def read(self, path: str) -> bytes:
        fs, root = self._raw()
        return bytes(fs.cat_file(f"{root}/{path}"))

    def write(self, path: str, data: bytes) -> None:
        fs, root = self._raw()
        fs.pipe_file(f"{root}/{path}", data)

    def remove(self, path: str) -> None:
        fs, root = self._raw()
        fs.rm_file(f"{root}/{path}")

    def files(self, folder: str = "") -> list[str]:
        fs, root = self._raw()
        fs.invalidate_cache()
        found = fs.find(f"{root}/{folder}".rstrip("/"))
        return sorted(path.removeprefix(f"{root}/") for path in found)

    def _raw(self) -> tuple[fsspec.AbstractFileSystem, str]:
        fs, root = fsspec.core.url_to_fs(self.url, **self.options, use_listings_cache=False)
        return fs, root.rstrip("/")


def manifest_of(artifact: Artifact) -> str:
    spec = artifact.manifest.spec
    return f"manifests/{spec.model}/{spec.store_name}.json"


def blob_of(artifact: Artifact, role: str = "code") -> str:
    sha256 = artifact.manifest.blob(role).sha256
    return f"blobs/{sha256[:2]}/{sha256}"


def assert_miss(found: Lookup, kind: str, *words: str) -> None:
    assert isinstance(found, Miss), found
    assert found.kind == kind, found
    for word in words:
        assert word in found.reason


def assert_whole(store: AotStore, artifact: Artifact) -> None:
    found = store.lookup(artifact.manifest.spec)
    assert isinstance(found, Hit), found
    assert [store.read_blob(ref) for ref in found.manifest.blobs] == list(artifact.blobs)


class StoreConformance:
    """Inherit it, and give a fixture `place`: an empty Place for each test."""

    def test_what_was_put_is_found_and_read_back(self, place: Place) -> None:
        store, artifact = place.store(), make_artifact()
        assert_miss(store.lookup(artifact.manifest.spec), "absent", manifest_of(artifact))
        assert store.put(artifact) is True
        assert store.lookup(artifact.manifest.spec) == Hit(artifact.manifest)
        assert_whole(place.store(), artifact)

    def test_a_second_put_publishes_nothing(self, place: Place) -> None:
        store, artifact = place.store(), make_artifact()
        assert store.put(artifact) is True
        before = place.files()
        assert store.put(artifact) is False
        slower = make_artifact(seconds=9.0)
        assert place.store().put(slower) is False
        assert place.files() == before
        assert store.lookup(artifact.manifest.spec) == Hit(artifact.manifest)

    def test_every_compilation_mode_finds_the_same_artifact(self, place: Place) -> None:
        store = place.store()
        store.put(make_artifact(make_spec(mode="lazy")))
        for mode in ("eager", "lazy", "aot"):
            assert isinstance(store.lookup(make_spec(mode=mode)), Hit)
            assert store.put(make_artifact(make_spec(mode=mode))) is False

    def test_concurrent_puts_publish_exactly_one(self, place: Place) -> None:
        artifacts = [make_artifact(blobs={"code": bytes([n]) * 999}) for n in range(6)]
        with ThreadPoolExecutor(6) as pool:
            published = list(pool.map(lambda a: place.store().put(a), artifacts))
        assert sum(published) == 1
        assert_whole(place.store(), artifacts[published.index(True)])
        assert len(place.files("manifests")) == 1

    def test_bytes_that_are_not_the_manifests_are_refused(self, place: Place) -> None:
        good = make_artifact()
        with pytest.raises(ArtifactError, match="code"):
            place.store().put(Artifact(good.manifest, (b"other", *good.blobs[1:])))
        assert place.files() == []

    def test_a_model_name_cannot_leave_its_folder(self, place: Place) -> None:
        with pytest.raises(ConfigError, match="model name"):
            place.store().lookup(make_spec(model="../other"))

    def test_a_truncated_blob_is_a_miss_and_put_heals_it(self, place: Place) -> None:
        store, artifact = _published(place)
        place.write(blob_of(artifact), artifact.blobs[0][:-1])
        assert _damaged(store) == [blob_of(artifact), manifest_of(artifact)]
        assert_miss(store.lookup(artifact.manifest.spec), "damaged", "code", "bytes")
        assert len(place.files("quarantine")) == 1
        _heals(store, artifact)

    def test_an_altered_blob_is_not_read_and_put_heals_it(self, place: Place) -> None:
        store, artifact = _published(place)
        place.write(blob_of(artifact), _flipped(artifact.blobs[0]))
        assert _damaged(store, deep=True) == [blob_of(artifact)]
        with pytest.raises(ArtifactError, match="quarantine"):
            store.read_blob(artifact.manifest.blob("code"))
        assert_miss(store.lookup(artifact.manifest.spec), "damaged", "missing")
        assert len(place.files("quarantine")) == 1
        _heals(store, artifact)

    def test_put_finds_an_altered_blob_that_nobody_has_read(self, place: Place) -> None:
        store, artifact = _published(place)
        place.write(blob_of(artifact), _flipped(artifact.blobs[0]))
        _heals(store, artifact)

    def test_a_missing_blob_is_a_miss_and_put_heals_it(self, place: Place) -> None:
        store, artifact = _published(place)
        place.remove(blob_of(artifact))
        assert _damaged(store) == [manifest_of(artifact)]
        assert_miss(store.lookup(artifact.manifest.spec), "damaged", "missing", "code")
        with pytest.raises(ArtifactError, match="missing"):
            store.read_blob(artifact.manifest.blob("code"))
        _heals(store, artifact)

    def test_one_put_of_a_shared_blob_heals_all_that_name_it(self, place: Place) -> None:
        store, first = _published(place)
        second = make_artifact(make_spec(seq=32), blobs={"code": b"two", "pool": first.blobs[1]})
        store.put(second)
        place.remove(blob_of(first, "pool"))
        assert isinstance(store.lookup(first.manifest.spec), Miss)
        assert isinstance(store.lookup(second.manifest.spec), Miss)
        store.put(first)
        assert_whole(store, second)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: b"",
            lambda data: data[: len(data) // 2],
            lambda data: data.replace(b'"offset":', b'"offset":1', 1),
            lambda data: data.replace(b'"model":"m"', b'"model":"n"', 1),
            lambda data: b"\xff" + data,
        ],
        ids=["empty", "torn", "altered binding", "altered name", "not text"],
    )
    def test_a_damaged_manifest_is_quarantined_and_put_heals_it(
        self, place: Place, damage: Callable[[bytes], bytes]
    ) -> None:
        store, artifact = _published(place)
        path = manifest_of(artifact)
        bad = damage(place.read(path))
        assert bad != place.read(path)
        place.write(path, bad)
        assert path in _damaged(store)
        assert_miss(store.lookup(artifact.manifest.spec), "damaged", path, "quarantine/")
        (moved,) = place.files("quarantine")
        assert place.read(moved) == bad
        assert_miss(store.lookup(artifact.manifest.spec), "absent")
        _heals(store, artifact)

    def test_a_manifest_of_another_spec_is_never_taken(self, place: Place) -> None:
        store, artifact = _published(place)
        other = make_artifact(make_spec(seq=64), blobs={"code": b"other"})
        store.put(other)
        place.write(manifest_of(artifact), place.read(manifest_of(other)))
        assert _damaged(store) == [manifest_of(artifact)]
        assert_miss(store.lookup(artifact.manifest.spec), "foreign", other.manifest.spec.digest)
        assert len(place.files("quarantine")) == 1
        assert_whole(store, other)
        _heals(store, artifact)

    def test_a_blob_name_cannot_lead_out_of_the_store(self, place: Place) -> None:
        store, artifact = _published(place)
        sha256 = artifact.manifest.blob("code").sha256
        value = json.loads(place.read(manifest_of(artifact)))
        value["blobs"][0]["sha256"] = "../../" + sha256[6:]
        del value["check"]
        place.write(manifest_of(artifact), _sealed(value))
        assert_miss(store.lookup(artifact.manifest.spec), "damaged", "not a sha256")

    def test_present_agrees_with_lookup_for_many(self, place: Place) -> None:
        store = place.store()
        specs = [make_spec(seq=16 * n) for n in range(1, 7)]
        arts = [make_artifact(s, blobs={"code": s.digest.encode()}) for s in specs[:5]]
        for artifact in arts:
            store.put(artifact)
        place.remove(blob_of(arts[1]))
        place.write(blob_of(arts[2]), b"short")
        place.write(manifest_of(arts[3]), b"{")
        found = store.present(specs)
        kinds = [f.kind if isinstance(f, Miss) else "hit" for f in map(found.get, _digests(specs))]
        assert kinds == ["hit", "damaged", "damaged", "damaged", "hit", "absent"]
        assert len(place.files("quarantine")) == 2
        assert store.present([]) == {}

    def test_present_takes_a_miss_of_one_of_two_models_for_both(self, place: Place) -> None:
        store, artifact = _published(place)
        twin = make_spec(model="twin")
        digest = artifact.manifest.spec.digest
        assert twin.digest == digest
        assert isinstance(store.present([artifact.manifest.spec, twin])[digest], Miss)
        assert isinstance(store.present([twin, artifact.manifest.spec])[digest], Miss)
        store.put(make_artifact(twin))
        assert isinstance(store.present([twin, artifact.manifest.spec])[digest], Hit)

    def test_listings_show_what_is_there(self, place: Place) -> None:
        store, artifact = _published(place)
        spec = artifact.manifest.spec
        store.put(make_artifact(make_spec(model="n", seq=32)))
        assert store.names("m") == (spec.store_name,)
        assert store.names("none") == ()
        (row,) = store.entries("m")
        assert row.to_json() == {
            "model": "m",
            "variant": "encoder:b1:s16",
            "target": "cpu-x86_64-v3",
            "cache_key": spec.component.cache_key_hex,
            "digest": spec.digest,
            "status": "present",
            "bytes": artifact.manifest.size,
            "seconds": artifact.manifest.build.seconds,
            "reason": "",
        }
        assert [e.model for e in store.entries()] == ["m", "n"]

    def test_listings_show_damage_and_leave_it(self, place: Place) -> None:
        store, artifact = _published(place)
        other = make_artifact(make_spec(seq=32), blobs={"code": b"two"})
        store.put(other)
        place.write(manifest_of(artifact), b"{")
        place.remove(blob_of(other))
        before = place.files()
        rows = {row.digest: row for row in store.entries()}
        assert [row.status for row in rows.values()] == ["damaged", "damaged"]
        assert "missing" in rows[other.manifest.spec.digest].reason
        assert artifact.manifest.spec.digest[:16] in rows
        assert place.files() == before

    def test_verify_passes_a_sound_store_and_names_orphans(self, place: Place) -> None:
        store, artifact = _published(place)
        manifest, data = make_weights()
        store.put_weights(manifest, data)
        for deep in (False, True):
            assert {row.status for row in store.verify(deep)} == {"ok"}
        place.remove(manifest_of(artifact))
        orphans = {row.path for row in store.verify() if row.status == "orphan"}
        assert orphans == {blob_of(artifact, role) for role in ("code", "pool", "text")}

    def test_weights_are_found_by_source_version_and_family(self, place: Place) -> None:
        store = place.store()
        manifest, data = make_weights()
        key = manifest.key
        assert _kind(store.find_weights(key)) == "absent"
        assert store.put_weights(manifest, memoryview(data)) is True
        assert store.put_weights(manifest, data) is False
        assert place.store().find_weights(key) == manifest
        assert store.read_blob(manifest.blob) == data
        assert _kind(store.find_weights(replace(key, source="0" * 64))) == "absent"
        assert _kind(store.find_weights(replace(key, packing="0" * 16))) == "absent"
        near = key.source[:16] + "f" * 48
        assert _kind(store.find_weights(replace(key, source=near))) == "foreign"

    def test_damaged_weights_are_a_miss_and_put_heals_them(self, place: Place) -> None:
        store = place.store()
        manifest, data = make_weights()
        key = manifest.key
        store.put_weights(manifest, data)
        (path,) = place.files("weights")
        place.write(path, place.read(path)[:-9])
        assert _kind(store.find_weights(key)) == "damaged"
        assert store.put_weights(manifest, data) is True
        place.write(f"blobs/{manifest.blob.sha256[:2]}/{manifest.blob.sha256}", data[1:])
        assert _kind(store.find_weights(key)) == "damaged"
        assert store.put_weights(manifest, data) is True
        assert store.find_weights(key) == manifest

    def test_another_build_under_a_key_is_named_with_its_reason(self, place: Place) -> None:
        store = place.store()
        store.put(make_artifact(make_spec(build_id="0" * 16)))
        store.put(make_artifact(make_spec(target=target("cpu-aarch64"))))
        miss = store.present([make_spec()])[make_spec().digest]
        assert isinstance(miss, Miss)
        assert miss.kind == "absent"
        assert miss.other == (
            "what the store has of it is another: build_id is 0000000000000000, wanted is "
            "0123456789abcdef: another version of this package's compiler."
        )

    def test_another_target_under_the_same_key_is_no_other_build(self, place: Place) -> None:
        store = place.store()
        store.put(make_artifact(make_spec(target=target("cpu-aarch64"))))
        miss = store.present([make_spec()])[make_spec().digest]
        assert isinstance(miss, Miss)
        assert miss.other == ""

    def test_what_another_version_wrote_is_foreign_and_stays(self, place: Place) -> None:
        store = place.store()
        store.put(make_artifact(make_spec(seq=32)))
        path = manifest_path("m", f"{make_spec().store_name[:-16]}{'0' * 16}")
        place.write(path, b'{"format":"rlx-artifact/1","spec":{}}')
        miss = store.present([make_spec()])[make_spec().digest]
        assert isinstance(miss, Miss)
        assert "another version of rlx_ray built" in miss.other
        assert "'rlx-artifact/1'" in miss.other
        assert sorted(e.status for e in store.entries()) == ["foreign", "present"]
        rows = [r.status for r in store.verify(deep=True) if r.kind == "manifest"]
        assert sorted(rows) == ["foreign", "ok"]
        assert path in place.files("manifests")

    def test_a_store_can_be_sent_to_another_process(self, place: Place) -> None:
        store, artifact = _published(place)
        sent = copy.copy(store)  # by way of __reduce__, which is all that a sender keeps
        assert sent.url == store.url
        assert_whole(sent, artifact)

    @settings(max_examples=12, deadline=None, suppress_health_check=_SHARED)
    @given(blobs=_BLOBS)
    def test_any_bytes_survive(self, place: Place, blobs: dict[str, bytes]) -> None:
        store, artifact = place.beside().store(), make_artifact(blobs=blobs)
        assert store.put(artifact) is True
        assert store.put(artifact) is False
        assert_whole(store, artifact)

    @settings(max_examples=6, deadline=None, suppress_health_check=_SHARED)
    @given(data=st.data())
    def test_no_damage_gives_a_wrong_answer(self, place: Place, data: st.DataObject) -> None:
        check_damage(place.beside(), data)


def check_damage(place: Place, data: st.DataObject) -> None:
    """Damage one file of a store in any way: the right bytes, a Miss or an ArtifactError."""
    store, artifact = _published(place)
    path = data.draw(st.sampled_from(place.files()))
    place.write(path, data.draw(_damages(place.read(path))))
    found = store.lookup(artifact.manifest.spec)
    if isinstance(found, Hit):
        assert found.manifest == artifact.manifest
        for ref, blob in zip(found.manifest.blobs, artifact.blobs, strict=True):
            with contextlib.suppress(ArtifactError):
                assert store.read_blob(ref) == blob
    _heals(store, artifact)


def _published(place: Place) -> tuple[AotStore, Artifact]:
    store, artifact = place.store(), make_artifact()
    assert store.put(artifact) is True
    return store, artifact


def _heals(store: AotStore, artifact: Artifact) -> None:
    store.put(artifact)
    assert_whole(store, artifact)
    assert {row.status for row in store.verify(deep=True)} <= {"ok", "orphan"}


def _damaged(store: AotStore, deep: bool = False) -> list[str]:
    return sorted(row.path for row in store.verify(deep) if row.status == "damaged")


def _digests(specs: list[BuildSpec]) -> list[str]:
    return [spec.digest for spec in specs]


def _kind(found: object) -> str:
    return found.kind if isinstance(found, Miss) else "found"


def _flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def _sealed(value: dict[str, object]) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return json.dumps({**value, "check": sha256_hex(text.encode())}).encode()


def _damages(data: bytes) -> st.SearchStrategy[bytes]:
    place = st.integers(0, max(len(data) - 1, 0))
    return st.one_of(
        place.map(lambda n: data[:n]),
        st.tuples(place, st.integers(1, 255)).map(
            lambda at: data[: at[0]] + bytes([data[at[0]] ^ at[1]]) + data[at[0] + 1 :]
        ),
        st.binary(max_size=64),
        st.binary(min_size=1, max_size=8).map(lambda tail: data + tail),
    )
