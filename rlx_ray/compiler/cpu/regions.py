"""Regions: which operations share a tile, and where a barrier has to stand.

A program is *packed* if every operation can run on token rows without padding: only the lengths,
known at run time, say how many rows there are, and a tile is a span of them (kernels/c/span.h). A
program with primitives that need rectangles (the common lowering of attention, say) is not; its
tiles are whole padded sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rlx_ray.compiler.ir.mir import Mir, Node, Op
from rlx_ray.shape import elements

COLUMN_TILES = 32
"""Most tiles that a matmul's columns are cut into."""

ROW_TILES = 16
"""Tiles that row-wise operations have beside matmuls that are cut by columns."""

REDUNDANT_ROWS = 32
"""Most token rows that every thread may normalise or quantise for itself."""

_CHEAP = (Op.LAYER_NORM, Op.RMS_NORM, Op.QUANTIZE)

_WIDE = 4096
"""Columns from which a matmul over sequences is cut by columns."""

_ROW_WISE = (Op.MATMUL, Op.LAYER_NORM, Op.RMS_NORM, Op.ELEMENTWISE, Op.QUANTIZE)


class Domain(Enum):
    """What the leading axis of a batched value counts."""

    TOKENS = "tokens"
    SEQUENCES = "sequences"


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
class Facts:
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


def facts(mir: Mir) -> Facts:
    """Find the batch, the token rows and the batched values of a program."""
    batched: list[bool] = []
    root: list[int] = []
    for index, node in enumerate(mir.nodes):
        own = node.op in (Op.INPUT, Op.IOTA)
        batched.append(own or any(batched[i] for i in node.inputs))
        root.append(root[node.inputs[0]] if node.op is Op.RESHAPE else index)
    inputs = [n for n in mir.nodes if n.op is Op.INPUT]
    sequences = min((n.shape[0] for n in inputs), default=1)
    rowwise = (
        n.shape[0]
        for n, b in zip(mir.nodes, batched, strict=True)
        if b and n.op in (Op.MATMUL, Op.LAYER_NORM, Op.RMS_NORM, Op.GATHER, Op.TAKE)
    )
    rows = max(rowwise, default=sequences)
    domain = _domains(mir, batched)
    lengths, cap = (None, 0) if domain is None else _lengths(mir)
    if lengths is not None:
        sequences = mir.nodes[lengths].shape[0]
    known = domain if domain is not None and lengths is not None else [None] * len(mir.nodes)
    return Facts(sequences, rows, cap, tuple(batched), tuple(known), tuple(root), lengths)


