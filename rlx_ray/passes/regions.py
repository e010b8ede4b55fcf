"""Regions: which operations share a tile, and where a barrier has to stand."""

from __future__ import annotations

from dataclasses import dataclass

from rlx_ray.ir.mir import OPS, Mir, Node, Op, Split
from rlx_ray.shape import elements


@dataclass(frozen=True, slots=True)
class Tiling:
    """One way to cut a program.

    Attributes:
        axis: `sequences` (a tile is some whole sequences and runs every layer depth-first) or
            `rows` (a tile is a part of a sequence's token rows; attention needs a barrier before).
        tiles: pieces of the batch for operations that can be cut this way.
    """

    axis: str
    tiles: int


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes that run on one tile before the next tile begins."""

    axis: str
    tiles: int
    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a program before it is cut.

    Attributes:
        sequences: the batch: leading extent of every input.
        rows: token rows: the largest leading extent of a batched value.
        batched: for each node, whether its leading axis holds the batch.
        root: for each node, the node whose memory it is (reshapes share).
    """

    sequences: int
    rows: int
    batched: tuple[bool, ...]
    root: tuple[int, ...]


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
        if b and n.op in (Op.MATMUL, Op.LAYER_NORM, Op.GATHER, Op.TAKE)
    )
    return Facts(sequences, max(rowwise, default=sequences), tuple(batched), tuple(root))


def reads_whole(node: Node, tiles: int, known: Facts) -> bool:
    """Whether a node's tile needs more of its batched inputs than the same tile of them."""
    return OPS[node.op].split is Split.QUERIES and tiles > known.sequences


def node_tiles(mir: Mir, index: int, tiling: Tiling, known: Facts) -> int:
    """How many pieces a node is cut into under a tiling."""
    node = mir.nodes[index]
    if not known.batched[index]:
        return 1
    if tiling.axis == "sequences":
        return tiling.tiles
    rowwise = OPS[node.op].split is not Split.SEQUENCES and node.shape[0] == known.rows
    return tiling.tiles if rowwise else known.sequences


def group(mir: Mir, tiling: Tiling, known: Facts) -> tuple[Group, ...]:
    """Cut the program into groups, in order; a barrier stands between two of them.

    A new group begins where the number of tiles changes and before a node that reads the whole of
    a value that the current group makes.
    """
    groups: list[Group] = []
    current: list[int] = []
    tiles = 0

    def close() -> None:
        if current:
            axis = tiling.axis if tiles == tiling.tiles else "sequences"
            groups.append(Group(axis if tiles > 1 else "whole", tiles, tuple(current)))
            current.clear()

    for index, node in enumerate(mir.nodes):
        if node.op in (Op.INPUT, Op.PARAM, Op.RESHAPE):
            continue
        wanted = node_tiles(mir, index, tiling, known)
        made_here = any(known.root[i] in current for i in node.inputs)
        if wanted != tiles or (made_here and reads_whole(node, wanted, known)):
            close()
            tiles = wanted
        current.append(index)
    close()
    return tuple(groups)


def candidates(known: Facts) -> tuple[Tiling, ...]:
    """Every way to cut a program that the op table allows."""
    sequences, rows = known.sequences, known.rows
    found = [Tiling("sequences", n) for n in range(1, sequences + 1) if sequences % n == 0]
    tokens = rows // sequences
    found += [
        Tiling("rows", sequences * parts)
        for parts in range(2, tokens + 1)
        if tokens % parts == 0 and tokens // parts >= 4
    ]
    return tuple(found)


def value_bytes(node: Node) -> int:
    """Bytes of a node's whole value."""
    return elements(node.shape) * node.dtype.size
