"""Whole files below one root, as the store needs them, and their local implementation.

A local write is staged: a temporary file in the same folder, fsync, then one link or rename,
then fsync of the folder. A process that is killed at any point leaves the old state or the new
one, and at worst a hidden temporary file.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rlx_ray.errors import StoreError

TEMPORARY = ".tmp-"
"""How the names of files begin that are being written."""


class Files(Protocol):
    """Whole files by posix path below a root. Safe for threads; StoreError for all but absence."""

    url: str
    remote: bool

    def read(self, path: str) -> bytes:
        """A file's bytes; FileNotFoundError if there is none."""
        ...

    def size(self, path: str) -> int | None:
        """A file's size in bytes, None if there is none."""
        ...

    def list(self, folder: str) -> dict[str, int]:
        """Path (below the root) and size of every file in a folder and the folders below."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Write a file that is not there yet; False, and nothing done, if it is."""
        ...

    def replace(self, path: str, data: bytes | memoryview) -> None:
        """Write a file, over another if there is one."""
        ...

    def move(self, path: str, to: str) -> None:
        """Rename a file; FileNotFoundError if there is none."""
        ...


def store_error(verb: str, where: str, error: BaseException) -> StoreError:
    """The StoreError that says which path could not be read or written, and what to do."""
    detail = f"{type(error).__name__}: {error}".strip().rstrip(".:")
    if isinstance(error, PermissionError):
        remedy = "Give this user access to it, check the credentials, or name another store."
    elif isinstance(error, NotADirectoryError | FileExistsError):
        remedy = "A file lies where a folder is needed: remove it or name another store."
    elif isinstance(error, FileNotFoundError):
        remedy = "Create the bucket or folder first, or name another store."
    else:
        remedy = "Check that the store's URL is right and that its server or disk answers."
    return StoreError(f"cannot {verb} {where}: {detail}.", remedy)


@contextmanager
def local_errors(verb: str, where: Path) -> Iterator[None]:
    """Turn an OSError into a StoreError that names the path."""
    try:
        yield
    except OSError as error:
        raise store_error(verb, str(where), error) from error


def stage(final: Path, data: bytes | memoryview, mode: int = 0o666) -> Path:
    """Write a temporary file beside its final place, synced to disk; the caller renames it.

    Args:
        final: where the file is to be; its folder is made.
        data: the whole content.
        mode: permission bits, less the umask.
    """
    temp = final.with_name(f"{TEMPORARY}{final.name[:48]}-{os.getpid()}-{uuid.uuid4().hex[:12]}")
    temp.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(handle, left) :]
        os.fsync(handle)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    return temp


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder survive a power loss."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(final: Path, data: bytes | memoryview, mode: int = 0o666) -> None:
    """Stage a file and rename it into place, over another if there is one."""
    temp = stage(final, data, mode)
    try:
        os.replace(temp, final)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    sync_folder(final.parent)


def create_file(final: Path, data: bytes) -> bool:
    """Stage a file and link it into place; False if another was first."""
    temp = stage(final, data)
    try:
        os.link(temp, final)
    except FileExistsError:
        return False
    except OSError:
        # Some network and FUSE file systems have no hard links; the last of two writers then
        # wins, and both wrote a whole file.
        if final.exists():
            return False
        os.replace(temp, final)
    finally:
        temp.unlink(missing_ok=True)
    sync_folder(final.parent)
    return True


class LocalFiles:
    """Files below a folder of this host (or of a network file system mounted on it)."""

    remote = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"file://{root}"

    def read(self, path: str) -> bytes:
        """A file's bytes; FileNotFoundError if there is none."""
        where = self.root / path
        try:
            return where.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise store_error("read", str(where), error) from error

    def size(self, path: str) -> int | None:
        """A file's size in bytes, None if there is none."""
        where = self.root / path
        try:
            return where.stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise store_error("read", str(where), error) from error

    def list(self, folder: str) -> dict[str, int]:
        """Path (below the root) and size of every file in a folder and the folders below."""
        found: dict[str, int] = {}
        pending = [self.root / folder]
        while pending:
            place = pending.pop()
            try:
                with os.scandir(place) as rows:
                    for row in rows:
                        if row.is_dir(follow_symlinks=False):
                            pending.append(Path(row.path))
                        else:
                            name = Path(row.path).relative_to(self.root).as_posix()
                            found[name] = row.stat().st_size
            except FileNotFoundError:
                continue
            except OSError as error:
                raise store_error("list", str(place), error) from error
        return found

    def create(self, path: str, data: bytes) -> bool:
        """Write a file that is not there yet; False, and nothing done, if it is."""
        where = self.root / path
        with local_errors("write", where):
            return create_file(where, data)

    def replace(self, path: str, data: bytes | memoryview) -> None:
        """Write a file, over another if there is one."""
        where = self.root / path
        with local_errors("write", where):
            replace_file(where, data)

    def move(self, path: str, to: str) -> None:
        """Rename a file; FileNotFoundError if there is none."""
        where, target = self.root / path, self.root / to
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(where, target)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise store_error("move", str(where), error) from error
