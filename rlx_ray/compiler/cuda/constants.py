"""Constants of CUDA kernels, and what a launch of one is."""

from __future__ import annotations

from dataclasses import dataclass

from rlx_ray.compiler.ir.expr import Expr
from rlx_ray.dtype import DType


@dataclass(frozen=True, slots=True)
class Operand:
    """An operand of an elementwise region.

    Attributes:
        t: element type.
        at: the element at which a row begins, an expression of `row`.
        step: 1 if it has a value for each column, 0 if one for the row.
    """

    t: DType
    at: str
    step: int


Value = int | float | str | DType | tuple[Operand, ...] | Expr
Constants = dict[str, Value]


@dataclass(frozen=True, slots=True)
class Launch:
    """How a kernel is started: extents of the grid, threads of a block, bytes of shared memory.

    More than 48 KiB of shared memory must be asked for when the kernel is loaded.
    """

    grid: tuple[int, int, int]
    block: int
    shared: int = 0


SHARED = 99 << 10
"""Bytes of shared memory that a block has on the smallest of the architectures."""

INDICES = 1 << 31
"""Kernels count threads, and elements of what is elementwise, in 32 bits."""


def refusal(how: Launch) -> str:
    """Why no device takes a launch, as a clause; empty if each of CUDA_TARGETS does."""
    x, y, z = how.grid
    if x >= INDICES or max(y, z) >= 1 << 16:
        return f"would have a grid of {x} x {y} x {z} blocks"
    if how.shared > SHARED:
        return f"would have {how.shared} bytes of shared memory, of {SHARED}"
    return ""
