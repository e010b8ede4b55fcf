"""Regions: which operations share a tile, and where a barrier has to stand.

A program is *packed* if every operation can run on token rows without padding: only the lengths,
known at run time, say how many rows there are, and a tile is a span of them (kernels/c/span.h). A
program with primitives that need rectangles (the common lowering of attention, say) is not; its
tiles are whole padded sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlx_ray.compiler.cpu.op_rule import Domain
from rlx_ray.compiler.cpu.rules import partition
from rlx_ray.compiler.ir.mir import Mir, Node, Op
from rlx_ray.shape import elements

COLUMN_TILES = 32
"""Most tiles that a matmul's columns are cut into."""

ROW_TILES = 16
"""Tiles that row-wise operations have beside matmuls that are cut by columns."""

REDUNDANT_ROWS = 32
"""Most token rows that every thread may normalise or quantise for itself."""

_WIDE = 4096
"""Columns from which a matmul over sequences is cut by columns."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """One way to cut a program.

    Attributes:
        axis: `sequences` (a tile is some whole sequences and runs every layer depth-first), `rows`
            (a tile is a share of the token rows; attention needs a barrier before) or `columns`
            (every operation is a region of its own: matmuls by columns, attention by heads).
        tiles: pieces of the batch for operations that can be cut this way; 0 for `columns`, where
            each operation has its own number.
    """

    axis: str
    tiles: int


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes that run on one tile before the next tile begins.

    Attributes:
        axis: `sequences`, `rows`, `columns`, `heads`, `each` (one sequence a tile) or `whole`.
        tiles: how many.
        nodes: what runs on one tile, in order.
        begin: what each thread runs for itself before its first tile: cheap work on all rows, which
            costs less than a barrier.
    """

    axis: str
    tiles: int
    nodes: tuple[int, ...]
    begin: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RegionAnalysis:
    """What is known of a program before it is cut.

    Attributes:
        sequences: the batch: leading extent of `lengths`.
        rows: the most token rows.
        cap: the most tokens of one sequence; 0 where nothing says it.
        batched: for each node, whether its leading axis holds the batch.
        domain: for each node of a packed program what its rows are; None for parameters.
        root: for each node, the node whose memory it is (reshapes share).
        lengths: the input that holds the sequences' lengths; None if the program is not packed.
    """

    sequences: int
    rows: int
    cap: int
    batched: tuple[bool, ...]
    domain: tuple[Domain | None, ...]
    root: tuple[int, ...]
    lengths: int | None

    @property
    def packed(self) -> bool:
        """Whether token rows are packed."""
        return self.lengths is not None


def analyse(mir: Mir) -> RegionAnalysis:
    """Find the batch, the token rows and the batched values of a program."""
    batched: list[bool] = []
    root: list[int] = []
    for index, node in enumerate(mir.nodes):
        own = node.op is Op.INPUT or partition(node.op).batch
        batched.append(own or any(batched[i] for i in node.inputs))
        root.append(root[node.inputs[0]] if node.op is Op.RESHAPE else index)
    inputs = [n for n in mir.nodes if n.op is Op.INPUT]
    sequences = min((n.shape[0] for n in inputs), default=1)
    rowwise = (
        n.shape[0]
        for n, b in zip(mir.nodes, batched, strict=True)
        if b and partition(n.op).token_rows
    )
    rows = max(rowwise, default=sequences)
    domain = _domains(mir, batched)
    lengths, cap = (None, 0) if domain is None else _lengths(mir)
    if lengths is not None:
        sequences = mir.nodes[lengths].shape[0]
    known = domain if domain is not None and lengths is not None else [None] * len(mir.nodes)
    return RegionAnalysis(sequences, rows, cap, tuple(batched), tuple(known), tuple(root), lengths)


def _lengths(mir: Mir) -> tuple[int | None, int]:
    """The one input that tells lengths, and the most tokens; None where they are not told once."""
    found = {
        (node.inputs[1], node.number(partition(node.op).tokens))
        for node in mir.nodes
        if partition(node.op).tokens
    }
    if len(found) != 1:
        return None, 0
    ((index, cap),) = found
    return (index, cap) if mir.nodes[index].op is Op.INPUT else (None, 0)


def _domains(mir: Mir, batched: list[bool]) -> list[Domain | None] | None:
    """What each value's rows are; None if some operation cannot run on packed rows."""
    domain: list[Domain | None] = []
    for index, node in enumerate(mir.nodes):
        if not batched[index]:
            domain.append(None)
            continue
        own: Domain | None = Domain.SEQUENCES
        if node.op is not Op.INPUT:
            sources = {d for i in node.inputs if (d := domain[i]) is not None}
            own = partition(node.op).rows(mir, node, sources)
        if own is None:
            return None
        domain.append(own)
    return domain


def reads_whole(node: Node, axis: str) -> bool:
    """Whether a node's tile needs more of its batched inputs than the same tile of them."""
    return axis in ("columns", "heads") or (axis == "rows" and partition(node.op).attends)


