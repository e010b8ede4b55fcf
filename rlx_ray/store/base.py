"""What a store is: its operations, the plain values they return, and where things lie in it.

::

    manifests/<model>/<spec.store_name>.json      one per artifact; its presence publishes it
    weights/<model>/<source[:16]>__<packing>__<family>.json
    blobs/<sha256[:2]>/<sha256>                   named by content, shared by all manifests
    quarantine/...                                what was found torn, altered or foreign
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from rlx_ray.artifact.manifest import Artifact, BlobRef, Manifest, WeightsKey, WeightsManifest
from rlx_ray.errors import ArtifactError, ConfigError
from rlx_ray.spec import BuildSpec

MissKind: TypeAlias = Literal["absent", "damaged", "foreign", "unreachable"]


@dataclass(frozen=True, slots=True)
class Hit:
    """The store has the whole artifact: a sound manifest, and every blob of the right size."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Miss:
    """The store has no usable artifact.

    Attributes:
        reason: what was found, naming the path.
        kind: `absent`, `damaged` (torn, altered or short), `foreign` (another spec's artifact
            under this name) or `unreachable` (nothing is known).
        other: of an absent one, what the store has under the same cache key and why that is not it;
            empty if it has nothing, or was not looked at.
    """

    reason: str
    kind: MissKind
    other: str = ""


Lookup: TypeAlias = Hit | Miss


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a listing; sizes in bytes, build in seconds.

    `status` is `present`, `damaged`, or `foreign`: another version of rlx_ray wrote the manifest.
    Of what is not sound only `model`, `cache_key` and `digest` are known, from its name, and the
    digest is then the 16 digits of the name.
    """

    model: str
    variant: str
    target: str
    cache_key: str
    digest: str
    status: str
    bytes: int
    seconds: float
    reason: str = ""

    def to_json(self) -> dict[str, object]:
        """All fields as a JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class VerifyRow:
    """What `verify` says of one file.

    Attributes:
        path: below the store's root.
        kind: `manifest`, `weights`, `blob` or `other`.
        status: `ok`, `damaged`, or the harmless `foreign` (another version of rlx_ray wrote it),
            `orphan` (a blob that no manifest names) and `leftover` (a write that did not end, or is
            going on).
        reason: what is wrong, else empty.
    """

    path: str
    kind: str
    status: str
    reason: str = ""


class Store(Protocol):
    """Artifacts and packed weights by content. All operations may be called from any thread."""

    url: str

    def put(self, artifact: Artifact) -> bool:
        """Publish an artifact: blobs first, the manifest last, which is the commit point.

        Returns:
            True if this call published it; False if a sound one of the same digest was there.

        Raises:
            StoreError: the store cannot be reached or written.
            ArtifactError: the blobs are not those of the manifest.
        """
        ...

    def lookup(self, spec: BuildSpec) -> Lookup:
        """Whether the artifact of a spec is there, whole. Never raises for what it finds."""
        ...

    def present(self, specs: Iterable[BuildSpec]) -> dict[str, Lookup]:
        """`lookup` of many specs by digest, at the price of a listing.

        Where several models share a digest, a miss of one of them wins.

        Raises:
            StoreError: the store cannot be reached.
        """
        ...

    def read_blob(self, ref: BlobRef) -> bytes:
        """The bytes of a blob, hashed.

        Raises:
            ArtifactError: it is missing or altered (and now in quarantine).
            StoreError: the store cannot be reached.
        """
        ...

    def names(self, model: str) -> tuple[str, ...]:
        """The store names of a model's manifests, sorted, from one listing."""
        ...

    def entries(self, model: str | None = None) -> Iterator[Entry]:
        """One row for each manifest of a model, or of all. Changes nothing."""
        ...

    def put_weights(self, manifest: WeightsManifest, data: bytes | memoryview) -> bool:
        """Publish packed weights, with the meaning and the errors of `put`."""
        ...

    def find_weights(self, key: WeightsKey) -> WeightsManifest | Miss:
        """The packed weights with a key. Never raises for what it finds."""
        ...

    def verify(self, deep: bool = False) -> Iterator[VerifyRow]:
        """Check every file: sizes, or with `deep` every hash. Changes nothing."""
        ...


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def model_folder(kind: str, model: str) -> str:
    """The folder of a model below `manifests` or `weights`.

    Raises:
        ConfigError: the name cannot be a folder's on every file system.
    """
    if not _NAME.fullmatch(model):
        raise ConfigError(
            f"model name {model!r} cannot name a folder of the store.",
            "Use letters, digits, '.', '_' and '-', and do not begin with '.' or '-'.",
        )
    return f"{kind}/{model}"


def manifest_path(model: str, store_name: str) -> str:
    """Where the manifest of an artifact lies."""
    return f"{model_folder('manifests', model)}/{store_name}.json"


def weights_path(key: WeightsKey) -> str:
    """Where the manifest of packed weights lies."""
    name = f"{key.source[:16]}__{key.packing}__{key.target_family}.json"
    return f"{model_folder('weights', key.model)}/{name}"


def blob_path(sha256: str) -> str:
    """Where a blob lies.

    Raises:
        ArtifactError: not 64 lower-case hex digits; such a name could lead out of the store.
    """
    if not _SHA256.fullmatch(sha256):
        raise ArtifactError(f"blob name {sha256!r} is not a sha256.")
    return f"blobs/{sha256[:2]}/{sha256}"
