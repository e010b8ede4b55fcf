"""Plain data that crosses rooms: what the config says, and the BuildSpec that names one build."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

from rlx_ray.component import (
    CompilationMode,
    CompileProfile,
    ModelComponent,
)
from rlx_ray.digest import canonical_json, json_digest
from rlx_ray.target import TARGETS, Target, Toolchain
from rlx_ray.weights.formats import weights_family


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a checkpoint as the family expects it: name, dtype text, shape, quant text."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    quant: str | None = None

    def to_json(self) -> list[object]:
        """The row `[name, dtype, shape, quant]`."""
        return [self.name, self.dtype, list(self.shape), self.quant]


@dataclass(frozen=True, slots=True)
class FamilySource:
    """Where a family from outside the package comes from."""

    distribution: str
    version: str
    digest: str

    def to_json(self) -> dict[str, object]:
        """All fields as a JSON object."""
        return {
            "distribution": self.distribution,
            "version": self.version,
            "digest": self.digest,
        }


PLACEMENT_ONLY = frozenset({"model", "component.mode"})
"""Fields of a BuildSpec that say where a result is put or how it is asked for, not which bytes.

Everything else counts in the digest; `tests/pure/test_spec.py` flips each field.
"""


@dataclass(frozen=True)
class BuildSpec:
    """All that a builder needs to compile one variant, and all that its result depends on.

    No builder reads a checkpoint: the model arrives here as facts. The value is never changed on
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
        pack_version: version of the packed weight layouts.
        matrices: parameters whose weights stay quantised, with their formats
            (rlx_ray.weights.formats), sorted by name.
    """

    model: str
    family: str
    family_source: FamilySource | None
    config: str
    fingerprint: str
    component: ModelComponent
    profile: CompileProfile
    tensors: tuple[TensorSpec, ...]
    target: Target
    toolchain: Toolchain
    build_id: str
    abi: int
    pack_version: int
    matrices: tuple[tuple[str, str], ...] = ()

    @property
    def weights_family(self) -> str:
        """Which packed weights the artifact reads."""
        kind = self.profile.precision.compute
        if self.matrices:
            kind = f"{kind}-{json_digest([list(m) for m in self.matrices])[:12]}"
        return weights_family(self.target, kind)

    @property
    def packed_rows(self) -> bool:
        """Whether a run computes its real token rows alone.

        On CPUs native kernels do. A device's products compute all rows that a variant has room for.
        """
        return self.target.kind == "cpu" and self.component.dispatch.all_native

    @property
    def config_json(self) -> dict[str, object]:
        """The model config as a JSON object."""
        value: dict[str, object] = json.loads(self.config)
        return value

    def to_json(self) -> dict[str, object]:
        """The whole spec as JSON; dispatch lists keep their order, which counts in the RLX key."""
        component = self.component.to_json()
        component["dim_binding"] = [list(pair) for pair in self.component.dim_binding]
        return {
            "model": self.model,
            "family": self.family,
            "family_source": self.family_source.to_json() if self.family_source else None,
            "config": self.config_json,
            "fingerprint": self.fingerprint,
            "component": component,
            "profile": self.profile.to_json(),
            "tensors": [t.to_json() for t in self.tensors],
            "target": self.target.to_json(),
            "toolchain": self.toolchain.to_json(),
            "build_id": self.build_id,
            "abi": self.abi,
            "pack_version": self.pack_version,
            "matrices": [list(pair) for pair in self.matrices],
        }

    @cached_property
    def digest(self) -> str:
        """The artifact digest: sha256 over everything that decides the bytes, as 64 hex digits.

        The order of a force list decides nothing, so the lists are sorted here.
        """
        value = self.to_json()
        del value["model"]
        component = value["component"]
        assert isinstance(component, dict)
        del component["mode"]
        for name in ("force_common", "force_native"):
            component[name] = sorted(component[name])
        return json_digest(value)

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
            KeyError, TypeError, ValueError: it is not such an object.
        """
        rows, matrices = value["tensors"], value["matrices"]
        assert isinstance(rows, list)
        assert isinstance(matrices, list)
        component = dict(_mapping(value["component"]))
        component.pop("dim_binding")
        source = value["family_source"]
        chain = _mapping(value["toolchain"])
        return cls(
            model=str(value["model"]),
            family=str(value["family"]),
            family_source=FamilySource(**_strings(source)) if source else None,
            config=canonical_json(value["config"]).decode(),
            fingerprint=str(value["fingerprint"]),
            component=ModelComponent.from_json(component),
            profile=CompileProfile.from_json(_mapping(value["profile"])),
            tensors=tuple(TensorSpec(n, d, tuple(s), q) for n, d, s, q in rows),
            target=_target(_mapping(value["target"])),
            toolchain=Toolchain(
                str(chain["name"]),
                str(chain["version"]),
                tuple(_list(chain["flags"])),
            ),
            build_id=str(value["build_id"]),
            abi=_int(value["abi"]),
            pack_version=_int(value["pack_version"]),
            matrices=tuple((str(name), str(form)) for name, form in matrices),
        )


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise TypeError(f"expected an object, found {type(value).__name__}")
    return value


def _strings(value: object) -> dict[str, str]:
    return {k: str(v) for k, v in _mapping(value).items()}


def _list(value: object) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, found {type(value).__name__}")
    return [str(v) for v in value]


def _int(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"expected a whole number, found {value!r}")
    return value


def _target(value: Mapping[str, object]) -> Target:
    for known in TARGETS:
        if known.to_json() == value:
            return known
    if set(value) != {f.name for f in fields(Target)}:
        raise ValueError(f"not a target: {sorted(value)}")
    return Target(
        name=str(value["name"]),
        kind=str(value["kind"]),
        triple=str(value["triple"]),
        cpu=str(value["cpu"]),
        features=tuple(_list(value["features"])),
        lanes=_int(value["lanes"]),
        tile_rows=_int(value["tile_rows"]),
        tile_vectors=_int(value["tile_vectors"]),
    )
