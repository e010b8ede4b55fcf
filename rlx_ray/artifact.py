"""Artifacts: the manifest that says what a compiled variant is, and the blobs that it names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rlx_ray.digest import canonical_json, json_digest, sha256_hex
from rlx_ray.dtype import DType
from rlx_ray.errors import ArtifactError
from rlx_ray.spec import BuildSpec

FORMAT = "rlx-artifact/1"
"""Format of the manifest file. Bump it when a field changes its meaning."""

PREFIX = "prefix"
"""Layout of an input [rows, ...] of which a caller gives as many rows as are used, from the first
on: another input says how many, and the others are not read."""


def _seal(value: dict[str, object]) -> bytes:
    """Canonical JSON of an object with the digest of all its other fields as `check`."""
    return canonical_json({**value, "check": json_digest(value)})


def _unseal(data: bytes) -> dict[str, Any]:
    """The object that `_seal` wrote, without `check`; ArtifactError if any field was altered."""
    value: dict[str, Any] = json.loads(data)
    check = value.pop("check", None)
    if check != json_digest(value):
        raise ArtifactError("it was altered: its 'check' is not the digest of its other fields.")
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

    def to_json(self) -> dict[str, object]:
        """All fields as a JSON object."""
        return {
            "name": self.name,
            "dtype": self.dtype.text,
            "shape": list(self.shape),
            "offset": self.offset,
            "layout": self.layout,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Binding:
        """The inverse of `to_json`."""
        return cls(
            str(value["name"]),
            DType.parse(value["dtype"]),
            tuple(int(v) for v in value["shape"]),
            int(value["offset"]),
            str(value["layout"]),
        )


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

    def to_json(self) -> dict[str, object]:
        """All fields as a JSON object."""
        return {
            "inputs": [b.to_json() for b in self.inputs],
            "params": [b.to_json() for b in self.params],
            "outputs": [b.to_json() for b in self.outputs],
            "arena": self.arena,
            "scratch": self.scratch,
            "alignment": self.alignment,
            "entry": self.entry,
            "page": self.page,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BindingManifest:
        """The inverse of `to_json`."""
        return cls(
            tuple(Binding.from_json(b) for b in value["inputs"]),
            tuple(Binding.from_json(b) for b in value["params"]),
            tuple(Binding.from_json(b) for b in value["outputs"]),
            int(value["arena"]),
            int(value["scratch"]),
            int(value["alignment"]),
            str(value["entry"]),
            int(value["page"]),
        )


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A blob by content: its role, sha256 (64 hex digits) and bytes.

    Roles are `code`, `text`, and `pool` (of CPU targets) or `plan` (of CUDA targets).
    """

    role: str
    sha256: str
    size: int

    def to_json(self) -> dict[str, object]:
        """All fields as a JSON object."""
        return {"role": self.role, "sha256": self.sha256, "size": self.size}


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """How a build went: wall seconds, peak resident bytes of the compiler, the builder's class."""

    seconds: float
    peak_memory: int
    host: str

    def to_json(self) -> dict[str, object]:
        """All fields as a JSON object."""
        return {"seconds": self.seconds, "peak_memory": self.peak_memory, "host": self.host}


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

    def dumps(self) -> bytes:
        """The manifest file's bytes: canonical JSON, or the very bytes that it was read from."""
        return self._data or _seal(
            {
                "format": FORMAT,
                "model": self.spec.model,
                "cache_key": self.spec.component.cache_key_hex,
                "digest": self.spec.digest,
                "target": self.spec.target.name,
                "abi": self.spec.abi,
                "spec": self.spec.to_json(),
                "binding": self.binding.to_json(),
                "blobs": [b.to_json() for b in self.blobs],
                "build": self.build.to_json(),
            }
        )

    @classmethod
    def loads(cls, data: bytes) -> Manifest:
        """Read a manifest file and check that its digest is that of the spec inside.

        Raises:
            ArtifactError: it is torn, of another format, or contradicts itself.
        """
        try:
            value = _unseal(data)
            if value["format"] != FORMAT:
                raise ArtifactError(f"manifest format {value['format']!r} is not {FORMAT!r}.")
            manifest = cls(
                BuildSpec.from_json(value["spec"]),
                BindingManifest.from_json(value["binding"]),
                tuple(BlobRef(b["role"], b["sha256"], int(b["size"])) for b in value["blobs"]),
                BuildRecord(
                    float(value["build"]["seconds"]),
                    int(value["build"]["peak_memory"]),
                    str(value["build"]["host"]),
                ),
            )
        except ArtifactError:
            raise
        except Exception as error:
            raise ArtifactError(f"manifest cannot be read: {type(error).__name__}: {error}.") from (
                error
            )
        if value.get("digest") != manifest.spec.digest:
            raise ArtifactError("manifest contradicts itself: its digest is not that of its spec.")
        object.__setattr__(manifest, "_data", bytes(data))
        return manifest


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
class WeightsManifest:
    """Where each packed parameter lies in a model's weights blob.

    Attributes:
        source: sha256 over the source tensors' names, shapes, dtypes and bytes.
        pack_version: version of the packed layouts.
        target_family: targets of one family share packed weights, such as `cpu-p16`.
        blob: the packed bytes.
        tensors: offset (bytes, 64-aligned) of each parameter, with its layout.
    """

    model: str
    source: str
    pack_version: int
    target_family: str
    blob: BlobRef
    tensors: tuple[Binding, ...]

    FORMAT: ClassVar[str] = "rlx-weights/1"

    def dumps(self) -> bytes:
        """The weights file's bytes: canonical JSON."""
        return _seal(
            {
                "format": self.FORMAT,
                "model": self.model,
                "source": self.source,
                "pack_version": self.pack_version,
                "target_family": self.target_family,
                "blob": self.blob.to_json(),
                "tensors": [t.to_json() for t in self.tensors],
            }
        )

    @classmethod
    def loads(cls, data: bytes) -> WeightsManifest:
        """Read a weights file.

        Raises:
            ArtifactError: it is torn or of another format.
        """
        try:
            value = _unseal(data)
            if value["format"] != cls.FORMAT:
                raise ArtifactError(f"weights format {value['format']!r} is not {cls.FORMAT!r}.")
            blob = value["blob"]
            return cls(
                value["model"],
                value["source"],
                int(value["pack_version"]),
                value["target_family"],
                BlobRef(blob["role"], blob["sha256"], int(blob["size"])),
                tuple(Binding.from_json(t) for t in value["tensors"]),
            )
        except ArtifactError:
            raise
        except Exception as error:
            raise ArtifactError(f"weights cannot be read: {type(error).__name__}: {error}.") from (
                error
            )
