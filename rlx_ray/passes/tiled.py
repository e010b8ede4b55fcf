"""A node in one tile: its shapes there, and how its operands are read.

A tile is one of `tiles` equal pieces of the leading axis of every batched value: some whole padded
sequences. Programs over packed rows have `packed.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlx_ray.ir.lir import Kernel, Operand
from rlx_ray.ir.mir import Node, Shape
from rlx_ray.shape import elements


@dataclass(frozen=True, slots=True)
class Tiled:
    """A node with the shapes that it and its inputs have in one tile.

    Attributes:
        node: the node.
        shape: its output's shape in the tile.
        inputs: the inputs' shapes in the tile.
        tiles: how many tiles there are.
    """

    node: Node
    shape: Shape
    inputs: tuple[Shape, ...]
    tiles: int


@dataclass(frozen=True, slots=True)
class Lowered:
    """A kernel and which of the node's inputs are its inputs (None: absent) and its operands."""

    kernel: Kernel
    inputs: tuple[int | None, ...]
    operands: tuple[int, ...] = ()


def operand(out: Shape, shape: Shape) -> Operand:
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
    return Operand(_merge_terms(terms), int(columns > 1 and padded[-1] == columns))


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
