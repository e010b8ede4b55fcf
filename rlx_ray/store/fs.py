"""Files on any fsspec file system: the store's one door to fsspec."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import fsspec

from rlx_ray.errors import ConfigError, StoreError, nearest
from rlx_ray.store.files import Files, LocalFiles, store_error

Options: TypeAlias = Mapping[str, object] | Iterable[tuple[str, object]]

_INSTALL = {
    "s3": "pip install 'rlx_ray[s3]'",
    "s3a": "pip install 'rlx_ray[s3]'",
    "gs": "pip install 'rlx_ray[gcs]'",
    "gcs": "pip install 'rlx_ray[gcs]'",
}

_S3_TRIES = 3
"""Tries of one request by s3fs, which also tells throttling from failure; botocore adds none."""

_CONFLICT_TRIES = 4
"""Tries of a conditional create: S3 answers 409 (EBUSY) while another one is under way."""

_MEMORY = threading.RLock()
"""Makes the check and the write of memory:// one step; object stores do that themselves."""


class FsspecFiles:
    """Files below a URL of an fsspec file system.

    Nothing is cached: another process may have written a moment ago.
    """

    remote = True

    def __init__(self, url: str, options: Mapping[str, object]) -> None:
        self.url = url
        protocol = protocol_of(url)
        self._fs: Any = _file_system(protocol, options)
        self._root = str(self._fs._strip_protocol(url)).rstrip("/")
        self._memory = protocol == "memory"

    def read(self, path: str) -> bytes:
        """A file's bytes; FileNotFoundError if there is none."""
        with self._guard("read", path):
            return bytes(self._fs.cat_file(self._full(path)))

    def size(self, path: str) -> int | None:
        """A file's size in bytes, None if there is none."""
        try:
            with self._guard("read", path):
                info = self._fs.info(self._full(path))
        except FileNotFoundError:
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def list(self, folder: str) -> dict[str, int]:
        """Path (below the root) and size of every file in a folder and the folders below."""
        try:
            with self._guard("list", folder):
                self._fs.invalidate_cache()
                rows = self._fs.find(self._full(folder), detail=True)
        except FileNotFoundError:
            return {}
        skip = len(self._root) + 1
        return {
            name[skip:]: int(info["size"])
            for name, info in rows.items()
            if info["type"] == "file" and not name.endswith("/")
        }

    def create(self, path: str, data: bytes) -> bool:
        """Write a file that is not there yet; False, and nothing done, if it is.

        The write is conditional where the file system can do it (S3, GCS); elsewhere two writers
        may both believe that they were first, and the last whole file stays.
        """
        for _ in range(_CONFLICT_TRIES):
            try:
                return self._create(path, data)
            except Exception as error:
                # A refused condition has another exception on each file system, so ask instead.
                if self.size(path) is not None:
                    return False
                conflict = isinstance(error, OSError) and error.errno == errno.EBUSY
                if not conflict:
                    raise store_error("write", self._where(path), error) from error
                failure = error
        raise store_error("write", self._where(path), failure) from failure

    def _create(self, path: str, data: bytes) -> bool:
        try:
            with self._lock():
                self._fs.pipe_file(self._full(path), data, mode="create")
        except FileExistsError:
            return False
        except (TypeError, ValueError, NotImplementedError):
            # In these ways file systems say that they have no conditional create. Of two writers
            # at once the last one wins; what is wrong besides fails in `replace` again.
            if self.size(path) is not None:
                return False
            self.replace(path, data)
        return True

    def replace(self, path: str, data: bytes | memoryview) -> None:
        """Write a file, over another if there is one."""
        try:
            with self._guard("write", path):
                self._fs.pipe_file(self._full(path), bytes(data))
        except FileNotFoundError as error:
            raise store_error("write", self._where(path), error) from error

    def move(self, path: str, to: str) -> None:
        """Rename a file (copy and delete); FileNotFoundError if there is none."""
        with self._guard("move", path):
            self._fs.cp_file(self._full(path), self._full(to))
            self._fs.rm_file(self._full(path))

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _where(self, path: str) -> str:
        return f"{self.url.rstrip('/')}/{path}"

    def _lock(self) -> AbstractContextManager[object]:
        return _MEMORY if self._memory else nullcontext()

    @contextmanager
    def _guard(self, verb: str, path: str) -> Iterator[None]:
        try:
            with self._lock():
                yield
        except FileNotFoundError:
            raise
        except Exception as error:
            # File systems let their own library's errors through: botocore's, aiohttp's, google's.
            raise store_error(verb, self._where(path), error) from error


def open_files(url: str, options: Options = ()) -> Files:
    """The files below a URL; a plain path or file:// is this host's disk.

    Args:
        url: any fsspec URL.
        options: fsspec storage options, as a mapping or as pairs; nested pairs count as mappings.

    Raises:
        ConfigError: no such protocol, or its package is not installed.
        StoreError: the file system cannot be set up.
    """
    protocol = protocol_of(url)
    if protocol == "file":
        path = url.removeprefix("file://").removeprefix("local://")
        return LocalFiles(Path(path).expanduser().absolute())
    pairs = options.items() if isinstance(options, Mapping) else options
    return FsspecFiles(url, {name: _thaw(value) for name, value in pairs})


def protocol_of(url: str) -> str:
    """The protocol of a store's URL; `file` for a plain path.

    Raises:
        ConfigError: the URL is empty.
    """
    if not url:
        raise ConfigError("$.store.url is empty.", "Name a folder or any fsspec URL.")
    protocol, mark, _ = url.partition("://")
    return protocol if mark and protocol != "local" else "file"


def _file_system(protocol: str, options: Mapping[str, object]) -> Any:
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        remedy = _INSTALL.get(protocol, "Install the fsspec package of this protocol")
        raise ConfigError(f"{protocol}:// needs a package: {error}.", f"{remedy}.") from error
    except ValueError as error:
        hint = nearest(protocol, fsspec.available_protocols())
        raise ConfigError(f"store protocol {protocol!r} is not known.", hint) from error
    settings = dict(options)
    if protocol in ("s3", "s3a"):
        settings = _s3_settings(settings)
    try:
        made = kind(**settings)
    except Exception as error:
        raise StoreError(
            f"cannot set up {protocol}://: {type(error).__name__}: {error}.",
            "Check store.storage_options and the credentials.",
        ) from error
    if protocol in ("s3", "s3a"):
        made.retries = _S3_TRIES
    return made


def _s3_settings(options: dict[str, object]) -> dict[str, object]:
    """Finite waits and no listing cache; what the user's options say stays."""
    given = options.get("config_kwargs")
    client = {"connect_timeout": 5, "read_timeout": 30, "retries": {"total_max_attempts": 1}}
    client.update(given if isinstance(given, dict) else {})
    return {"use_listings_cache": False, **options, "config_kwargs": client}


def _thaw(value: object) -> object:
    """A frozen JSON value as fsspec wants it: tuples of pairs become mappings, tuples lists."""
    if not isinstance(value, tuple):
        return value
    if value and all(isinstance(v, tuple) and len(v) == 2 and isinstance(v[0], str) for v in value):
        return {name: _thaw(inner) for name, inner in value}
    return [_thaw(inner) for inner in value]
