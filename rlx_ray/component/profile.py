"""Compile profiles: what the passes may do, and the five presets of RLX."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any

from rlx_ray import record
from rlx_ray.component import reader
from rlx_ray.component.rust_hash import RustHasher
from rlx_ray.component.variant import ModelPhase
from rlx_ray.digest import canonical_json
from rlx_ray.errors import ConfigError, nearest


class Preset(Enum):
    """A profile that RLX names; the value is the config's spelling."""

    LLAMA32_PREFILL = "llama32_prefill"
    LLAMA32_DECODE = "llama32_decode"
    QWEN35_PREFILL = "qwen35_prefill"
    QWEN35_DECODE = "qwen35_decode"
    ENCODER = "encoder"

    @property
    def rust(self) -> str:
        """The Rust name, such as `Llama32Prefill`."""
        return self.value.title().replace("_", "")

    @property
    def key(self) -> int:
        """RLX's profile key, a u64: the hash of the Rust name."""
        hasher = RustHasher()
        hasher.text(self.rust)
        return hasher.finish()


@dataclass(frozen=True, slots=True)
class Fusion:
    """`direct` lowers straight into fused kernels, `fusable` leaves it to the fuse pass."""

    policy: str = "direct"
    skip: bool = False


@dataclass(frozen=True, slots=True)
class Passes:
    """Optional passes."""

    dce: bool = True
    constant_folding: bool = True


@dataclass(frozen=True, slots=True)
class Precision:
    """Element type of the arithmetic, and whether the compiler may mix types."""

    compute: str = "f32"
    mixed: str = "none"


Scalar = str | int | float | bool

_CHOICES: dict[str, tuple[object, ...]] = {
    "fusion.policy": ("direct", "fusable"),
    "fusion.skip": (False, True),
    "passes.dce": (False, True),
    "passes.constant_folding": (False, True),
    "precision.compute": ("f32", "f16", "bf16", "int8"),
    "precision.mixed": ("none", "auto"),
}
_SECTIONS = {
    name: tuple(field.name for field in fields(section))
    for name, section in (("fusion", Fusion), ("passes", Passes), ("precision", Precision))
}


@dataclass(frozen=True, slots=True)
class CompileProfile:
    """A preset, or a preset with changes.

    Attributes:
        base: the preset that it started from.
        fusion: how ops are joined.
        passes: which optional passes run.
        precision: the arithmetic.
        backend: options of one backend, sorted by name.
    """

    base: Preset
    fusion: Fusion = field(default_factory=Fusion)
    passes: Passes = field(default_factory=Passes)
    precision: Precision = field(default_factory=Precision)
    backend: tuple[tuple[str, Scalar], ...] = ()

    @classmethod
    def preset(cls, preset: Preset) -> CompileProfile:
        """A preset as it stands: decode presets lower fusably, the others directly."""
        decode = preset in (Preset.LLAMA32_DECODE, Preset.QWEN35_DECODE)
        return cls(preset, Fusion("fusable" if decode else "direct"))

    @property
    def key(self) -> int:
        """The profile key, a u64: the preset's, or the hash of the canonical text."""
        if self == self.preset(self.base):
            return self.base.key
        hasher = RustHasher()
        hasher.text(canonical_json(self.to_json()).decode())
        return hasher.finish()

    def override(self, changes: Mapping[str, Any], path: str = "$.profile") -> CompileProfile:
        """This profile with the sections of a mapping put over it.

        Args:
            changes: as in a config: `{fusion: {policy: fusable}, ...}`.
            path: where the mapping stands, for messages.

        Raises:
            ConfigError: an unknown section or option, or a value that is not allowed.
        """
        known = [*_SECTIONS, "backend"]
        sections: dict[str, Any] = {}
        for name, section in changes.items():
            where = f"{path}.{name}"
            if name not in known:
                raise _unknown(where, str(name), known)
            if not isinstance(section, Mapping):
                raise ConfigError(f"{where} is {section!r}.", "It is a mapping of options.")
            if name == "backend":
                merged = {**dict(self.backend), **_scalars(section, where)}
                sections[name] = tuple(sorted(merged.items()))
                continue
            for option, value in section.items():
                _check(f"{where}.{option}", name, str(option), value)
            sections[name] = replace(getattr(self, name), **section)
        return replace(self, **sections)

    def to_json(self) -> dict[str, object]:
        """All fields as a JSON object."""
        return record.write(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CompileProfile:
        """The inverse of `to_json`.

        Raises:
            ConfigError: the object lacks a field, or has an unknown field or value.
        """
        known = ("base", *_SECTIONS, "backend")
        given = reader.section(value, "$", known, known)
        base = reader.named(parse_preset, given.pop("base"), "$.base")
        for name, options in _SECTIONS.items():
            reader.section(given[name], f"$.{name}", options, options)
        return cls.preset(base).override(given, "$")


def _scalars(section: Mapping[str, Any], where: str) -> dict[str, Scalar]:
    for option, value in section.items():
        if not isinstance(option, str):
            raise ConfigError(f"{where} has the option {option!r}.", "Its names are texts.")
        finite = not isinstance(value, float) or math.isfinite(value)
        if not isinstance(value, str | int | float | bool) or not finite:
            raise ConfigError(f"{where}.{option} is {value!r}.", "It is a text or a finite number.")
    return dict(section)


def _check(where: str, section: str, option: str, value: object) -> None:
    if option not in _SECTIONS[section]:
        raise _unknown(where, option, _SECTIONS[section])
    allowed = _CHOICES[f"{section}.{option}"]
    if not any(value is a or (isinstance(a, str) and value == a) for a in allowed):
        raise ConfigError(f"{where} is {value!r}.", f"Use one of {list(allowed)}.")


def _unknown(where: str, name: str, known: list[str] | tuple[str, ...]) -> ConfigError:
    return ConfigError(
        f"{where} is not known.", nearest(name, known) or f"Known here: {list(known)}."
    )


def parse_preset(text: str) -> Preset:
    """The preset with a config spelling.

    Raises:
        ConfigError: no such preset.
    """
    names = [p.value for p in Preset]
    if text not in names:
        raise ConfigError(
            f"profile {text!r} is not known.",
            nearest(text, names) or f"Use 'auto', a mapping, or one of {names}.",
        )
    return Preset(text)


def preset_for_phase(phase: ModelPhase) -> Preset:
    """What `profile: auto` means for a phase."""
    match phase:
        case ModelPhase.PREFILL:
            return Preset.LLAMA32_PREFILL
        case ModelPhase.DECODE:
            return Preset.LLAMA32_DECODE
        case ModelPhase.ENCODER | ModelPhase.INFERENCE:
            return Preset.ENCODER
