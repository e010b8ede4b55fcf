"""LIR: kernel instances, regions of tiles with a barrier behind each, and where buffers lie."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rlx_ray.compiler.cpu.templates import Kernel
from rlx_ray.compiler.ir.memory import MemoryPlan, Tensor
from rlx_ray.compiler.ir.mir import Note


class Space(Enum):
    """Where a buffer lies."""

    PARAM = "param"  # offset is the index into the parameter table
    ARENA = "arena"  # shared by all threads, offset in bytes
    SCRATCH = "scratch"  # one tile's, in the thread's own part, offset in bytes


@dataclass(frozen=True, slots=True)
class TileArgument:
    """An argument: a buffer, and how far in it a tile's part begins.

    Attributes:
        offset: of the buffer (bytes; for a parameter its index in the table).
        stride: bytes for each tile before this one.
        row: bytes for each token row before the tile's span.
        sequence: bytes for each sequence before the tile's span.
        shift: bytes added once: a later part of a parameter, say.
    """

    space: Space
    offset: int
    stride: int = 0
    row: int = 0
    sequence: int = 0
    shift: int = 0


@dataclass(frozen=True, slots=True)
class KernelCall:
    """A kernel on one tile: the output, the inputs in the template's order, the operands.

    `layer` is whose keys and values in the cache it uses, where it uses the cache.
    """

    kernel: Kernel
    output: TileArgument
    inputs: tuple[TileArgument | None, ...]
    operands: tuple[TileArgument, ...] = ()
    scratch: TileArgument | None = None
    origin: str = ""
    layer: int = 0


@dataclass(frozen=True, slots=True)
class Region:
    """Tiles that threads share out, and the calls that run on each, depth-first.

    Attributes:
        axis: what a tile is a piece of: `sequences`, `rows`, `columns`, `heads`, `each` (one
            sequence) or `whole`.
        tiles: how many.
        calls: what runs on one tile, in order.
        reason: why this axis and this tile size.
        begin: calls that each thread runs once, before its first tile, into its own scratch.
    """

    axis: str
    tiles: int
    calls: tuple[KernelCall, ...]
    reason: str
    begin: tuple[KernelCall, ...] = ()

    @property
    def all_calls(self) -> tuple[KernelCall, ...]:
        """What it runs at its beginning, then what it runs on a tile."""
        return (*self.begin, *self.calls)


@dataclass(frozen=True, slots=True)
class Packing:
    """How the token rows of a packed program are bounded (kernels/c/span.h).

    Attributes:
        sequences: most sequences.
        cap: most tokens of one.
        rows: most token rows.
        lengths: where the input with the sequences' lengths lies in the arena (bytes).
    """

    sequences: int
    cap: int
    rows: int
    lengths: int


@dataclass(frozen=True, slots=True)
class Lir:
    """A program ready to be printed as C or as a launch plan."""

    inputs: tuple[Tensor, ...]
    params: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    regions: tuple[Region, ...]
    arena: MemoryPlan
    scratch: MemoryPlan
    flops: int
    packing: Packing | None = None
    notes: tuple[Note, ...] = ()
    page: int = 0  # bytes of a page of the key-value cache; 0 without one

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The distinct kernels, in the order of their first call."""
        return tuple(dict.fromkeys(c.kernel for r in self.regions for c in r.all_calls))
