"""A node in one tile: its shapes there, and how its operands are read.

A tile is one of `tiles` equal pieces of the leading axis of every batched value: some whole padded
sequences. Programs over packed rows have `packed.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlx_ray.compiler.cpu.lir import Kernel
from rlx_ray.compiler.ir.mir import Node, Shape


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
