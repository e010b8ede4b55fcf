"""Layer compositions: what a model is made of, as RLX's tree of named layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from rlx_ray.component import reader
from rlx_ray.component.rust_hash import RustHasher
from rlx_ray.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Single:
    """One layer."""

    name: str

    def __post_init__(self) -> None:
        _check_name(self.name)


@dataclass(frozen=True, slots=True)
class Homogeneous:
    """The same layer, `count` times."""

    name: str
    count: int

    def __post_init__(self) -> None:
        _check_name(self.name)
        reader.whole(self.count, "layer count")


def _check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"layer name {name!r} is no UTF-8.", "Use another name.") from error


@dataclass(frozen=True, slots=True)
class Pair:
    """One composition after another."""

    head: LayerComposition
    tail: LayerComposition


LayerComposition: TypeAlias = Single | Homogeneous | Pair


def composition_key(composition: LayerComposition) -> int:
    """RLX's layer composition key, a u64."""
    hasher = RustHasher()
    _write(hasher, composition)
    return hasher.finish()


def _write(hasher: RustHasher, composition: LayerComposition) -> None:
    match composition:
        case Single(name):
            hasher.u8(0)
            hasher.text(name)
        case Homogeneous(name, count):
            hasher.u8(1)
            hasher.text(name)
            hasher.u64(count)
        case Pair(head, tail):
            hasher.u8(2)
            _write(hasher, head)
            _write(hasher, tail)


def composition_to_json(composition: LayerComposition) -> dict[str, object]:
    """As `{"single": name}`, `{"homogeneous": [name, count]}` or `{"pair": [head, tail]}`."""
    match composition:
        case Single(name):
            return {"single": name}
        case Homogeneous(name, count):
            return {"homogeneous": [name, count]}
        case Pair(head, tail):
            return {"pair": [composition_to_json(head), composition_to_json(tail)]}


def composition_from_json(value: Mapping[str, Any]) -> LayerComposition:
    """The inverse of `composition_to_json`.

    Raises:
        ConfigError: it is no such object.
    """
    match value:
        case {"single": str(name), **rest} if not rest:
            return Single(name)
        case {"homogeneous": [str(name), int(count)], **rest} if not rest:
            return Homogeneous(name, count)
        case {"pair": [head, tail], **rest} if not rest:
            return Pair(composition_from_json(head), composition_from_json(tail))
        case _:
            raise ConfigError(
                f"layer composition {value!r} is not understood.",
                'Write {"single": name}, {"homogeneous": [name, count]} or {"pair": [head, tail]}.',
            )


def composition_text(composition: LayerComposition) -> str:
    """Such as `pair(embed, bert_layer x 6)`."""
    match composition:
        case Single(name):
            return name
        case Homogeneous(name, count):
            return f"{name} x {count}"
        case Pair(head, tail):
            return f"pair({composition_text(head)}, {composition_text(tail)})"
