"""How a node's operands are read, and the numbers by which kernels know its kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlx_ray.compiler.ir.mir import Shape
from rlx_ray.shape import elements

REDUCTIONS = {"sum": 0, "max": 1}
"""Kinds of a reduction, as kernels/cuda/reduce.cu numbers them."""

POOLS = {"mean": 0, "max": 1, "cls": 2, "last": 3}
"""Kinds of pooling, as kernels/cuda/pool.cu numbers them."""


@dataclass(frozen=True, slots=True)
class OperandAccess:
    """How an expression reads an operand at (row, column) of its output.

    The element index is sum((row // div) % mod * step) + column * column_step, where mod 0 means
    no modulo; `column_step` is 0 (one value a row) or 1.
    """

    terms: tuple[tuple[int, int, int], ...]
    column_step: int


def operand(out: Shape, shape: Shape) -> OperandAccess:
    """How an operand of `shape` is read at each element of `out`, aligned at the last axis."""
    padded = (1,) * (len(out) - len(shape)) + shape
    columns = out[-1]
    steps: list[int] = []
    stride = 1
    for axis in range(len(out) - 1, -1, -1):
        steps.insert(0, stride if padded[axis] != 1 else 0)
        stride *= padded[axis]
    terms: list[tuple[int, int, int]] = []
    div = 1
    for axis in range(len(out) - 2, -1, -1):
        extent, step = out[axis], steps[axis]
        if extent > 1:
            terms.append((div, extent, step))
        div *= extent
    return OperandAccess(_merge_terms(terms), int(columns > 1 and padded[-1] == columns))


def _merge_terms(terms: Sequence[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    """Inner to outer (div, extent, step), with neighbours that walk on in one stride joined."""
    merged: list[tuple[int, int, int]] = []
    for div, extent, step in terms:
        if merged:
            low_div, low_extent, low_step = merged[-1]
            if step == low_step * low_extent and low_div * low_extent == div:
                merged[-1] = (low_div, low_extent * extent, low_step)
                continue
        merged.append((div, extent, step))
    if merged:
        div, _, step = merged[-1]
        merged[-1] = (div, 0, step)  # the outermost axis needs no modulo
    return tuple(t for t in merged if t[2])


def grid(shape: Shape) -> tuple[int, int]:
    """Rows and columns: all axes but the last are rows."""
    return elements(shape[:-1]), shape[-1]
