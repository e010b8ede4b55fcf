"""Dataclasses as JSON and back, by their fields: one that is added later cannot be forgotten.

What a field may hold, and how JSON has it: texts, numbers, true and false, None as they are;
another dataclass as an object (as a list, if its class says `ROW`); an Enum and other named values
by their text; `tuple[X, ...]` as a list; a tuple of pairs whose first is a text as an object,
sorted; a `Hex` as 16 digits; a `JsonText` as what it says. A class that has `to_json` and
`from_json` of its own is asked for them.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache, lru_cache
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from rlx_ray.digest import canonical_json

T = TypeVar("T")

_HEX = "16 hex digits"

Hex = Annotated[int, _HEX]
"""A u64 that JSON has as 16 hex digits: readers of other languages would round its number."""

_JSON = "canonical JSON"

JsonText = Annotated[str, _JSON]
"""Canonical JSON text, which is hashable and frozen; JSON has the value that it says."""

_PLAIN = (str, int, float, bool, types.NoneType)


class RecordError(ValueError):
    """A JSON value is not the record that it should be; the message begins with its path."""


@dataclass(frozen=True, slots=True)
class _Codec:
    """How values of one type are written and read."""

    write: Callable[[Any], Any]
    read: Callable[[Any, str], Any]


def write(value: object) -> dict[str, Any]:
    """A dataclass as a JSON object with one entry for each field."""
    kind: Any = type(value)
    return {name: codec.write(getattr(value, name)) for name, codec in _fields(kind).items()}


def read(kind: type[T], value: object, path: str = "$") -> T:
    """The inverse of `write`.

    Args:
        kind: the dataclass.
        value: the JSON value.
        path: where it stands, for messages.

    Raises:
        RecordError: a field is missing, unknown, or of another type.
    """
    if not isinstance(value, Mapping):
        raise RecordError(f"{path} is {value!r}, not an object of {kind.__name__}.")
    codecs: dict[str, _Codec] = _fields(kind)  # type: ignore[arg-type]  # mypy: classes hash
    for name in value:
        if name not in codecs:
            raise RecordError(f"{path}.{name} is not known to {kind.__name__}.")
    for name in codecs:
        if name not in value:
            raise RecordError(f"{path}.{name} is missing.")
    return kind(**{name: c.read(value[name], f"{path}.{name}") for name, c in codecs.items()})


@cache
def _fields(kind: Any) -> dict[str, _Codec]:
    """The codecs of a dataclass's fields, but those that its constructor does not take."""
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: _codec(hints[f.name]) for f in fields(kind) if f.init}


@cache
def _codec(hint: Any) -> _Codec:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated and parts[1] == _HEX:
        return _Codec(lambda value: f"{value:016x}", _read_hex)
    if origin is Annotated and parts[1] == _JSON:
        return _Codec(_said, lambda value, _: canonical_json(value).decode())
    if origin in (Union, types.UnionType):
        return _union(parts)
    if origin is tuple:
        return _tuple(parts)
    if isinstance(hint, type):
        if hint in _PLAIN:
            return _plain((hint,))
        if hasattr(hint, "from_json"):
            return _Codec(lambda value: value.to_json(), lambda value, _: hint.from_json(value))
        if issubclass(hint, Enum) or (hasattr(hint, "parse") and hasattr(hint, "text")):
            return _named(hint)
        if is_dataclass(hint):
            return _row(hint) if getattr(hint, "ROW", False) else _nested(hint)
    raise TypeError(f"no JSON is known for the type {hint!r}")


def _plain(kinds: tuple[type, ...]) -> _Codec:
    def check(value: Any, path: str) -> Any:
        # Of whole numbers JSON does not say whether they are floats.
        if type(value) in kinds or (type(value) is int and float in kinds):
            return value
        names = " or ".join(k.__name__ for k in kinds)
        raise RecordError(f"{path} is {value!r}, not {names}.")

    return _Codec(lambda value: value, check)


