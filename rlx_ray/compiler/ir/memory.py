"""Memory as both backends plan it: buffers with lives, and the tensors that a caller binds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rlx_ray.artifact.manifest import Binding
from rlx_ray.compiler.ir.mir import Shape
from rlx_ray.dtype import DType


@dataclass(frozen=True, slots=True)
class Buffer:
    """A planned piece of memory: first and last step of its life (inclusive), bytes, offset."""

    name: str
    size: int
    first: int
    last: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Memory of one space: its buffers, its size, and the least that liveness allows (bytes)."""

    buffers: tuple[Buffer, ...]
    size: int
    bound: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input, output or parameter of the program, with its offset in the arena (bytes)."""

    name: str
    dtype: DType
    shape: Shape
    offset: int
    layout: str = "plain"


def bind(tensors: Iterable[Tensor]) -> tuple[Binding, ...]:
    """Tensors as a binding manifest has them."""
    return tuple(Binding(t.name, t.dtype, t.shape, t.offset, t.layout) for t in tensors)