def node_tiles(
    mir: Mir, index: int, tiling: Tiling, known: RegionAnalysis, panel: int
) -> tuple[str, int]:
    """The axis and the number of pieces that a node is cut into under a tiling."""
    node = mir.nodes[index]
    if not known.batched[index]:
        return "whole", 1
    if tiling.axis == "sequences":
        return "sequences", tiling.tiles
    own = partition(node.op)
    by_columns = "columns", column_tiles(-(-node.shape[1] // panel))
    if known.domain[index] is Domain.SEQUENCES:
        # A head over the vocabulary is worth sharing out; a small one is not worth a barrier.
        wide = own.axis == "columns" and node.shape[1] >= _WIDE
        return by_columns if wide else ("each", known.sequences)
    if tiling.axis == "rows":
        return "rows", tiling.tiles
    match own.axis:
        case "columns":
            return by_columns
        case "heads":
            return "heads", own.heads(node, known.sequences)
        case _:
            return "rows", ROW_TILES


def column_tiles(panels: int) -> int:
    """Into how many equal tiles some panels are cut: the most that COLUMN_TILES allows."""
    return max(n for n in range(1, min(panels, COLUMN_TILES) + 1) if panels % n == 0)


def group(mir: Mir, tiling: Tiling, known: RegionAnalysis, panel: int) -> tuple[Group, ...]:
    """Cut the program into groups, in order; a barrier stands between two of them.

    A new group begins where the axis or the number of tiles changes and before a node that reads
    the whole of a value that the current group makes.
    """
    groups: list[Group] = []
    current: list[int] = []
    now = ("", 0)

    def close() -> None:
        if current:
            groups.append(Group(*now, tuple(current)))
            current.clear()

    for index, node in enumerate(mir.nodes):
        if node.op in (Op.INPUT, Op.PARAM, Op.RESHAPE):
            continue
        wanted = node_tiles(mir, index, tiling, known, panel)
        if wanted != now or _waits(mir, node, wanted[0], {known.root[i] for i in current}, known):
            close()
            now = wanted
        current.append(index)
    close()
    return _folded(mir, groups, known)


def _waits(mir: Mir, node: Node, axis: str, made: set[int], known: RegionAnalysis) -> bool:
    """Whether a node reads more than its own tile of what the current group makes."""
    if not reads_whole(node, axis):
        return False
    inputs = [known.root[i] for i in node.inputs]
    if axis == "columns":
        return inputs[0] in made  # its operands are read in the tile's own columns
    free = partition(node.op).follows if axis == "heads" else ()
    return any(i in made and mir.nodes[i].op not in free for i in inputs)


def _folded(mir: Mir, groups: list[Group], known: RegionAnalysis) -> tuple[Group, ...]:
    """Row-wise groups on few rows go to the beginning of the matmuls that alone read them."""
    if not known.packed or known.rows > REDUNDANT_ROWS:
        return tuple(groups)
    readers: dict[int, set[int]] = {}
    for index, node in enumerate(mir.nodes):
        for source in node.inputs:
            readers.setdefault(known.root[source], set()).add(index)
    kept: list[Group] = []
    for group in groups:
        before = kept[-1] if kept else None
        if (
            before is not None
            and before.axis == "rows"
            and group.axis == "columns"
            and all(partition(mir.nodes[i].op).cheap for i in before.nodes)
            and not set(before.nodes) & set(mir.outputs)
            and all(readers[i] <= {*before.nodes, *group.nodes} for i in before.nodes)
        ):
            kept[-1] = Group(group.axis, group.tiles, group.nodes, before.nodes)
        else:
            kept.append(group)
    return tuple(kept)


def candidates(known: RegionAnalysis) -> tuple[Tiling, ...]:
    """Every way to cut a program that is considered.

    A ragged program is not cut between sequences: a few long ones among short ones would leave
    threads without work.
    """
    if not known.packed:
        most = known.sequences
        return tuple(Tiling("sequences", n) for n in range(1, most + 1) if most % n == 0)
    rows, sequences = known.rows, known.sequences
    ragged = rows < sequences * known.cap
    goals = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
    whole = {-(-rows // max(g, known.cap)) for g in goals} | {1}
    pieces = {-(-rows // g) for g in goals if g < rows}
    return (
        *(Tiling("sequences", n) for n in sorted(whole) if not ragged),
        *(Tiling("rows", n) for n in sorted(pieces)),
        Tiling("columns", 0),
    )


def tile_rows(axis: str, tiles: int, known: RegionAnalysis) -> int:
    """The most token rows of a tile."""
    if axis == "sequences":
        goal = -(-known.rows // tiles)
        return min(known.rows, goal + max(known.cap, 1) - 1)
    if axis == "rows":
        return -(-known.rows // tiles)
    return min(known.rows, known.cap) if axis == "each" else known.rows


def tile_sequences(axis: str, tiles: int, known: RegionAnalysis) -> int:
    """The most sequences of a tile."""
    return known.sequences if axis == "sequences" else 1


def value_bytes(node: Node) -> int:
    """Bytes of a node's whole value."""
    return elements(node.shape) * node.dtype.size
