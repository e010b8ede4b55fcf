"""The component: everything that is to be specialised, and RLX's 64-bit key of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlx_ray import record
from rlx_ray.component import reader
from rlx_ray.component.kernel_dispatch import KernelDispatchConfig, KernelDispatchPolicy, OpKind
from rlx_ray.component.quant import QuantScheme
from rlx_ray.component.rust_enum import RustEnum
from rlx_ray.component.rust_hash import U32, RustHasher
from rlx_ray.component.variant import ModelPhase, ModelVariant
from rlx_ray.errors import ConfigError
from rlx_ray.record import Hex


class CompilationMode(RustEnum):
    """When a variant is compiled; the value is the Rust name, the order the discriminant."""

    EAGER = "Eager"
    LAZY = "Lazy"
    AOT = "Aot"

    @classmethod
    def what(cls) -> str:
        """What a member is called in messages."""
        return "mode"


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
    profile_key: Hex
    quant: QuantScheme | None
    layer_composition_key: Hex

    def __post_init__(self) -> None:
        reader.whole(self.profile_key, "profile_key")
        reader.whole(self.layer_composition_key, "layer_composition_key")

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
        value = record.write(self)
        dispatch: dict[str, Any] = value.pop("dispatch")
        return {**value, **dispatch}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelComponent:
        """The component from the fields that `to_json` writes.

        `variant` may also be a variant text, `quant` a display text.

        Raises:
            ConfigError: a field is missing, unknown or has a value of the wrong kind.
        """
        given = reader.section(value, "$", (*_REQUIRED, *_OPTIONAL), _REQUIRED)
        quant = given.get("quant")
        return cls(
            _variant(given["variant"]),
            KernelDispatchConfig(
                reader.named(KernelDispatchPolicy.parse, given["policy"], "$.policy"),
                _kinds(given.get("force_common", []), "$.force_common"),
                _kinds(given.get("force_native", []), "$.force_native"),
            ),
            reader.named(CompilationMode.parse, given["mode"], "$.mode"),
            reader.key(given["profile_key"], "$.profile_key"),
            None if quant is None else reader.named(QuantScheme.parse, quant, "$.quant"),
            reader.key(given["layer_composition_key"], "$.layer_composition_key"),
        )


_REQUIRED = ("variant", "policy", "mode", "profile_key", "layer_composition_key")
_OPTIONAL = ("force_common", "force_native", "quant")


def _kinds(value: object, path: str) -> tuple[OpKind, ...]:
    return tuple(
        reader.named(OpKind.parse, item, where)
        for item, where in reader.items(value, path, "op kind names")
    )


def _variant(value: object) -> ModelVariant:
    if isinstance(value, str):
        return reader.named(ModelVariant.parse, value, "$.variant")
    names = ("batch", "seq", "past_seq", "phase", "extra")
    given = reader.section(value, "$.variant", names, ("batch", "seq", "phase"))
    past = given.get("past_seq")
    extra = reader.items(given.get("extra", []), "$.variant.extra", "[symbol, size]")
    return ModelVariant(
        reader.named(ModelPhase.parse, given["phase"], "$.variant.phase"),
        reader.whole(given["batch"], "$.variant.batch", least=1),
        reader.whole(given["seq"], "$.variant.seq", least=1),
        None if past is None else reader.whole(past, "$.variant.past_seq"),
        tuple(_extra(item, where) for item, where in extra),
    )


def _extra(value: object, path: str) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ConfigError(f"{path} is {value!r}.", "It is [symbol, size].")
    return (
        reader.whole(value[0], f"{path}[0]", most=U32),
        reader.whole(value[1], f"{path}[1]"),
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
        component = ModelComponent.from_json(_object(line))
    except ConfigError as error:
        raise ConfigError(f"line {number}: {error.message}", error.remedy) from error
    return {
        "variant_key": f"{component.variant.key:016x}",
        "cache_key": component.cache_key_hex,
        "aot_disk_base": component.aot_disk_base,
        "dim_binding": [list(pair) for pair in component.dim_binding],
    }


def _object(line: str) -> dict[str, object]:
    """The line's object without the answers that it may carry along."""
    try:
        value = json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON: {error}.", "Write one object a line.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"$ is {value!r}.", "Write one component a line, as an object.")
    return {name: inner for name, inner in value.items() if name not in _ANSWERS}


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # Of a name that stands twice json keeps the last: the key would be of half of what was written.
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ConfigError(f"the field {name!r} stands twice.", "Write it once.")
        found[name] = value
    return found


_ANSWERS = ("variant_key", "cache_key", "aot_disk_base", "dim_binding")
"""Fields that an input line may carry along, so that lines with answers can be fed back."""
