"""The cost model that picks an axis and a tile size, in microseconds.

For a number of threads T, a region costs the most tiles that one thread takes, times the larger of
a tile's arithmetic and the bytes of parameters that it streams, plus a barrier. The rates are
those of a middling server core; only their ratios matter for the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlx_ray.compiler.cpu.layout import Layout
from rlx_ray.compiler.cpu.lir import Space
from rlx_ray.compiler.cpu.op_rule import RATE
from rlx_ray.compiler.cpu.regions import Group, RegionAnalysis, reads_whole, tile_rows, value_bytes
from rlx_ray.compiler.cpu.rules import rule
from rlx_ray.compiler.ir.mir import Mir, Op, node_flops
from rlx_ray.target import Target

THREADS = (1, 2, 4)
"""Thread counts that one artifact is tuned for; each weighs the same."""

_GIGAHERTZ = 3.0
_STREAM = 14e3  # bytes of parameters per microsecond that one thread takes from memory
_MEMORY = 28e3  # the same for all threads together
_CACHE = 512 * 1024  # bytes of second-level cache that a tile's activations should stay in
_SPILL = 0.04  # share by which the arithmetic slows for each time the activations exceed it
_BARRIER = 1.0
_PACK = 4e3  # bytes of keys and values per microsecond that attention copies into panels
_SHARED = 12e3  # bytes per microsecond that a thread moves through the shared part of the arena
_CALL = 0.15  # microseconds around a kernel call: prologue, first misses


@dataclass(frozen=True, slots=True)
class Cost:
    """What a group costs.

    Attributes:
        tile: microseconds of one tile's arithmetic.
        streamed: bytes of parameters that one tile reads.
        once: microseconds of each thread, whatever its number of tiles.
        tiles: how many tiles there are.
    """

    tile: float
    streamed: float
    once: float
    tiles: int

    def microseconds(self, threads: int) -> float:
        """What the whole group takes on some threads."""
        most = -(-self.tiles // threads)
        busy = min(threads, self.tiles)
        stream = most * self.streamed / min(_STREAM, _MEMORY / busy)
        barrier = _BARRIER if threads > 1 else 0.0
        return max(most * self.tile, stream) + self.once + barrier


def group_cost(
    mir: Mir, group: Group, known: RegionAnalysis, layout: Layout, target: Target
) -> Cost:
    """What a group costs on a full batch."""
    peak = _GIGAHERTZ * 1e3 * target.lanes * 4
    used = min(1.0, known.rows / group.tiles / tile_rows(group.axis, group.tiles, known))
    slow = 1 + _SPILL * max(0.0, layout.scratch.size * used / _CACHE - 1)
    total, streamed, once = 0.0, 0.0, 0.0
    for index in group.begin:
        once += node_flops(mir, index) / (peak * RATE) + _CALL
    for index in group.nodes:
        node = mir.nodes[index]
        flops = node_flops(mir, index) / group.tiles
        own, shares = rule(node.op), group.axis == "columns"
        rows = node.shape[0] if shares else node.shape[0] / group.tiles
        weights = own.weights(mir, node)
        total += flops / (peak * own.rate(node, rows, target)) * (slow if weights else 1.0)
        streamed += weights / group.tiles if shares else weights
        pieces = known.sequences if group.axis == "rows" else group.tiles
        total += own.copied(node) / pieces / _PACK
        total += _CALL
        moved, read = _shared_bytes(mir, index, group, layout)
        total += moved / group.tiles / _SHARED
        once += read / _SHARED
    return Cost(total, streamed, once, group.tiles)


def _shared_bytes(mir: Mir, index: int, group: Group, layout: Layout) -> tuple[int, int]:
    """Bytes of the shared arena that all tiles move together, and that each thread reads whole."""
    node = mir.nodes[index]
    moved = read = 0
    whole = reads_whole(node, group.axis)
    for value in (index, *node.inputs):
        place = layout.place.get(value)
        if place is None or place[0] is not Space.ARENA or mir.nodes[value].op is Op.INPUT:
            continue
        if whole and value == node.inputs[0] and group.axis != "heads":
            read += value_bytes(mir.nodes[value])
        else:
            moved += value_bytes(mir.nodes[value])
    return moved, read


def program_cost(costs: Sequence[Cost]) -> float:
    """Mean over THREADS of threads times microseconds (core time); lower is better."""
    return sum(t * sum(c.microseconds(t) for c in costs) for t in THREADS) / len(THREADS)


def latency(costs: Sequence[Cost]) -> float:
    """Microseconds on the most threads of THREADS."""
    return sum(c.microseconds(THREADS[-1]) for c in costs)
