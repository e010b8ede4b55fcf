"""The component: everything that is to be specialised, and RLX's 64-bit key of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from rlx_ray.component.dispatch import KernelDispatchConfig, KernelDispatchPolicy, OpKind
from rlx_ray.component.quant import QuantScheme
from rlx_ray.component.variant import ModelPhase, ModelVariant
from rlx_ray.errors import ConfigError, nearest
from rlx_ray.rust_hash import U64, RustHasher


class CompilationMode(Enum):
    """When a variant is compiled; the value is the Rust name, the order the discriminant."""

    EAGER = "Eager"
    LAZY = "Lazy"
    AOT = "Aot"

    @property
    def discriminant(self) -> int:
        """The Rust discriminant."""
        return list(type(self)).index(self)

    @property
    def spelling(self) -> str:
        """How a config spells it."""
        return self.value.lower()

    @classmethod
    def parse(cls, text: str) -> CompilationMode:
        """The mode from its Rust name or its spelling.

        Raises:
            ConfigError: no such mode.
        """
        for one in cls:
            if text in (one.value, one.spelling):
                return one
        names = [one.spelling for one in cls]
        raise ConfigError(
            f"mode {text!r} is not known.", nearest(text, names) or f"Use one of {names}."
        )


@dataclass(frozen=True, slots=True)
class ModelComponent:
    """What is asked for.

    Attributes:
        variant: phase and sizes.
        dispatch: native or common kernels.
        mode: when it is compiled.
        profile_key: key of the compile profile, a u64.
        quant: the dominant scheme of the linear layers; None for unquantised.
        layer_composition_key: key of what the model is made of, a u64.
    """

    variant: ModelVariant
    dispatch: KernelDispatchConfig
    mode: CompilationMode
    profile_key: int
    quant: QuantScheme | None
    layer_composition_key: int

    @property
    def cache_key(self) -> int:
        """RLX's cache key, a u64, equal to the Rust crate's bit for bit."""
        hasher = RustHasher()
        hasher.u64(self.variant.key)
        hasher.u8(self.dispatch.policy.discriminant)
        for kind in (*self.dispatch.force_common, *self.dispatch.force_native):
            hasher.u64(kind.discriminant)
        hasher.u64(self.mode.discriminant)
        hasher.u64(self.profile_key)
        if self.quant is not None:
            hasher.text(self.quant.debug)
        hasher.u64(self.layer_composition_key)
        return hasher.finish()

    @property
    def cache_key_hex(self) -> str:
        """The cache key as 16 hex digits."""
        return f"{self.cache_key:016x}"

    @property
    def dim_binding(self) -> tuple[tuple[int, int], ...]:
        """The variant's (symbol, size) pairs, sorted by symbol."""
        return self.variant.dim_binding

    @property
    def aot_disk_base(self) -> str:
        """The base of RLX's file names: `rlx_<cache_key>`."""
        return f"rlx_{self.cache_key_hex}"

    def with_mode(self, mode: CompilationMode) -> ModelComponent:
        """The same component in another mode."""
        return replace(self, mode=mode)

    def to_json(self) -> dict[str, Any]:
        """All fields, spelt as in `golden/rlx_keys.json`."""
        v = self.variant
        return {
            "variant": {
                "batch": v.batch,
                "seq": v.seq,
                "past_seq": v.past_seq,
                "phase": v.phase.value,
                "extra": [list(pair) for pair in v.extra],
            },
            "policy": self.dispatch.policy.value,
            "force_common": [k.rust for k in self.dispatch.force_common],
            "force_native": [k.rust for k in self.dispatch.force_native],
            "mode": self.mode.value,
            "profile_key": f"{self.profile_key:016x}",
            "quant": self.quant.debug if self.quant else None,
            "layer_composition_key": f"{self.layer_composition_key:016x}",
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelComponent:
        """The component from the fields that `to_json` writes.

        `variant` may also be a variant text, `quant` a display text.

        Raises:
            ConfigError: a field is missing, unknown or has a value of the wrong kind.
        """
        known = (*_REQUIRED, *_OPTIONAL)
        for name in value:
            if name not in known:
                raise ConfigError(
                    f"$.{name} is not known.", nearest(str(name), known) or f"Known: {list(known)}."
                )
        for name in _REQUIRED:
            if name not in value:
                raise ConfigError(f"$.{name} is missing.", f"Required: {list(_REQUIRED)}.")
        quant = value.get("quant")
        return cls(
            _variant(value["variant"]),
            KernelDispatchConfig(
                KernelDispatchPolicy.parse(_text(value, "policy")),
                _kinds(value, "force_common"),
                _kinds(value, "force_native"),
            ),
            CompilationMode.parse(_text(value, "mode")),
            _key(value, "profile_key"),
            None if quant is None else QuantScheme.parse(_text(value, "quant")),
            _key(value, "layer_composition_key"),
        )


_REQUIRED = ("variant", "policy", "mode", "profile_key", "layer_composition_key")
_OPTIONAL = ("force_common", "force_native", "quant")


def _text(value: Mapping[str, Any], name: str) -> str:
    found = value[name]
    if not isinstance(found, str):
        raise ConfigError(f"$.{name} is {found!r}.", "It is a text.")
    return found


def _key(value: Mapping[str, Any], name: str) -> int:
    text = _text(value, name)
    if len(text) != 16 or any(c not in "0123456789abcdef" for c in text):
        raise ConfigError(f"$.{name} is {text!r}.", "It is 16 lower-case hex digits.")
    return int(text, 16)


def _kinds(value: Mapping[str, Any], name: str) -> tuple[OpKind, ...]:
    found = value.get(name, [])
    if not isinstance(found, list) or not all(isinstance(k, str) for k in found):
        raise ConfigError(f"$.{name} is {found!r}.", "It is a list of op kind names.")
    return tuple(OpKind.parse(k) for k in found)


def _whole(value: object, path: str, most: int = U64, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{path} is {value!r}.", f"It is a whole number of {least} to {most}.")
    return value


def _variant(value: object) -> ModelVariant:
    if isinstance(value, str):
        return ModelVariant.parse(value)
    names = ("batch", "seq", "past_seq", "phase", "extra")
    if not isinstance(value, Mapping) or not set(value) <= set(names):
        raise ConfigError(
            f"$.variant is {value!r}.", f"It is a variant text or an object of {list(names)}."
        )
    for name in ("batch", "seq", "phase"):
        if name not in value:
            raise ConfigError(f"$.variant.{name} is missing.", "Every variant has one.")
    past = value.get("past_seq")
    extra = value.get("extra", [])
    if not isinstance(extra, list) or not all(isinstance(p, list) and len(p) == 2 for p in extra):
        raise ConfigError(f"$.variant.extra is {extra!r}.", "It is a list of [symbol, size].")
    return ModelVariant(
        ModelPhase.parse(str(value["phase"])),
        _whole(value["batch"], "$.variant.batch", least=1),
        _whole(value["seq"], "$.variant.seq", least=1),
        None if past is None else _whole(past, "$.variant.past_seq"),
        tuple(
            (_whole(s, "$.variant.extra", (1 << 32) - 1), _whole(n, "$.variant.extra"))
            for s, n in extra
        ),
    )


def key_line(line: str, number: int) -> dict[str, object]:
    """One JSON line of a component to its keys, for `rlx-ray key`.

    Args:
        line: the JSON text.
        number: its number in the input, from 1, for messages.

    Raises:
        ConfigError: the line is no JSON or no component; the message begins with its number.
    """
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"line {number} is not JSON: {error}.", "One object a line.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"line {number} is not an object.", "One component a line.")
    given = {k: v for k, v in value.items() if k not in _ANSWERS}
    try:
        component = ModelComponent.from_json(given)
    except ConfigError as error:
        raise ConfigError(f"line {number}: {error.message}", error.remedy) from error
    return {
        "variant_key": f"{component.variant.key:016x}",
        "cache_key": component.cache_key_hex,
        "aot_disk_base": component.aot_disk_base,
        "dim_binding": [list(pair) for pair in component.dim_binding],
    }


_ANSWERS = ("variant_key", "cache_key", "aot_disk_base", "dim_binding")
"""Fields that an input line may carry along, so that lines with answers can be fed back."""
