"""Enums that mirror Rust's: the value is the Rust name, the order gives the discriminant."""

from __future__ import annotations

from enum import Enum
from typing import Self

from rlx_ray.errors import ConfigError, nearest


class RustEnum(Enum):
    """Base of enums whose members enter RLX's keys by their discriminant."""

    @classmethod
    def what(cls) -> str:
        """What a member is called in messages."""
        return cls.__name__

    @property
    def discriminant(self) -> int:
        """The Rust discriminant."""
        return list(type(self)).index(self)

    @property
    def spelling(self) -> str:
        """How configs and texts spell it: the member's name in lower case."""
        return self.name.lower()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The member from its Rust name or its spelling.

        Raises:
            ConfigError: no such member.
        """
        for one in cls:
            if text in (one.value, one.spelling):
                return one
        names = [one.spelling for one in cls]
        raise ConfigError(
            f"{cls.what()} {text!r} is not known.",
            nearest(text, names) or f"Use one of {names}.",
        )
