"""Floats of 8 and 4 bits: E4M3 and E5M2 (arXiv:2209.05433), E2M1 (OCP Microscaling Formats 1.0).

A code is sign, exponent, mantissa from the highest bit down. E4M3 has no infinities and one NaN for
each sign, E5M2 has those of IEEE 754, E2M1 has neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class SmallFloat:
    """A format.

    Attributes:
        exponent: its bits; the bias is 2^(exponent - 1) - 1.
        mantissa: its bits.
        finite: how many codes without sign stand for numbers; those above are infinity and NaN.
    """

    exponent: int
    mantissa: int
    finite: int

    @cached_property
    def magnitudes(self) -> npt.NDArray[np.float32]:
        """The numbers that are not negative, in the order of their codes, which ascends."""
        codes = np.arange(self.finite)
        power, part = codes >> self.mantissa, codes & ((1 << self.mantissa) - 1)
        normal = power > 0
        significand = part + np.where(normal, 1 << self.mantissa, 0)
        shift = np.maximum(power, 1) - (1 << (self.exponent - 1)) + 1 - self.mantissa
        return np.asarray(np.ldexp(significand, shift), np.float32)

    @property
    def largest(self) -> float:
        """The largest number."""
        return float(self.magnitudes[-1])

    def encode(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """Codes of the nearest numbers, ties to even; what is too large becomes the largest.

        Args:
            values: float32, finite, of any shape.
        """
        size = np.abs(values)
        between = (self.magnitudes[1:] + self.magnitudes[:-1]) / 2
        below = np.searchsorted(between, size, side="left")
        above = np.searchsorted(between, size, side="right")  # differs from `below` at a tie
        codes = np.where(below % 2, above, below)
        signs = np.signbit(values) * np.uint8(1 << (self.exponent + self.mantissa))
        return codes.astype(np.uint8) | signs.astype(np.uint8)

    def decode(self, codes: npt.NDArray[np.uint8]) -> Any:
        """The numbers of codes, float32 of the same shape; none of them infinity or NaN."""
        signs = 1 << (self.exponent + self.mantissa)
        sizes = self.magnitudes[codes & (signs - 1)]
        return np.where(codes & signs, -sizes, sizes)


E4M3 = SmallFloat(4, 3, 127)
E5M2 = SmallFloat(5, 2, 124)
E2M1 = SmallFloat(2, 1, 8)

FP8 = {"fp8e4m3": E4M3, "fp8e5m2": E5M2}
"""The formats of 8 bits by the name of their matrix format."""
