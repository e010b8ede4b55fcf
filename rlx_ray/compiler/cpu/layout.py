"""Layout: where the values of a cut program lie, in the shared arena or in a tile's scratch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from rlx_ray.compiler.cpu.lir import Space
from rlx_ray.compiler.cpu.op_rule import Domain
from rlx_ray.compiler.cpu.regions import (
    Group,
    RegionAnalysis,
    reads_whole,
    tile_rows,
    tile_sequences,
    value_bytes,
)
from rlx_ray.compiler.cpu.rules import partition, rule
from rlx_ray.compiler.ir.memory import Buffer, MemoryPlan
from rlx_ray.compiler.ir.mir import Mir, Node, Op
from rlx_ray.compiler.passes.arena import plan
from rlx_ray.target import Target

CHUNK_BYTES = 128 << 10
"""Bytes that the hidden tile of a fused pair of matmuls should stay within: a quarter of a usual
second-level cache, beside the pair's input, result and panels."""

CHUNK_LEAST = 128
"""Fewest columns of such a chunk."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where every value of a cut program lies.

    Attributes:
        groups: the program's groups, in order.
        arena: the plan of what tiles share.
        scratch: the plan of one tile's own memory.
        place: by root node its space and offset.
        pairs: by a matmul whose only reader is the next matmul of its tile: that reader, and how
            many of the hidden columns are made at a time.
    """

    groups: tuple[Group, ...]
    arena: MemoryPlan
    scratch: MemoryPlan
    place: dict[int, tuple[Space, int]]
    pairs: dict[int, tuple[int, int]]


def lay_out(mir: Mir, groups: tuple[Group, ...], known: RegionAnalysis, target: Target) -> Layout:
    """Give each value a place: a tile's scratch if one group makes and reads it, else the arena."""
    home = {i: g for g, grouped in enumerate(groups) for i in (*grouped.begin, *grouped.nodes)}
    uses = uses_of(mir, known)
    pairs = _pairs(mir, groups, known, uses, target.panel)
    begins = {reader: index for index, (reader, _) in pairs.items()}
    ends = {index: reader for index, (reader, _) in pairs.items()}
    shared: list[Buffer] = []
    own: list[Buffer] = []
    outputs = {known.root[i] for i in mir.outputs}
    for index, node in enumerate(mir.nodes):
        if node.op in (Op.PARAM, Op.RESHAPE):
            continue
        size = value_bytes(node)
        if node.op is Op.INPUT:
            shared.append(Buffer(str(index), size, 0, len(groups)))
            continue
        here = groups[home[index]]
        readers = uses[index]
        if index in here.begin:
            own.append(Buffer(str(index), size, here.begin[0], here.nodes[-1]))
            continue
        local = index not in outputs and all(
            home[r] == home[index] and not _crosses(mir.nodes[r], here, known) for r in readers
        )
        if local:
            kept = _tile_bytes(mir, index, here, known, pairs[index][1] if index in pairs else 0)
            last = max([index, *(ends.get(r, r) for r in readers)])
            own.append(Buffer(str(index), kept, begins.get(index, index), last))
        else:
            last = len(groups) if index in outputs else max(home[r] for r in readers)
            shared.append(Buffer(str(index), size, home[index], last))
        extra = rule(node.op).scratch(mir, node, target)
        if extra:
            own.append(Buffer(f"{index}.scratch", extra, index, index))
    arena, scratch = plan(shared), plan(own)
    place = {int(b.name): (Space.ARENA, b.offset) for b in arena.buffers}
    place |= {
        int(b.name): (Space.SCRATCH, b.offset)
        for b in scratch.buffers
        if not b.name.endswith(".scratch")
    }
    return Layout(groups, arena, scratch, place, pairs)


def _crosses(node: Node, group: Group, known: RegionAnalysis) -> bool:
    return known.packed and reads_whole(node, group.axis)


def _tile_bytes(mir: Mir, index: int, group: Group, known: RegionAnalysis, chunk: int) -> int:
    """Bytes of what one tile makes of a value; `chunk` columns of it at a time if not 0."""
    node = mir.nodes[index]
    size = value_bytes(node)
    if not known.packed or known.domain[index] is None:
        return size // group.tiles
    if known.domain[index] is Domain.TOKENS:
        rows = tile_rows(group.axis, group.tiles, known)
    else:
        rows = tile_sequences(group.axis, group.tiles, known)
    size = size // node.shape[0] * rows
    return size // node.shape[1] * chunk if chunk else size


def _pairs(
    mir: Mir,
    groups: tuple[Group, ...],
    known: RegionAnalysis,
    uses: dict[int, list[int]],
    panel: int,
) -> dict[int, tuple[int, int]]:
    """Matmuls that are made some columns at a time: the reader that adds them up, and how many.

    A pair is a matmul whose value only the next node of its tile reads, a matmul, as its left
    operand: a feed-forward block.
    """
    found: dict[int, tuple[int, int]] = {}
    for group in groups:
        if not known.packed or group.axis not in ("sequences", "rows"):
            continue
        for index, reader in pairwise(group.nodes):
            up, down = mir.nodes[index], mir.nodes[reader]
            alone = uses[index] == [reader] and down.inputs[0] == index
            if alone and all(partition(node.op).in_parts(node) for node in (up, down)):
                chunk = chunk_columns(-(-known.rows // group.tiles), up.shape[1], panel)
                if chunk:
                    found[index] = (reader, chunk)
    return found


def chunk_columns(rows: int, columns: int, panel: int) -> int:
    """How many of a hidden tile's columns are made at a time; 0: all of them.

    A tile larger than CHUNK_BYTES would leave the cache before it is read.
    """
    if rows * columns * 4 <= CHUNK_BYTES or columns % panel:
        return 0
    panels = columns // panel
    sizes = [n * panel for n in range(1, panels) if panels % n == 0 and n * panel >= CHUNK_LEAST]
    return max((n for n in sizes if rows * n * 4 <= CHUNK_BYTES), default=min(sizes, default=0))


def uses_of(mir: Mir, known: RegionAnalysis) -> dict[int, list[int]]:
    """For each root, the nodes that read its memory, through reshapes or not."""
    uses: dict[int, list[int]] = {i: [] for i in range(len(mir.nodes))}
    for index, node in enumerate(mir.nodes):
        if node.op is not Op.RESHAPE:
            for source in node.inputs:
                uses[known.root[source]].append(index)
    return uses
