"""Looking over a whole store without changing it: listings and verification."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from rlx_ray.artifact.manifest import BlobRef, Manifest, WeightsManifest
from rlx_ray.digest import sha256_hex
from rlx_ray.errors import ArtifactError, FormatError
from rlx_ray.store.base import Entry, VerifyRow, blob_path, manifest_path, weights_path
from rlx_ray.store.files import TEMPORARY, Files

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Mapper(Protocol):
    """Does some work on every item, in order, perhaps many at a time."""

    def __call__(self, work: Callable[[_In], _Out], items: Sequence[_In], /) -> list[_Out]:
        """`work` of each item."""
        ...


def list_entries(files: Files, folder: str, mapped: Mapper) -> Iterator[Entry]:
    """One row for each manifest in a folder, sorted by path.

    Args:
        files: the store's files.
        folder: `manifests`, or one model's folder in it.
        mapped: reads many at a time.
    """
    paths = [path for path in sorted(files.list(folder)) if _is_manifest(path)]
    blobs = files.list("blobs") if paths else {}
    for path, data in zip(paths, mapped(_reader(files), paths), strict=True):
        if data is not None:
            yield _entry(path, data, blobs)


def _entry(path: str, data: bytes, blobs: Mapping[str, int]) -> Entry:
    try:
        manifest = Manifest.loads(data)
        reason = blobs_reason(manifest.blobs, blobs)
    except ArtifactError as error:
        _, model, name = path.split("/", 2)
        key, _, digest = name.removesuffix(".json").removeprefix("rlx_").partition("__")
        status = _status(error)
        return Entry(model, "", "", key, digest, status, 0, 0.0, str(error))
    spec = manifest.spec
    return Entry(
        model=spec.model,
        variant=str(spec.component.variant),
        target=spec.target.name,
        cache_key=spec.component.cache_key_hex,
        digest=spec.digest,
        status="damaged" if reason else "present",
        bytes=manifest.size,
        seconds=manifest.build.seconds,
        reason=reason,
    )


def blobs_reason(refs: Sequence[BlobRef], sizes: Mapping[str, int]) -> str:
    """Why a manifest's blobs are not whole, by their sizes; empty if they are."""
    for ref in refs:
        size = sizes.get(blob_path(ref.sha256))
        if size is None:
            return f"blob {ref.sha256} ({ref.role}) is missing."
        if size != ref.size:
            return f"blob {ref.sha256} ({ref.role}) has {size} bytes instead of {ref.size}."
    return ""


def verify_files(files: Files, deep: bool, mapped: Mapper) -> Iterator[VerifyRow]:
    """Check every file of a store; with `deep` every blob is read and hashed.

    Files that vanish meanwhile are passed over.
    """
    manifests = {**files.list("manifests"), **files.list("weights")}
    blobs = files.list("blobs")
    named: dict[str, BlobRef] = {}
    paths = sorted(path for path in manifests if _is_manifest(path))
    for path, data in zip(paths, mapped(_reader(files), paths), strict=True):
        if data is None:
            continue
        yield _manifest_row(path, data, blobs, named)
    yield from _blob_rows(files, deep, blobs, named, mapped)
    for path in sorted({**manifests, **blobs}):
        if path.rpartition("/")[2].startswith(TEMPORARY):
            yield VerifyRow(path, "other", "leftover", "a write that did not end, or is going on")


def _manifest_row(
    path: str, data: bytes, blobs: Mapping[str, int], named: dict[str, BlobRef]
) -> VerifyRow:
    kind = "manifest" if path.startswith("manifests/") else "weights"
    try:
        place, refs = _claims(kind, data)
        named.update((blob_path(ref.sha256), ref) for ref in refs)
        reason = blobs_reason(refs, blobs)
        status = "damaged" if reason else "ok"
        # The same artifact may lie in several models' folders: the file name is what counts.
        if place.rpartition("/")[2] != path.rpartition("/")[2]:
            status, reason = "damaged", f"it belongs at {place}."
    except ArtifactError as error:
        status, reason = _status(error), str(error)
    return VerifyRow(path, kind, status, reason)


def _status(error: ArtifactError) -> str:
    """What a manifest is that cannot be read: damaged, or of another version of rlx_ray."""
    return "foreign" if isinstance(error, FormatError) else "damaged"


def _claims(kind: str, data: bytes) -> tuple[str, tuple[BlobRef, ...]]:
    """Where a manifest says that it belongs, and the blobs that it names."""
    if kind == "manifest":
        manifest = Manifest.loads(data)
        return manifest_path(manifest.spec.model, manifest.spec.store_name), manifest.blobs
    weights = WeightsManifest.loads(data)
    place = weights_path(weights.key)
    return place, (weights.blob,)


def _blob_rows(
    files: Files, deep: bool, blobs: Mapping[str, int], named: Mapping[str, BlobRef], mapped: Mapper
) -> Iterator[VerifyRow]:
    paths = sorted(p for p in blobs if not p.rpartition("/")[2].startswith(TEMPORARY))

    def row(path: str) -> VerifyRow:
        reason = _blob_reason(files, deep, path, blobs[path], named.get(path))
        if reason:
            return VerifyRow(path, "blob", "damaged", reason)
        if path not in named:
            return VerifyRow(path, "blob", "orphan", "no manifest that this version reads names it")
        return VerifyRow(path, "blob", "ok")

    yield from mapped(row, paths)


def _blob_reason(files: Files, deep: bool, path: str, size: int, ref: BlobRef | None) -> str:
    if ref is not None and size != ref.size:
        return f"it has {size} bytes instead of {ref.size}."
    data = _reader(files)(path) if deep else None
    if data is not None and sha256_hex(data) != path.rpartition("/")[2]:
        return "its sha256 is not its name."
    return ""


def _is_manifest(path: str) -> bool:
    return path.endswith(".json") and not path.rpartition("/")[2].startswith(TEMPORARY)


def _reader(files: Files) -> Callable[[str], bytes | None]:
    def read(path: str) -> bytes | None:
        try:
            return files.read(path)
        except FileNotFoundError:
            return None

    return read
