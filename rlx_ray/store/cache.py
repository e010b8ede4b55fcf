"""The host's cache of verified blobs, shared by the processes of one user.

::

    <folder>/blobs/<sha256[:2]>/<sha256>          the bytes, 0600
    <folder>/blobs/<sha256[:2]>/<sha256>.stamp    size, inode and mtime_ns when they were hashed
    <folder>/manifests/<name>.json                copies for a host that has lost its store
    <folder>/locks/<sha256[:2]>                   one process at a time admits a blob

A blob is hashed when it is admitted. Each use compares the stamp; blobs that are run as code are
hashed again. The cache never decides whether an artifact is present: only the store does.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlx_ray.artifact.manifest import BlobRef
from rlx_ray.digest import canonical_json, sha256_hex
from rlx_ray.errors import ArtifactError, StoreError
from rlx_ray.store.base import Store, VerifyRow, blob_path
from rlx_ray.store.files import TEMPORARY, local_errors, replace_file, stage

HASHED_ROLES = frozenset({"code", "pool"})
"""Roles whose blobs are run as code: small, and hashed at every use."""

_STAMP = ".stamp"


class HostCache:
    """Verified blobs in a private folder of this host.

    Args:
        folder: made with mode 0700 if it is not there.

    Raises:
        StoreError: the folder cannot be made, or belongs to another user.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser().absolute()
        with local_errors("use the cache", self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.folder.stat()
            if found.st_uid != os.geteuid():
                raise StoreError(
                    f"cache folder {self.folder} belongs to user {found.st_uid}.",
                    "Name another folder in store.cache_dir: what is in it is run as code.",
                )
            if stat.S_IMODE(found.st_mode) != 0o700:
                self.folder.chmod(0o700)

    def cached(self, ref: BlobRef) -> Path | None:
        """The path of a blob that is here and passes its checks; never asks the store."""
        path = self._path(ref.sha256)
        with local_errors("read the cache", path):
            return path if self._sound(path, ref) else None

    def path(self, ref: BlobRef, store: Store) -> Path:
        """A local path of a verified blob, fetched from the store if need be.

        A cached blob that fails its checks is discarded. Of several processes one fetches and the
        others wait for it.

        Raises:
            ArtifactError: the store's blob is missing or altered.
            StoreError: the store cannot be reached, or the cache cannot be written.
        """
        found = self.cached(ref)
        if found is not None:
            return found
        with self._locked(ref.sha256):
            return self.cached(ref) or self._write(ref, store.read_blob(ref))

    def admit(self, ref: BlobRef, data: bytes) -> Path:
        """Put a blob's bytes into the cache.

        Raises:
            ArtifactError: they are not the blob's.
            StoreError: the cache cannot be written.
        """
        with self._locked(ref.sha256):
            return self.cached(ref) or self._write(ref, data)

    def keep_copy(self, name: str, data: bytes) -> None:
        """Keep the copy of a manifest; the name has no folder and no ending."""
        path = self._copy(name)
        if self.copy(name) != data:
            with local_errors("write the cache", path):
                replace_file(path, data, 0o600)

    def copy(self, name: str) -> bytes | None:
        """The copy of a manifest. Whoever reads it checks that it is what was asked for."""
        path = self._copy(name)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(handle, "rb") as file:
                return file.read() if _private(os.fstat(handle)) else None
        except OSError:
            return None

    def verify(self) -> Iterator[VerifyRow]:
        """Hash every blob again and discard those that are not what they were."""
        for path in sorted((self.folder / "blobs").glob("??/*")):
            if path.suffix == _STAMP or path.name.startswith(TEMPORARY):
                continue
            name = path.relative_to(self.folder).as_posix()
            with local_errors("read the cache", path), self._locked(path.name):
                if not path.exists():
                    continue
                if self._sound(path, BlobRef("code", path.name, path.stat().st_size)):
                    yield VerifyRow(name, "blob", "ok")
                    continue
                self._discard(path)
            yield VerifyRow(name, "blob", "damaged", "its stamp or sha256 is wrong: discarded")

    def _path(self, sha256: str) -> Path:
        return self.folder / blob_path(sha256)

    def _copy(self, name: str) -> Path:
        return self.folder / "manifests" / f"{name}.json"

    def _sound(self, path: Path, ref: BlobRef) -> bool:
        try:
            found = path.lstat()
            stamp = _stamp_path(path).read_bytes()
        except FileNotFoundError:
            return False
        if not _private(found) or found.st_size != ref.size or stamp != _stamp(found):
            return False
        return ref.role not in HASHED_ROLES or sha256_hex(path.read_bytes()) == ref.sha256

    def _write(self, ref: BlobRef, data: bytes) -> Path:
        """Hash, stage, stamp, rename: a process killed at any point leaves no stamped bad blob."""
        if len(data) != ref.size or sha256_hex(data) != ref.sha256:
            raise ArtifactError(f"the bytes of blob {ref.sha256} ({ref.role}) are not its own.")
        path = self._path(ref.sha256)
        with local_errors("write the cache", path):
            self._discard(path)
            temp = stage(path, data, 0o600)
            replace_file(_stamp_path(path), _stamp(temp.lstat()), 0o600)
            os.replace(temp, path)
        return path

    def _discard(self, path: Path) -> None:
        _stamp_path(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, sha256: str) -> Iterator[None]:
        path = self.folder / "locks" / sha256[:2]
        with local_errors("write the cache", path):
            path.parent.mkdir(mode=0o700, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _private(found: os.stat_result) -> bool:
    """A regular file of this user that nobody else may touch."""
    return (
        stat.S_ISREG(found.st_mode)
        and found.st_uid == os.geteuid()
        and not stat.S_IMODE(found.st_mode) & 0o077
    )


def _stamp(found: os.stat_result) -> bytes:
    stamp = {"size": found.st_size, "inode": found.st_ino, "mtime_ns": found.st_mtime_ns}
    return canonical_json(stamp)


def _stamp_path(path: Path) -> Path:
    return path.with_name(path.name + _STAMP)
