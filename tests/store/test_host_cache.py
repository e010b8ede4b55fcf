"""The host's cache: what it admits, what it notices, and who may read it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from rlx_ray.artifact.manifest import Artifact, BlobRef
from rlx_ray.digest import sha256_hex
from rlx_ray.errors import ArtifactError, StoreError
from rlx_ray.store import AotStore, HostCache
from tests.support.specs import make_artifact, make_spec

ROOT = Path(__file__).parents[2]


class CountingStore(AotStore):
    """A store that counts how often a blob is read."""

    reads = 0

    def read_blob(self, ref: BlobRef) -> bytes:
        self.reads += 1
        return super().read_blob(ref)


@pytest.fixture
def store() -> CountingStore:
    made = CountingStore(f"memory://{uuid.uuid4().hex}")
    made.put(make_artifact())
    return made


@pytest.fixture
def artifact() -> Artifact:
    return make_artifact()


@pytest.fixture
def cache(tmp_path: Path) -> HostCache:
    return HostCache(tmp_path / "cache")


def test_a_blob_is_fetched_once(cache: HostCache, store: CountingStore, artifact: Artifact) -> None:
    ref = artifact.manifest.blob("code")
    assert cache.cached(ref) is None
    path = cache.path(ref, store)
    assert path.read_bytes() == artifact.blobs[0]
    assert cache.path(ref, store) == path == cache.cached(ref)
    assert HostCache(cache.folder).path(ref, store) == path
    assert store.reads == 1


def test_only_its_user_may_read_it(
    cache: HostCache, store: CountingStore, artifact: Artifact
) -> None:
    path = cache.path(artifact.manifest.blob("code"), store)
    cache.keep_copy("name", b"{}")
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    for file in cache.folder.rglob("*"):
        if file.is_file():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    cache.folder.chmod(0o755)
    HostCache(cache.folder)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    path.chmod(0o644)
    assert cache.cached(artifact.manifest.blob("code")) is None


def test_a_folder_of_another_user_is_refused(
    cache: HostCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(StoreError, match=r"belongs to user.*cache_dir"):
        HostCache(cache.folder)


@pytest.mark.parametrize("role", ["code", "pool"])
def test_altered_code_is_noticed_even_under_a_true_stamp(
    cache: HostCache, store: CountingStore, artifact: Artifact, role: str
) -> None:
    ref = artifact.manifest.blob(role)
    path = cache.path(ref, store)
    good, was = path.read_bytes(), path.stat()
    with path.open("r+b") as file:  # the same inode and size, and the old time put back
        file.write(bytes([good[0] ^ 1]))
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert cache.cached(ref) is None
    assert cache.path(ref, store).read_bytes() == good
    assert store.reads == 2


@pytest.mark.parametrize("change", ["content", "time", "inode", "size", "stamp", "link"])
def test_a_stamp_that_does_not_fit_discards_the_file(
    cache: HostCache, store: CountingStore, artifact: Artifact, change: str, tmp_path: Path
) -> None:
    ref = artifact.manifest.blob("text")  # not hashed at every use: the stamp alone protects it
    path = cache.path(ref, store)
    good = path.read_bytes()
    match change:
        case "content":
            path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
        case "time":
            os.utime(path, ns=(0, 0))
        case "inode":
            path.rename(tmp_path / "was")
            path.write_bytes(good)
            path.chmod(0o600)
        case "size":
            path.write_bytes(good + b"x")
        case "stamp":
            path.with_name(path.name + ".stamp").write_bytes(b"torn")
        case "link":
            path.rename(tmp_path / "was")
            path.symlink_to(tmp_path / "was")
        case _:
            raise AssertionError(change)
    assert cache.cached(ref) is None
    assert cache.path(ref, store).read_bytes() == good
    assert not path.is_symlink()
    assert store.reads == 2


def test_wrong_bytes_are_not_admitted(cache: HostCache, artifact: Artifact) -> None:
    ref = artifact.manifest.blob("code")
    with pytest.raises(ArtifactError, match="not its own"):
        cache.admit(ref, b"other")
    assert cache.cached(ref) is None
    assert cache.admit(ref, artifact.blobs[0]).read_bytes() == artifact.blobs[0]


def test_a_blob_name_cannot_lead_out_of_the_cache(cache: HostCache) -> None:
    with pytest.raises(ArtifactError, match="sha256"):
        cache.cached(BlobRef("code", "../../../etc/passwd", 1))


def test_verify_hashes_what_a_load_does_not(
    cache: HostCache, store: CountingStore, artifact: Artifact
) -> None:
    ref = artifact.manifest.blob("text")
    path = cache.path(ref, store)
    cache.path(artifact.manifest.blob("code"), store)
    was = path.stat()
    with path.open("r+b") as file:
        file.write(b"\x00")
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert cache.cached(ref) is not None
    rows = {row.path.rpartition("/")[2]: row.status for row in cache.verify()}
    assert rows == {ref.sha256: "damaged", artifact.manifest.blob("code").sha256: "ok"}
    assert cache.cached(ref) is None
    assert [row.status for row in cache.verify()] == ["ok"]


def test_a_place_that_cannot_be_a_folder_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="use the cache"):
        HostCache(tmp_path / "file" / "cache")


def test_two_processes_admit_at_once(tmp_path: Path) -> None:
    store = AotStore(f"{tmp_path}/store")
    for seq in range(1, 21):
        store.put(make_artifact(make_spec(seq=seq), blobs={"code": f"{seq}".encode() * 50_000}))
    command = [sys.executable, "-m", "tests.support.store_child", "cache", str(tmp_path)]
    children = [
        subprocess.Popen([*command, str(n)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for n in range(2)
    ]
    said = [child.communicate(timeout=60)[0].split() for child in children]
    assert said == [["True"] * 20] * 2
    blobs = [p for p in (tmp_path / "cache" / "blobs").glob("??/*") if p.suffix != ".stamp"]
    assert sorted(sha256_hex(p.read_bytes()) for p in blobs) == sorted(p.name for p in blobs)
    assert len(blobs) == 20
