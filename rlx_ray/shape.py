"""Symbolic extents: a whole number times symbols of a dim binding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from rlx_ray.errors import VerifyError


class Symbol(IntEnum):
    """Symbols of a dim binding: below 16 RLX's, from 16 on this project's own."""

    BATCH = 0
    SEQ = 1
    ROWS = 2
    PAST_SEQ = 3
    PAGES = 16


_NAMES = {symbol.value: symbol.name.lower() for symbol in Symbol}


@dataclass(frozen=True, slots=True)
class Dim:
    """An extent: `factor` times the product of symbols (numbers as in a dim binding, sorted)."""

    factor: int = 1
    symbols: tuple[int, ...] = ()

    def __mul__(self, other: Dim | int) -> Dim:
        if isinstance(other, int):
            return Dim(self.factor * other, self.symbols)
        return Dim(self.factor * other.factor, tuple(sorted(self.symbols + other.symbols)))

    def bind(self, binding: Mapping[int, int]) -> Dim:
        """The extent with every symbol replaced by its size.

        Raises:
            VerifyError: the binding lacks a symbol.
        """
        size = self.factor
        for symbol in self.symbols:
            if symbol not in binding:
                raise VerifyError(f"dim {self} has no binding for symbol {symbol}.")
            size *= binding[symbol]
        return Dim(size)

    @property
    def size(self) -> int:
        """The extent as a number.

        Raises:
            VerifyError: it still has symbols.
        """
        if self.symbols:
            raise VerifyError(f"dim {self} is symbolic where a number is needed.")
        return self.factor

    def __str__(self) -> str:
        names = [_NAMES.get(s, f"x{s}") for s in self.symbols]
        factor = [str(self.factor)] if self.factor != 1 or not names else []
        return "*".join(factor + names)


BATCH = Dim(1, (Symbol.BATCH,))
SEQ = Dim(1, (Symbol.SEQ,))
ROWS = Dim(1, (Symbol.ROWS,))
"""Token rows: the most that a run may have. Batch times seq, or fewer in a ragged variant."""
PAGES = Dim(1, (Symbol.PAGES,))
"""Entries of a sequence's page table: enough for past_seq and seq tokens."""
PAGE = 32
"""Tokens of one page of a key-value cache."""
LIKELIEST = 20
"""Most tokens that are reported beside a chosen one as the likeliest."""


def elements(shape: tuple[int, ...]) -> int:
    """The number of elements of a bound shape."""
    total = 1
    for extent in shape:
        total *= extent
    return total
