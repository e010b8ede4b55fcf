"""What an operation's CPU rule is: one row that says how it is computed, cut and priced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from rlx_ray.compiler.cpu.templates import Extent, Kernel, Template
from rlx_ray.compiler.ir.mir import Mir, Node, Op, Shape
from rlx_ray.target import Target

RATE = 0.4
"""The share of the arithmetic peak that an operation reaches if its rule does not say."""


class Domain(Enum):
    """What the leading axis of a batched value counts."""

    TOKENS = "tokens"
    SEQUENCES = "sequences"

    @property
    def extent(self) -> Extent:
        """How many of them a tile has."""
        return Extent.ROWS if self is Domain.TOKENS else Extent.SEQUENCES


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a matmul that one call does.

    Attributes:
        n: columns of the result.
        k: terms of each sum.
        lda: columns of a row of the left operand.
        ldc: columns of a row of the result.
        more: the sum goes on from what is in the result.
        last: the sum ends here, and the epilogue follows.
        by_columns: a tile is `n` of the `ldc` columns, the last one what is left.
    """

    n: int
    k: int
    lda: int
    ldc: int
    more: bool = False
    last: bool = True
    by_columns: bool = False


@dataclass(frozen=True, slots=True)
class Site:
    """Where a node runs: what it sees in one tile.

    In a padded program a tile is one of `tiles` equal pieces of the leading axis of every batched
    value, and shapes are those in the tile. In a packed one they are those of whole values, and
    how many rows a tile has is its span's.

    Attributes:
        node: the node.
        shape: of its output.
        inputs: shapes of its inputs.
        rows: rows of the output in a tile: all axes but the last.
        axis: of the region.
        tiles: how many there are.
        part: of a matmul, if it is not whole.
    """

    node: Node
    shape: Shape
    inputs: tuple[Shape, ...]
    rows: int | Extent
    axis: str
    tiles: int = 1
    part: Part | None = None

    def real(self, name: str) -> float:
        """The value of the node's attribute that is a floating-point number."""
        value = self.node.attr(name)
        assert isinstance(value, float), (self.node, name)
        return value

    def numbers(self, *names: str) -> dict[str, int]:
        """The values of some of the node's whole-number attributes."""
        return {name: self.node.number(name) for name in names}


@dataclass(frozen=True, slots=True)
class Lowered:
    """A kernel and which of the node's inputs are its inputs (None: absent) and its operands."""

    kernel: Kernel
    inputs: tuple[int | None, ...]
    operands: tuple[int, ...] = ()


Form = Callable[[Site], Lowered]
"""From a node to the kernel instance that computes one tile of it."""

Rows = Callable[[Mir, Node, set[Domain]], Domain | None]
"""From a node, and what the rows of its batched inputs are, to what its own are; None where it
cannot run on packed rows."""


def _not_packed(mir: Mir, node: Node, sources: set[Domain]) -> None:
    return None


def _never(node: Node) -> bool:
    return False


def _one_head(node: Node, sequences: int) -> int:
    return 1


@dataclass(frozen=True, slots=True)
class Partition:
    """How an operation may be cut.

    Attributes:
        rows: what its rows are in a packed program.
        axis: of its region where each operation has one of its own: `rows`, `columns` or `heads`.
        heads: how many tiles of heads there are, of some sequences.
        in_parts: whether a matmul can make some of its columns, or add up some of its terms.
        attends: a tile reads rows of its sequences that are not its own.
        follows: operations whose tile of heads writes what the same tile of this one reads, and no
            other: no barrier is needed between them.
        cheap: on few rows each thread may do it for itself, which costs less than a barrier.
        token_rows: its leading extent says how many token rows there are.
        batch: it holds the batch though none of its inputs does.
        tokens: the attribute that says the most tokens of a sequence; input 1 tells the lengths.
    """

    rows: Rows = _not_packed
    axis: str = "rows"
    heads: Callable[[Node, int], int] = _one_head
    in_parts: Callable[[Node], bool] = _never
    attends: bool = False
    follows: tuple[Op, ...] = ()
    cheap: bool = False
    token_rows: bool = False
    batch: bool = False
    tokens: str = ""


def _no_scratch(mir: Mir, node: Node, target: Target) -> int:
    return 0


def _plain_rate(node: Node, rows: float, target: Target) -> float:
    return RATE


def _no_weights(mir: Mir, node: Node) -> float:
    return 0.0


def _no_copies(node: Node) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class OpRule:
    """An operation's row.

    Attributes:
        templates: all that its forms use.
        padded: its form in rectangles of padded sequences.
        packed: its form over packed rows; None if it has none.
        partition: how it may be cut.
        scratch: bytes that its kernel wants for itself.
        rate: the share of the arithmetic peak of float32 that it reaches on some rows.
        weights: bytes of parameters that it reads from memory.
        copied: bytes that it copies into panels.
    """

    templates: tuple[Template, ...]
    padded: Form
    packed: Form | None = None
    partition: Partition = Partition()
    scratch: Callable[[Mir, Node, Target], int] = _no_scratch
    rate: Callable[[Node, float, Target], float] = _plain_rate
    weights: Callable[[Mir, Node], float] = _no_weights
    copied: Callable[[Node], int] = _no_copies

    @property
    def cache(self) -> bool:
        """Whether it reads or writes the key-value cache."""
        return any(template.cache for template in self.templates)


def token_rows(mir: Mir, node: Node, sources: set[Domain]) -> Domain:
    """The rows of an operation that gives one for each token."""
    return Domain.TOKENS


def sequence_rows(mir: Mir, node: Node, sources: set[Domain]) -> Domain:
    """The rows of an operation that gives one for each sequence."""
    return Domain.SEQUENCES


def source_rows(mir: Mir, node: Node, sources: set[Domain]) -> Domain | None:
    """The rows of an operation of rank 2 whose row i needs row i of its batched inputs alone."""
    return next(iter(sources)) if len(node.shape) == 2 and len(sources) == 1 else None


def own_rows(mir: Mir, node: Node, sources: set[Domain]) -> Domain | None:
    """The same where every input has that many rows, or one that all share."""
    shapes = [mir.nodes[i].shape for i in node.inputs]
    plain = all(len(s) < 2 or (len(s) == 2 and s[0] in (1, node.shape[0])) for s in shapes)
    return source_rows(mir, node, sources) if plain else None