@lru_cache(16)
def _said(text: str) -> Any:
    """What a JSON text says. All variants of a model have one: whoever is given it only reads."""
    return json.loads(text)


def _read_hex(value: object, path: str) -> int:
    if not isinstance(value, str) or len(value) != 16 or set(value) - set("0123456789abcdef"):
        raise RecordError(f"{path} is {value!r}, not 16 lower-case hex digits.")
    return int(value, 16)


def _union(parts: tuple[Any, ...]) -> _Codec:
    """Plain types, or one other type and None."""
    if all(part in _PLAIN for part in parts):
        return _plain(parts)
    (inner,) = (_codec(part) for part in parts if part is not types.NoneType)
    return _Codec(
        lambda value: None if value is None else inner.write(value),
        lambda value, path: None if value is None else inner.read(value, path),
    )


def _tuple(parts: tuple[Any, ...]) -> _Codec:
    if len(parts) == 2 and parts[1] is ...:
        pair = get_args(parts[0]) if get_origin(parts[0]) is tuple else ()
        if len(pair) == 2 and pair[0] is str:
            return _entries(_codec(pair[1]))
        inner = _codec(parts[0])
        return _Codec(
            lambda value: [inner.write(one) for one in value],
            lambda value, path: tuple(
                inner.read(one, f"{path}[{i}]") for i, one in enumerate(_list(value, path))
            ),
        )
    codecs = tuple(_codec(part) for part in parts)

    def read_each(value: object, path: str) -> tuple[Any, ...]:
        items = _list(value, path, len(codecs))
        pairs = enumerate(zip(codecs, items, strict=True))
        return tuple(codec.read(one, f"{path}[{i}]") for i, (codec, one) in pairs)

    return _Codec(
        lambda value: [c.write(one) for c, one in zip(codecs, value, strict=True)], read_each
    )


def _entries(inner: _Codec) -> _Codec:
    """Pairs of a name and a value, as an object."""

    def read_pairs(value: object, path: str) -> tuple[tuple[str, Any], ...]:
        if not isinstance(value, Mapping):
            raise RecordError(f"{path} is {value!r}, not an object.")
        return tuple(sorted((k, inner.read(v, f"{path}.{k}")) for k, v in value.items()))

    def write_pairs(value: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
        found = {name: inner.write(one) for name, one in value}
        if len(found) != len(value):
            raise ValueError(f"two entries have one name: {[name for name, _ in value]}")
        return found

    return _Codec(write_pairs, read_pairs)


def _named(kind: Any) -> _Codec:
    """Values of a table: an Enum of texts, or a class with `text` and `parse`."""
    if issubclass(kind, Enum) and all(isinstance(one.value, str) for one in kind):
        table = {one.value: one for one in kind}

        def find(value: object, path: str) -> Any:
            if not isinstance(value, str) or value not in table:
                raise RecordError(f"{path} is {value!r}, not one of {list(table)}.")
            return table[value]

        return _Codec(lambda value: value.value, find)

    def parse(value: object, path: str) -> Any:
        if not isinstance(value, str):
            raise RecordError(f"{path} is {value!r}, not a text.")
        return kind.parse(value)

    return _Codec(lambda value: value.text, parse)


def _nested(kind: type) -> _Codec:
    return _Codec(write, lambda value, path: read(kind, value, path))


def _row(kind: type) -> _Codec:
    """A dataclass as the list of its fields' values."""

    def read_row(value: object, path: str) -> Any:
        codecs = _fields(kind)
        items = _list(value, path, len(codecs))
        named = dict(zip(codecs, items, strict=True))
        return kind(**{name: codecs[name].read(v, f"{path}.{name}") for name, v in named.items()})

    return _Codec(lambda value: list(write(value).values()), read_row)


def _list(value: object, path: str, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or length not in (None, len(value)):
        many = "" if length is None else f" of {length}"
        raise RecordError(f"{path} is {value!r}, not a list{many}.")
    return value
