"""A strict reader of parsed config values: each one knows its path, and every error says it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rlx_ray.errors import ConfigError, nearest

T = TypeVar("T")

MOST = 2**31 - 1
"""The largest whole number of a config where nothing smaller is said: extents are int32."""


@dataclass(frozen=True, slots=True)
class ConfigNode:
    """A value with its path from the root, such as `$.models[0].matrix[1].seq`.

    Every method raises ConfigError with path, value and what would be accepted.
    """

    value: object
    path: str

    def wrong(self, expected: str, remedy: str = "") -> ConfigError:
        """The error for a value that is not what is expected."""
        return ConfigError(f"{self.path}: expected {expected}, found {_shown(self.value)}.", remedy)

    def mapping(self) -> dict[str, ConfigNode]:
        """The entries of a mapping with any names."""
        if not isinstance(self.value, Mapping):
            raise self.wrong("a mapping")
        for key in self.value:
            if not isinstance(key, str):
                raise ConfigError(f"{self.path}: the key {key!r} is not text.", "Put it in quotes.")
        return {key: ConfigNode(value, f"{self.path}.{key}") for key, value in self.value.items()}

    def section(
        self, known: Collection[str], required: Collection[str] = ()
    ) -> dict[str, ConfigNode]:
        """The entries of a mapping whose names are all known and of which some are required."""
        nodes = self.mapping()
        for key, node in nodes.items():
            if key not in known:
                raise ConfigError(
                    f"{node.path} is not a known key.",
                    nearest(key, known) or f"Known here are {sorted(known)}.",
                )
        for key in required:
            if key not in nodes:
                raise ConfigError(f"{self.path}.{key} is missing.", f"Add {key!r} there.")
        return nodes

    def items(self) -> tuple[ConfigNode, ...]:
        """The items of a list that is not empty."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        if not self.value:
            raise self.wrong("at least one item")
        return tuple(ConfigNode(v, f"{self.path}[{i}]") for i, v in enumerate(self.value))

    def text(self) -> str:
        """Text that is not empty."""
        if not isinstance(self.value, str) or not self.value:
            raise self.wrong("text")
        return self.value

    def boolean(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def whole(self, low: int, high: int = MOST) -> int:
        """A whole number within bounds, both included."""
        if type(self.value) is not int or not low <= self.value <= high:
            raise self.wrong(f"a whole number from {low} to {high}")
        return self.value

    def wholes(self, low: int, high: int = MOST) -> tuple[int, ...]:
        """One whole number or a list of them, none of them twice."""
        nodes = self.items() if isinstance(self.value, list) else (self,)
        values = tuple(node.whole(low, high) for node in nodes)
        if len(set(values)) < len(values):
            raise self.wrong("each value once")
        return values

    def number(self, low: float, high: float) -> float:
        """A finite number above a bound and up to another."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong("a number")
        if not math.isfinite(value) or not low < value <= high:
            raise self.wrong(f"a number above {low:g} and up to {high:g}")
        return float(value)

    def choice(self, allowed: Mapping[str, T]) -> T:
        """What one of some names stands for."""
        if not isinstance(self.value, str) or self.value not in allowed:
            hint = nearest(self.value, allowed) if isinstance(self.value, str) else ""
            raise self.wrong(f"one of {list(allowed)}", hint)
        return allowed[self.value]

    def checked(self, make: Callable[[str], T]) -> T:
        """What a function makes of the text; its ConfigError gets the path."""
        text = self.text()
        try:
            return make(text)
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {error.message}", error.remedy) from error


def _shown(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case Mapping():
            return f"a mapping with {sorted(map(str, value))}"
        case list():
            return f"a list of {len(value)} items" if len(value) > 8 else repr(value)
        case _:
            return repr(value)


def absolute_path(text: str, base: Path) -> str:
    """A path made absolute against a folder; `~` is the home folder."""
    return os.path.normpath(base / Path(text).expanduser())


def absolute_url(text: str, base: Path) -> str:
    """A path or `file://` URL made absolute against a folder; any other URL as it is."""
    if text.startswith("file://") and "::" not in text:
        return "file://" + absolute_path(text.removeprefix("file://"), base)
    return text if "://" in text or "::" in text else absolute_path(text, base)


def store_url(text: str, base: Path) -> str:
    """The same for a store: a path becomes a `file://` URL."""
    url = absolute_url(text, base)
    return url if "://" in url or "::" in url else f"file://{url}"