def _lengths(mir: Mir) -> tuple[int | None, int]:
    """The one input that tells lengths, and the most tokens; None where they are not told once."""
    found = {
        (node.inputs[1], node.number("keys" if node.op is Op.ATTENTION else "tokens"))
        for node in mir.nodes
        if node.op in (Op.ATTENTION, Op.CACHED_ATTENTION, Op.POOL)
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
        sources = {domain[i] for i in node.inputs} - {None}
        match node.op:
            case Op.INPUT | Op.POOL:
                domain.append(Domain.SEQUENCES)
            case Op.GATHER if _gathers_tokens(mir, node):
                domain.append(Domain.TOKENS)
            case Op.ATTENTION | Op.ROPE_CACHE | Op.CACHED_ATTENTION:
                domain.append(Domain.TOKENS)
            case op if op in _ROW_WISE and _row_by_row(mir, node, sources):
                (own,) = sources
                domain.append(own)
            case Op.REDUCE if len(sources) == 1 and len(node.shape) == 2 and node.number("axis"):
                (own,) = sources
                domain.append(own)
            case _:
                return None
    return domain


def _gathers_tokens(mir: Mir, node: Node) -> bool:
    """Whether a gather's ids, if it has any, are an input as it came."""
    return not node.number("ids") or mir.nodes[node.inputs[1]].op is Op.INPUT


def _row_by_row(mir: Mir, node: Node, sources: set[Domain | None]) -> bool:
    """Whether row i of a value of rank 2 needs row i of its batched inputs and no other."""
    if len(node.shape) != 2 or len(sources) != 1:
        return False
    shapes = [mir.nodes[i].shape for i in node.inputs]
    plain = all(s[0] in (1, node.shape[0]) for s in shapes if len(s) == 2)
    return node.op is Op.MATMUL or (plain and all(len(s) <= 2 for s in shapes))


def reads_whole(node: Node, axis: str) -> bool:
    """Whether a node's tile needs more of its batched inputs than the same tile of them."""
    attends = node.op in (Op.ATTENTION, Op.CACHED_ATTENTION)
    return axis in ("columns", "heads") or (axis == "rows" and attends)


def node_tiles(mir: Mir, index: int, tiling: Tiling, known: Facts, panel: int) -> tuple[str, int]:
    """The axis and the number of pieces that a node is cut into under a tiling."""
    node = mir.nodes[index]
    if not known.batched[index]:
        return "whole", 1
    if tiling.axis == "sequences":
        return "sequences", tiling.tiles
    by_columns = "columns", column_tiles(-(-node.shape[1] // panel))
    if known.domain[index] is Domain.SEQUENCES:
        # A head over the vocabulary is worth sharing out; a small one is not worth a barrier.
        wide = node.op is Op.MATMUL and node.shape[1] >= _WIDE
        return by_columns if wide else ("each", known.sequences)
    if tiling.axis == "rows":
        return "rows", tiling.tiles
    if node.op is Op.MATMUL:
        return by_columns
    if node.op is Op.ATTENTION:
        return "heads", node.number("heads")
    if node.op in (Op.ROPE_CACHE, Op.CACHED_ATTENTION):
        return "heads", node.number("kv_heads") * known.sequences
    return "rows", ROW_TILES


def column_tiles(panels: int) -> int:
    """Into how many equal tiles some panels are cut: the most that COLUMN_TILES allows."""
    return max(n for n in range(1, min(panels, COLUMN_TILES) + 1) if panels % n == 0)


def group(mir: Mir, tiling: Tiling, known: Facts, panel: int) -> tuple[Group, ...]:
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


def _waits(mir: Mir, node: Node, axis: str, made: set[int], known: Facts) -> bool:
    """Whether a node reads more than its own tile of what the current group makes."""
    if not reads_whole(node, axis):
        return False
    inputs = [known.root[i] for i in node.inputs]
    if node.op is Op.MATMUL and axis == "columns":
        return inputs[0] in made  # its operands are read in the tile's own columns
    if node.op is Op.CACHED_ATTENTION and axis == "heads":
        return inputs[0] in made and mir.nodes[inputs[0]].op is not Op.ROPE_CACHE
    return any(i in made for i in inputs)


def _folded(mir: Mir, groups: list[Group], known: Facts) -> tuple[Group, ...]:
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
            and all(mir.nodes[i].op in _CHEAP and i not in mir.outputs for i in before.nodes)
            and all(readers[i] <= {*before.nodes, *group.nodes} for i in before.nodes)
        ):
            kept[-1] = Group(group.axis, group.tiles, group.nodes, before.nodes)
        else:
            kept.append(group)
    return tuple(kept)


def candidates(known: Facts) -> tuple[Tiling, ...]:
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


def tile_rows(axis: str, tiles: int, known: Facts) -> int:
    """The most token rows of a tile."""
    if axis == "sequences":
        goal = -(-known.rows // tiles)
        return min(known.rows, goal + max(known.cap, 1) - 1)
    if axis == "rows":
        return -(-known.rows // tiles)
    return min(known.rows, known.cap) if axis == "each" else known.rows


def tile_sequences(axis: str, tiles: int, known: Facts) -> int:
    """The most sequences of a tile."""
    return known.sequences if axis == "sequences" else 1


def value_bytes(node: Node) -> int:
    """Bytes of a node's whole value."""
    return elements(node.shape) * node.dtype.size
