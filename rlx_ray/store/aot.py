"""The ahead-of-time store: artifacts and packed weights on any fsspec file system."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeAlias, TypeVar

from rlx_ray.artifact.manifest import Artifact, BlobRef, Manifest, WeightsKey, WeightsManifest
from rlx_ray.config.schema import StoreSpec
from rlx_ray.digest import sha256_hex
from rlx_ray.errors import ArtifactError, ConfigError, StoreError
from rlx_ray.spec import BuildSpec
from rlx_ray.store.base import (
    Entry,
    Hit,
    Lookup,
    Miss,
    MissKind,
    Store,
    VerifyRow,
    blob_path,
    manifest_path,
    model_folder,
    weights_path,
)
from rlx_ray.store.files import TEMPORARY
from rlx_ray.store.fs import Options, open_files, protocol_of
from rlx_ray.store.others import Others
from rlx_ray.store.survey import list_entries, verify_files

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_Size: TypeAlias = Callable[[str], int | None]

_REQUESTS = 16
"""Requests in flight at once to a remote file system."""


class AotStore:
    """The store below a URL.

    Args:
        url: a folder or any fsspec URL.
        storage_options: fsspec storage options, as a mapping or as pairs.

    Raises:
        ConfigError: no such protocol, or its package is not installed.
    """

    def __init__(self, url: str, storage_options: Options = ()) -> None:
        pairs = storage_options.items() if isinstance(storage_options, Mapping) else storage_options
        self._options = tuple(pairs)
        self._files = open_files(url, self._options)
        self.url = self._files.url

    def __reduce__(self) -> tuple[type[AotStore], tuple[str, Options]]:
        return type(self), (self.url, self._options)

    def put(self, artifact: Artifact) -> bool:
        """See `Store.put`."""
        manifest = artifact.manifest
        return self._publish(
            manifest_path(manifest.spec.model, manifest.spec.store_name),
            manifest.dumps(),
            tuple(zip(manifest.blobs, artifact.blobs, strict=True)),
            lambda: _blobs_or_miss(self.lookup(manifest.spec)),
        )

    def lookup(self, spec: BuildSpec) -> Lookup:
        """See `Store.lookup`."""
        try:
            return self._look(spec, spec.digest, self._files.size)
        except StoreError as error:
            return Miss(str(error), "unreachable")

    def present(self, specs: Iterable[BuildSpec]) -> dict[str, Lookup]:
        """See `Store.present`.

        One listing for each model, then one of the blobs if any manifest is there (in this order:
        what a listed manifest names was written before it), and one read for each match.
        """
        wanted = [(spec, spec.digest, spec.store_name) for spec in specs]
        names = {model: set(self.names(model)) for model in {spec.model for spec, _, _ in wanted}}
        listed = any(name in names[spec.model] for spec, _, name in wanted)
        sizes = self._files.list("blobs") if listed else {}
        others = Others(self._files.read, names)

        def look(row: tuple[BuildSpec, str, str]) -> Lookup:
            spec, digest, name = row
            if name in names[spec.model]:
                return self._look(spec, digest, sizes.get)
            miss = self._absent(manifest_path(spec.model, name))
            return replace(miss, other=others.tell(spec, name))

        found: dict[str, Lookup] = {}
        for (_, digest, _), result in zip(wanted, self._map(look, wanted), strict=True):
            if isinstance(result, Miss) or digest not in found:
                found[digest] = result
        return found

    def read_blob(self, ref: BlobRef) -> bytes:
        """See `Store.read_blob`."""
        path = blob_path(ref.sha256)
        for _ in range(2):  # read twice: what was altered on the wire is no reason to move a file
            try:
                data = self._files.read(path)
            except FileNotFoundError:
                raise ArtifactError(f"blob {path} ({ref.role}) is missing in {self.url}.") from None
            if len(data) == ref.size and sha256_hex(data) == ref.sha256:
                return data
        note = self._quarantine(path)
        raise ArtifactError(f"blob {path} ({ref.role}) is altered: wrong sha256.{note}")

    def names(self, model: str) -> tuple[str, ...]:
        """See `Store.names`."""
        folder = model_folder("manifests", model)
        rows = (path.rpartition("/")[2] for path in self._files.list(folder))
        return tuple(
            sorted(
                row.removesuffix(".json")
                for row in rows
                if row.endswith(".json") and not row.startswith(TEMPORARY)
            )
        )

    def entries(self, model: str | None = None) -> Iterator[Entry]:
        """See `Store.entries`."""
        folder = "manifests" if model is None else model_folder("manifests", model)
        return list_entries(self._files, folder, self._map)

    def put_weights(self, manifest: WeightsManifest, data: bytes | memoryview) -> bool:
        """See `Store.put_weights`."""

        def look() -> tuple[BlobRef, ...] | Miss:
            found = self.find_weights(manifest.key)
            return found if isinstance(found, Miss) else (found.blob,)

        return self._publish(
            weights_path(manifest.key),
            manifest.dumps(),
            ((manifest.blob, memoryview(data).cast("B")),),
            look,
        )

    def find_weights(self, key: WeightsKey) -> WeightsManifest | Miss:
        """See `Store.find_weights`."""
        path = weights_path(key)
        try:
            data = self._files.read(path)
            manifest = WeightsManifest.loads(data)
            if manifest.key != key:
                return self._reject(path, data, "it holds other weights.", "foreign")
            return self._blobs_missing((manifest.blob,), self._files.size) or manifest
        except FileNotFoundError:
            return self._absent(path)
        except ArtifactError as error:
            return self._reject(path, data, str(error), "damaged")
        except StoreError as error:
            return Miss(str(error), "unreachable")

    def verify(self, deep: bool = False) -> Iterator[VerifyRow]:
        """See `Store.verify`."""
        return verify_files(self._files, deep, self._map)

    def _publish(
        self,
        path: str,
        manifest: bytes,
        blobs: Sequence[tuple[BlobRef, bytes | memoryview]],
        look: Callable[[], tuple[BlobRef, ...] | Miss],
    ) -> bool:
        _check_bytes(blobs)
        before = look()
        if not isinstance(before, Miss):
            if all(self._intact(ref) for ref in before):
                return False
            before = Miss("a blob was altered", "damaged")
        if before.kind == "unreachable":
            raise StoreError(before.reason)
        for ref, data in blobs:
            if self._files.size(blob_path(ref.sha256)) != ref.size or not self._intact(ref):
                self._files.replace(blob_path(ref.sha256), data)
        for _ in range(2):
            if self._files.create(path, manifest):
                return True
            if not isinstance(look(), Miss):
                return before.kind != "absent"  # healed by the blobs, or another was first
        self._files.replace(path, manifest)
        return True

    def _look(self, spec: BuildSpec, digest: str, size_of: _Size) -> Lookup:
        path = manifest_path(spec.model, spec.store_name)
        try:
            data = self._files.read(path)
            manifest = Manifest.loads(data)
            if manifest.spec.digest != digest:
                reason = f"its digest is {manifest.spec.digest}, not {digest}."
                return self._reject(path, data, reason, "foreign")
            return self._blobs_missing(manifest.blobs, size_of) or Hit(manifest)
        except FileNotFoundError:
            return self._absent(path)
        except ArtifactError as error:
            return self._reject(path, data, str(error), "damaged")

    def _blobs_missing(self, refs: Sequence[BlobRef], size_of: _Size) -> Miss | None:
        """The first blob that is missing or of a wrong size, as a Miss.

        The manifest stays where it is: it is sound, and the next `put` that brings the blob back
        heals every manifest that names it.
        """
        paths = [blob_path(ref.sha256) for ref in refs]
        for ref, path, size in zip(refs, paths, self._map(size_of, paths), strict=True):
            if size is None:
                return Miss(f"blob {path} ({ref.role}) is missing in {self.url}.", "damaged")
            if size != ref.size:
                stale = self._files.size(path) == ref.size  # written since the listing
                note = "" if stale else self._quarantine(path)
                reason = f"blob {path} ({ref.role}) has {size} bytes instead of {ref.size}."
                return Miss(reason + note, "damaged")
        return None

    def _absent(self, path: str) -> Miss:
        return Miss(f"there is no {path} in {self.url}.", "absent")

    def _reject(self, path: str, seen: bytes, why: str, kind: MissKind) -> Miss:
        """A Miss for a bad manifest, which goes to quarantine unless it was replaced meanwhile."""
        try:
            note = self._quarantine(path) if self._files.read(path) == seen else ""
        except (FileNotFoundError, StoreError):
            note = ""
        return Miss(f"{path} cannot be used: {why}{note}", kind)

    def _quarantine(self, path: str) -> str:
        """Move a file out of the way if this store may be written; what happened, for a reason."""
        to = f"quarantine/{path.replace('/', '__')}.{uuid.uuid4().hex[:8]}"
        try:
            self._files.move(path, to)
        except FileNotFoundError:
            return ""
        except StoreError as error:
            return f" It stays there, since {error.message}"
        return f" It was moved to {to}."

    def _intact(self, ref: BlobRef) -> bool:
        try:
            self.read_blob(ref)
        except ArtifactError:
            return False
        return True

    def _map(self, work: Callable[[_In], _Out], items: Sequence[_In]) -> list[_Out]:
        """`work` of each item in order, many at a time where each is a round trip."""
        if len(items) < 2 or not self._files.remote:
            return [work(item) for item in items]
        with ThreadPoolExecutor(min(_REQUESTS, len(items))) as pool:
            return list(pool.map(work, items))


def _check_bytes(blobs: Sequence[tuple[BlobRef, bytes | memoryview]]) -> None:
    for ref, data in blobs:
        if len(data) != ref.size or sha256_hex(data) != ref.sha256:
            raise ArtifactError(f"the bytes of blob {ref.role!r} are not those it names.")


def _blobs_or_miss(found: Lookup) -> tuple[BlobRef, ...] | Miss:
    return found if isinstance(found, Miss) else found.manifest.blobs


def open_store(url: str, storage_options: Options = ()) -> Store:
    """The store below a URL, as `AotStore`."""
    return AotStore(url, storage_options)


def check_shared(store: StoreSpec, nodes: int) -> None:
    """Refuse a store that the other nodes of a cluster cannot see.

    Raises:
        ConfigError: the store is this process's memory, or this host's disk and not declared
            shared, and there are several nodes.
    """
    protocol = protocol_of(store.url)
    if nodes < 2 or protocol not in ("file", "memory"):
        return
    if protocol == "memory":
        raise ConfigError(
            f"$.store.url {store.url!r} is one process's memory, and there are {nodes} nodes.",
            "Name a bucket or a folder that all of them mount.",
        )
    if not store.shared:
        raise ConfigError(
            f"$.store.url {store.url!r} is a folder of one host, and there are {nodes} nodes.",
            "Name a bucket, or set store.shared: true if all nodes mount this folder.",
        )
