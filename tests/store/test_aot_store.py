"""The store on each file system, and what only some file systems can get wrong."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx_ray.config.schema import StoreSpec
from rlx_ray.errors import ConfigError, StoreError
from rlx_ray.store import AotStore, Hit, Miss, check_shared, open_store
from rlx_ray.store.fs import FsspecFiles
from tests.store.conformance import Place, StoreConformance, assert_whole, check_damage
from tests.support.s3 import BUCKET, S3Server
from tests.support.specs import make_artifact, make_spec, make_weights

ROOT = Path(__file__).parents[2]


class TestLocal(StoreConformance):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return Place(f"file://{tmp_path}/a store")


class TestMemory(StoreConformance):
    @pytest.fixture
    def place(self) -> Place:
        return Place(f"memory://{uuid.uuid4().hex}")


class TestS3(StoreConformance):
    @pytest.fixture
    def place(self, s3: S3Server) -> Place:
        return Place(f"s3://{BUCKET}/{uuid.uuid4().hex}", s3.options)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_damage_of_any_kind_gives_a_wrong_answer(data: st.DataObject) -> None:
    check_damage(Place(f"memory://{uuid.uuid4().hex}"), data)


def test_a_missing_bucket_names_the_remedy(s3: S3Server) -> None:
    store = AotStore("s3://no-such-bucket/store", s3.options)
    assert isinstance(store.lookup(make_spec()), Miss)
    assert store.present([make_spec()])[make_spec().digest] == store.lookup(make_spec())
    with pytest.raises(StoreError, match=r"no-such-bucket.*bucket"):
        store.put(make_artifact())


def test_wrong_credentials_name_the_remedy(s3: S3Server) -> None:
    store = AotStore(f"s3://{BUCKET}/x", {**s3.options, "secret": "wrong"})
    found = store.lookup(make_spec())
    assert isinstance(found, Miss)
    assert found.kind == "unreachable"
    with pytest.raises(StoreError, match="credentials"):
        store.put(make_artifact())


def test_a_silent_server_is_unreachable_and_not_absent() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses at once
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        options = (("key", "k"), ("secret", "s"), ("client_kwargs", (("endpoint_url", endpoint),)))
        store = open_store("s3://bucket/store", options)
        found = store.lookup(make_spec())
        assert isinstance(found, Miss)
        assert found.kind == "unreachable"
        with pytest.raises(StoreError, match="server"):
            store.put(make_artifact())
        with pytest.raises(StoreError):
            store.present([make_spec()])
        weights = store.find_weights(make_weights()[0].key)
        assert isinstance(weights, Miss)
        assert weights.kind == "unreachable"


def test_a_path_below_a_file_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = AotStore(f"{tmp_path}/file/store")
    with pytest.raises(StoreError, match=r"file/store.*remove it or name another store"):
        store.put(make_artifact())


def test_a_read_only_store_reports_damage_and_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(f"memory://{uuid.uuid4().hex}")
    store, artifact = place.store(), make_artifact()
    store.put(artifact)
    (path,) = place.files("manifests")
    place.write(path, b"{")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError("read only")

    fs = fsspec.filesystem("memory")
    for name in ("pipe_file", "cp_file", "rm_file"):
        monkeypatch.setattr(fs, name, refuse)
    found = store.lookup(artifact.manifest.spec)
    assert isinstance(found, Miss)
    assert found.kind == "damaged"
    assert "It stays there" in found.reason
    with pytest.raises(StoreError, match=r"memory://.*Give this user access"):
        store.put(artifact)
    monkeypatch.undo()
    assert place.read(path) == b"{"


def test_put_works_where_there_is_no_conditional_create(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    whole = fs.pipe_file

    def plain(path: str, value: bytes, mode: str = "overwrite") -> None:
        if mode != "overwrite":
            raise NotImplementedError
        whole(path, value)

    monkeypatch.setattr(fs, "pipe_file", plain)
    store, artifact = AotStore(f"memory://{uuid.uuid4().hex}"), make_artifact()
    assert store.put(artifact) is True
    assert store.put(artifact) is False
    assert_whole(store, artifact)


def test_put_tries_again_when_another_create_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    whole = fs.pipe_file
    conflicts = [OSError(errno.EBUSY, "conflict")] * 2

    def busy(path: str, value: bytes, mode: str = "overwrite") -> None:
        if mode == "create" and conflicts:
            raise conflicts.pop()
        whole(path, value, mode=mode)

    monkeypatch.setattr(fs, "pipe_file", busy)
    store, artifact = AotStore(f"memory://{uuid.uuid4().hex}"), make_artifact()
    assert store.put(artifact) is True
    assert conflicts == []
    assert_whole(store, artifact)


def test_put_works_on_a_disk_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", refuse)
    store, artifact = AotStore(str(tmp_path)), make_artifact()
    assert store.put(artifact) is True
    assert store.put(artifact) is False
    assert_whole(store, artifact)


def test_a_repeated_plan_lists_twice_and_reads_only_what_matches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = AotStore(f"memory://{uuid.uuid4().hex}")
    specs = [make_spec(seq=16 * n) for n in range(1, 9)]
    for spec in specs[:3]:
        store.put(make_artifact(spec))
    calls: list[str] = []
    for name in ("read", "list", "size"):
        kept = getattr(FsspecFiles, name)

        def counted(self: FsspecFiles, path: str, kept: Any = kept, name: str = name) -> Any:
            calls.append(name)
            return kept(self, path)

        monkeypatch.setattr(FsspecFiles, name, counted)
    found = store.present(specs)
    assert sum(isinstance(f, Hit) for f in found.values()) == 3
    assert sorted(calls) == ["list"] * 2 + ["read"] * 3
    calls.clear()
    store.present([make_spec(model="nothing-there")])
    assert calls == ["list"]


def test_unknown_and_missing_protocols_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 's3'"):
        open_store("s33://bucket")
    with pytest.raises(ConfigError, match="empty"):
        open_store("")


def test_a_protocol_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(protocol: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    with pytest.raises(ConfigError, match=r"pip install 'rlx_ray\[s3\]'"):
        open_store("s3://bucket")
    with pytest.raises(ConfigError, match=r"pip install 'rlx_ray\[gcs\]'"):
        open_store("gs://bucket")


def test_a_store_of_one_host_is_refused_for_several_nodes() -> None:
    check_shared(StoreSpec("file:///a", "c"), 1)
    check_shared(StoreSpec("s3://a", "c"), 9)
    check_shared(StoreSpec("/a", "c", shared=True), 2)
    for url in ("file:///a", "/a", "a", "local:///a"):
        with pytest.raises(ConfigError, match="shared: true"):
            check_shared(StoreSpec(url, "c"), 2)
    with pytest.raises(ConfigError, match="memory"):
        check_shared(StoreSpec("memory://a", "c", shared=True), 2)


def test_a_killed_put_leaves_nothing_or_all(tmp_path: Path) -> None:
    """A child is killed before each system call of a put, and within each write."""
    steps = _child("kill-put", str(tmp_path))
    assert int(steps) > 15
    _assert_all_or_nothing(tmp_path, int(steps), before="absent")


def test_a_killed_repair_leaves_nothing_or_all(tmp_path: Path) -> None:
    steps = _child("kill-repair", str(tmp_path))
    assert int(steps) > 10
    _assert_all_or_nothing(tmp_path, int(steps), before="damaged")


def _assert_all_or_nothing(folder: Path, steps: int, before: str) -> None:
    artifact = make_artifact()
    outcomes = []
    for step in range(1, steps + 1):
        store = AotStore(f"{folder}/{step}")
        found = store.lookup(artifact.manifest.spec)
        if isinstance(found, Hit):
            assert_whole(store, artifact)
        else:
            assert found.kind in ("absent", before), found
        outcomes.append(isinstance(found, Hit))
        assert not [row for row in store.verify(deep=True) if row.status == "damaged" != before]
        store.put(artifact)
        assert_whole(store, artifact)
    assert outcomes == sorted(outcomes), "once published, an artifact stays"
    assert outcomes[0] is False


def test_two_processes_publish_exactly_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.store_child", "put", str(tmp_path)]
    children = [
        subprocess.Popen([*command, str(n)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for n in range(2)
    ]
    said = [child.communicate(timeout=60)[0].split() for child in children]
    published = [words.count("True") for words in said]
    assert [len(words) for words in said] == [20, 20]
    assert sum(published) == 20
    store = AotStore(f"{tmp_path}/store")
    assert len(list(store.entries())) == 20
    assert {row.status for row in store.verify(deep=True)} <= {"ok", "orphan"}


def _child(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.support.store_child", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
