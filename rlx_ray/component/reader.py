"""Strict readers of parsed JSON: every error names the path, the value and what would be right."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from rlx_ray.component.rust_hash import U64
from rlx_ray.errors import ConfigError, nearest

T = TypeVar("T")


def section(
    value: object, path: str, known: Collection[str], required: Collection[str] = ()
) -> dict[str, object]:
    """The entries of an object whose names are all known and of which some are required.

    Raises:
        ConfigError: it is no object, or has an unknown name, or lacks a required one.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} is {value!r}.", f"It is an object of {list(known)}.")
    for name in value:
        if name not in known:
            raise ConfigError(
                f"{path}.{name} is not known.",
                nearest(str(name), known) or f"Known here: {list(known)}.",
            )
    for name in required:
        if name not in value:
            raise ConfigError(f"{path}.{name} is missing.", f"Required: {list(required)}.")
    return dict(value)


def whole(value: object, path: str, least: int = 0, most: int = U64) -> int:
    """A whole number within bounds, both included; true and false are none.

    Raises:
        ConfigError: it is something else.
    """
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(f"{path} is {value!r}.", f"It is a whole number of {least} to {most}.")
    return value


def text(value: object, path: str) -> str:
    """A text.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(value, str):
        raise ConfigError(f"{path} is {value!r}.", "It is a text.")
    return value


def key(value: object, path: str) -> int:
    """A u64 from its 16 lower-case hex digits.

    Raises:
        ConfigError: it is something else.
    """
    digits = text(value, path)
    if len(digits) != 16 or any(c not in "0123456789abcdef" for c in digits):
        raise ConfigError(f"{path} is {digits!r}.", "It is 16 lower-case hex digits.")
    return int(digits, 16)


def items(value: object, path: str, expected: str) -> list[tuple[object, str]]:
    """The items of a list, each with its path.

    Raises:
        ConfigError: it is no list; the message says that it is `expected`.
    """
    if not isinstance(value, list):
        raise ConfigError(f"{path} is {value!r}.", f"It is a list of {expected}.")
    return [(item, f"{path}[{i}]") for i, item in enumerate(value)]


def named(parse: Callable[[str], T], value: object, path: str) -> T:
    """What a `parse` function makes of a text; its ConfigError gets the path.

    Raises:
        ConfigError: it is no text, or not one that the function knows.
    """
    name = text(value, path)
    try:
        return parse(name)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", error.remedy) from error
