"""The BuildSpec: the one value that names a build, crosses every border, and is never changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from rlx_ray import record
from rlx_ray.component import CompilationMode, CompileProfile, ModelComponent
from rlx_ray.digest import canonical_json, json_digest
from rlx_ray.record import JsonText
from rlx_ray.target import Target, Toolchain
from rlx_ray.weights.formats import weights_family

_SHORT = 64
"""Characters of a value that a sentence holds as it is."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a checkpoint as the family expects it: name, dtype text, shape, quant text."""

    ROW: ClassVar[bool] = True
    name: str
    dtype: str
    shape: tuple[int, ...]
    quant: str | None = None

    def to_json(self) -> list[object]:
        """The row `[name, dtype, shape, quant]`."""
        return list(record.write(self).values())


@dataclass(frozen=True, slots=True)
class FamilySource:
    """Where a family from outside the package comes from.

    Attributes:
        distribution: its name.
        version: of it.
        digest: 64 hex digits over the sources of the packages that its entry points are in.
    """

    distribution: str
    version: str
    digest: str


PLACEMENT_ONLY = {
    "model": "the name in a config and the folder in the store: models of one content share bytes",
    "component.mode": "when it is compiled: eager, lazy and aot share bytes",
}
"""Fields of a BuildSpec that do not count in the digest, each with its reason.

They say where a result is put or how it is asked for, not which bytes. Everything else counts:
`tests/pure/test_spec.py` flips each field.
"""

UNORDERED = {
    "component.force_common": "which kinds it holds decides; their order counts in RLX's key alone",
    "component.force_native": "as force_common",
}
"""Fields whose entries are sorted before they count, each with its reason."""

SAYS = {
    "model": "another model's name",
    "family": "another model family",
    "family_source": "another release of the package that the family comes from",
    "config": "another config of the model",
    "fingerprint": "other tensors in the checkpoint",
    "component": "another component",
    "profile": "another compile profile",
    "tensors": "other types of the checkpoint's tensors",
    "target": "another target, or the same one described otherwise",
    "toolchain": "another toolchain",
    "build_id": "another version of this package's compiler",
    "abi": "another contract between artifact and runtime",
    "packing": "another version of this package's packing of weights",
    "matrices": "other formats of quantised weights",
}
"""What a difference in each field of a BuildSpec means, for `differences`."""


@dataclass(frozen=True)
class BuildSpec:
    """All that a builder needs to compile one variant, and all that its result depends on.

    No builder reads a checkpoint: the model arrives here as values. The value is never changed on
    its way from the plan to the store, and the manifest keeps it whole.

    Attributes:
        model: the model's name in the config (placement only).
        family: the model family, such as `bert`.
        family_source: the distribution of a family from outside this package.
        config: canonical JSON text of the family's normalised model config.
        fingerprint: 64 hex digits over the checkpoint's layout (names, shapes, dtypes).
        component: what is asked for; gives the RLX cache key.
        profile: the whole compile profile.
        tensors: dtype and quantisation of every tensor of the checkpoint, sorted by name.
        target: what it is compiled for.
        toolchain: the exact compiler, with flags.
        build_id: digest of the compile-side sources.
        abi: version of the contract between artifact and runtime.
        packing: digest of the sources that pack weights for the target's kind.
        matrices: parameters whose weights stay quantised, with their formats
            (rlx_ray.weights.formats), sorted by name.
    """

    model: str
    family: str
    family_source: FamilySource | None
    config: JsonText
    fingerprint: str
    component: ModelComponent
    profile: CompileProfile
    tensors: tuple[TensorSpec, ...]
    target: Target
    toolchain: Toolchain
    build_id: str
    abi: int
    packing: str
    matrices: tuple[tuple[str, str], ...] = ()

    @property
    def weights_family(self) -> str:
        """Which packed weights the artifact reads."""
        kind = self.profile.precision.compute
        if self.matrices:
            quant = self.component.quant  # blocks of 32 and of 64 weights have one format
            formats = [list(m) for m in self.matrices]
            kind = f"{kind}-{json_digest([quant.debug if quant else None, formats])[:12]}"
        return weights_family(self.target, kind)

    @property
    def packed_rows(self) -> bool:
        """Whether a run computes its real token rows alone.

        On CPUs native kernels do. A device's products compute all rows that a variant has room for.
        """
        return self.target.can.packed_rows and self.component.dispatch.all_native

    @property
    def config_json(self) -> dict[str, object]:
        """The model config as a JSON object."""
        value: dict[str, object] = json.loads(self.config)
        return value

    def to_json(self) -> dict[str, object]:
        """The whole spec as JSON; dispatch lists keep their order, which counts in the RLX key."""
        return record.write(self)

    @cached_property
    def digest(self) -> str:
        """The artifact digest: sha256 over everything that decides the bytes, as 64 hex digits."""
        value = self.to_json()
        for path in PLACEMENT_ONLY:
            holder, name = _at(value, path)
            del holder[name]
        for path in UNORDERED:
            holder, name = _at(value, path)
            holder[name] = sorted(holder[name])
        return json_digest(value)

    def differences(self, other: BuildSpec) -> tuple[str, ...]:
        """Why an artifact of another spec is not this one's: one sentence for each field.

        Args:
            other: what the artifact was made of.
        """
        mine, theirs = self.to_json(), other.to_json()
        return tuple(
            f"{name} is {_short(theirs[name])}, wanted is {_short(value)}: {SAYS[name]}."
            for name, value in mine.items()
            if theirs[name] != value and name not in PLACEMENT_ONLY
        )

    @property
    def store_name(self) -> str:
        """The artifact's file name in the store, without folder and ending.

        The key is that of the component in mode Aot, so that every mode finds the same artifact.
        """
        aot = self.component.with_mode(CompilationMode.AOT)
        return f"{aot.aot_disk_base}__{self.digest[:16]}"

    def dumps(self) -> bytes:
        """Canonical JSON; `BuildSpec.loads` is its inverse."""
        return canonical_json(self.to_json())

    @classmethod
    def loads(cls, data: bytes | str) -> BuildSpec:
        """The spec that `dumps` wrote."""
        return cls.from_json(json.loads(data))

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> BuildSpec:
        """The spec from its JSON object, as found in a manifest.

        Raises:
            RecordError, ConfigError: it is not such an object.
        """
        return record.read(cls, value)


def _at(value: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The object that holds what a path names, and its name there."""
    *folders, name = path.split(".")
    for folder in folders:
        value = value[folder]
    return value, name


def _short(value: object) -> str:
    """A field's value in few words: as it is, or the digest of a long one."""
    text = value if isinstance(value, str) else canonical_json(value).decode()
    return text if len(text) <= _SHORT else f"one of sha256 {json_digest(value)[:12]}"
