"""Digests: canonical JSON and source files to sha256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON with sorted keys, no spaces and no NaN: equal values give equal bytes.

    Raises:
        TypeError: the value holds something that JSON does not know.
        ValueError: the value holds NaN or an infinity.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def sha256_hex(data: bytes | memoryview) -> str:
    """The sha256 of some bytes as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def json_digest(value: object) -> str:
    """The sha256 of a value's canonical JSON as 64 hex digits."""
    return sha256_hex(canonical_json(value))


def files_digest(root: Path, names: Iterable[str]) -> str:
    """One sha256 over the paths (relative, posix) and bytes of source files, in sorted order.

    Args:
        root: the folder that the names are relative to.
        names: files or folders; of a folder every .py, .c, .h, .cu and .cuh file counts.
    """
    hasher = hashlib.sha256()
    files: set[Path] = set()
    for name in names:
        path = root / name
        if path.is_dir():
            files.update(
                f for f in path.rglob("*") if f.suffix in (".py", ".c", ".h", ".cu", ".cuh")
            )
        elif path.is_file():
            files.add(path)
    for file in sorted(files, key=lambda f: f.relative_to(root).as_posix()):
        data = file.read_bytes()
        hasher.update(f"{file.relative_to(root).as_posix()}\0{len(data)}\0".encode())
        hasher.update(data)
    return hasher.hexdigest()


def freeze(value: object) -> object:
    """A JSON value as nested tuples: mappings become sorted tuples of pairs, lists tuples.

    Raises:
        TypeError: the value holds something that JSON does not know.
    """
    if isinstance(value, Mapping):
        return tuple(sorted((str(k), freeze(v)) for k, v in value.items()))
    if isinstance(value, list | tuple):
        return tuple(freeze(v) for v in value)
    if isinstance(value, str | int | float | bool | None):
        return value
    raise TypeError(f"not a JSON value: {value!r}")
