"""Artifacts: the manifest that says what a compiled variant is, and the blobs that it names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlx_ray import record
from rlx_ray.digest import canonical_json, json_digest, sha256_hex
from rlx_ray.dtype import DType
from rlx_ray.errors import ArtifactError, FormatError
from rlx_ray.spec import BuildSpec

FORMAT = "rlx-artifact/2"
"""Format of the manifest file. Bump it when a field is added, goes, or changes its meaning."""

WEIGHTS_FORMAT = "rlx-weights/2"
"""The same of the file that says where packed weights lie."""

PREFIX = "prefix"
"""Layout of an input [rows, ...] of which a caller gives as many rows as are used, from the first
on: another input says how many, and the others are not read."""


def _seal(form: str, value: dict[str, object]) -> bytes:
    """Canonical JSON of an object with its format, and the digest of all that as `check`."""
    value = {"format": form, **value}
    return canonical_json({**value, "check": json_digest(value)})


def _unseal(form: str, data: bytes) -> dict[str, Any]:
    """The object that `_seal` wrote, without `format` and `check`.

    The format is looked at first: of another one nothing else is known, not even the check.

    Raises:
        ArtifactError: it has another format, or any field was altered.
        ValueError: it is no JSON.
    """
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ArtifactError(f"it is no JSON object, but a {type(value).__name__}.")
    found = value.get("format")
    if found != form:
        raise FormatError(f"its format is {found!r}, this version of rlx_ray reads {form!r}.")
    check = value.pop("check", None)
    if check != json_digest(value):
        raise ArtifactError("it was altered: its 'check' is not the digest of its other fields.")
    del value["format"]
    return value


@dataclass(frozen=True, slots=True)
class Binding:
    """One tensor that a caller binds: name, dtype, shape, and where it lies.

    `offset` is in bytes: of an input or output in the arena, of a parameter unused (-1), since
    parameters are found by name in the packed weights. `layout` is `plain`, of a
    parameter also a packed layout, of an input also PREFIX.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int = -1
    layout: str = "plain"

    @property
    def nbytes(self) -> int:
        """Size in bytes of the plain tensor."""
        total = self.dtype.size
        for extent in self.shape:
            total *= extent
        return total


@dataclass(frozen=True, slots=True)
class BindingManifest:
    """How to call the code: tensors in call order, and the memory that it wants.

    Attributes:
        inputs: what the caller writes into the arena.
        params: packed weights, in the order of the parameter table.
        outputs: what the caller reads from the arena.
        arena: bytes shared by all threads.
        scratch: bytes for each thread, behind the shared part.
        alignment: of the arena and of every offset in it, in bytes.
        entry: name of the function in the code blob; empty where a launch plan names many.
        page: bytes of a page of the key-value cache that it works on; 0 if it has none.
    """

    inputs: tuple[Binding, ...]
    params: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    arena: int
    scratch: int
    alignment: int
    entry: str
    page: int = 0


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A blob by content: its role, sha256 (64 hex digits) and bytes.

    Roles are `code`, `text`, and `pool` (of CPU targets) or `plan` (of CUDA targets).
    """

    role: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """How a build went: wall seconds, peak resident bytes of the compiler, the builder's class."""

    seconds: float
    peak_memory: int
    host: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the store keeps about one artifact; the commit point of its publication."""

    spec: BuildSpec
    binding: BindingManifest
    blobs: tuple[BlobRef, ...]
    build: BuildRecord
    _data: bytes | None = field(default=None, init=False, compare=False, repr=False)

    @property
    def size(self) -> int:
        """Bytes of all its blobs."""
        return sum(b.size for b in self.blobs)

    def blob(self, role: str) -> BlobRef:
        """The blob with a role.

        Raises:
            ArtifactError: there is none.
        """
        for ref in self.blobs:
            if ref.role == role:
                return ref
        raise ArtifactError(f"artifact {self.spec.store_name} has no blob of role {role!r}.")

    def _head(self) -> dict[str, object]:
        """What follows from the spec, for whoever reads the file without knowing a spec."""
        return {
            "model": self.spec.model,
            "cache_key": self.spec.component.cache_key_hex,
            "digest": self.spec.digest,
            "target": self.spec.target.name,
            "abi": self.spec.abi,
        }

    def dumps(self) -> bytes:
        """The manifest file's bytes: canonical JSON, or the very bytes that it was read from."""
        return self._data or _seal(FORMAT, {**self._head(), **record.write(self)})

    @classmethod
    def loads(cls, data: bytes) -> Manifest:
        """Read a manifest file and check that what it says of its spec is what the spec says.

        Raises:
            ArtifactError: it is torn, of another format, or contradicts itself.
        """
        try:
            value = _unseal(FORMAT, data)
            said = {name: value.pop(name, None) for name in _HEAD}
            manifest = record.read(cls, value)
        except ArtifactError:
            raise
        except Exception as error:
            raise ArtifactError(f"manifest cannot be read: {type(error).__name__}: {error}.") from (
                error
            )
        for name, own in manifest._head().items():
            if said[name] != own:
                raise ArtifactError(
                    f"manifest contradicts itself: its {name} is {said[name]!r}, that of its spec "
                    f"{own!r}."
                )
        object.__setattr__(manifest, "_data", bytes(data))
        return manifest


_HEAD = ("model", "cache_key", "digest", "target", "abi")
"""Entries of a manifest file that follow from its spec."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A manifest with the bytes of its blobs, as a builder hands it to the store."""

    manifest: Manifest
    blobs: tuple[bytes, ...]

    @classmethod
    def make(
        cls,
        spec: BuildSpec,
        binding: BindingManifest,
        blobs: Mapping[str, bytes],
        build: BuildRecord,
    ) -> Artifact:
        """Put an artifact together from blobs by role, hashing each."""
        refs = tuple(BlobRef(role, sha256_hex(data), len(data)) for role, data in blobs.items())
        return cls(Manifest(spec, binding, refs, build), tuple(blobs.values()))


@dataclass(frozen=True, slots=True)
class WeightsKey:
    """What packed weights are found by: whose they are, of which source, packed how, for what."""

    model: str
    source: str
    packing: str
    target_family: str


@dataclass(frozen=True, slots=True)
class WeightsManifest:
    """Where each packed parameter lies in a model's weights blob.

    Attributes:
        source: the weights digest: sha256 over the source tensors' names, shapes, dtypes and bytes,
            and over how parameters are made of them.
        packing: digest of the sources that packed them.
        target_family: targets of one family share packed weights, such as `cpu-p16`.
        blob: the packed bytes.
        tensors: offset (bytes, 64-aligned) of each parameter, with its layout.
    """

    model: str
    source: str
    packing: str
    target_family: str
    blob: BlobRef
    tensors: tuple[Binding, ...]

    @property
    def key(self) -> WeightsKey:
        """What they are found by."""
        return WeightsKey(self.model, self.source, self.packing, self.target_family)

    def dumps(self) -> bytes:
        """The weights file's bytes: canonical JSON."""
        return _seal(WEIGHTS_FORMAT, record.write(self))

    @classmethod
    def loads(cls, data: bytes) -> WeightsManifest:
        """Read a weights file.

        Raises:
            ArtifactError: it is torn or of another format.
        """
        try:
            return record.read(cls, _unseal(WEIGHTS_FORMAT, data))
        except ArtifactError:
            raise
        except Exception as error:
            raise ArtifactError(f"weights cannot be read: {type(error).__name__}: {error}.") from (
                error
            )
