"""The cost model that picks an axis and a tile size, in microseconds.

For a number of threads T, a region costs the most tiles that one thread takes, times the larger of
a tile's arithmetic and the bytes of parameters that it streams, plus a barrier. The rates are
those of a middling server core; only their ratios matter for the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlx_ray.ir.mir import Mir, Op, node_flops
from rlx_ray.passes.regions import Facts, Group, reads_whole, value_bytes
from rlx_ray.target import Target

THREADS = (1, 2, 4)
"""Thread counts that one artifact is tuned for; each weighs the same."""

_GIGAHERTZ = 3.0
_STREAM = 16e3  # bytes of parameters per microsecond and thread, from beyond the second-level cache
_CACHE = 512 * 1024  # bytes of second-level cache that a tile's activations should stay in
_SPILL = 0.04  # share by which the arithmetic slows for each time the activations exceed it
_BARRIER = 1.0
_PACK = 4e3  # bytes of keys and values per microsecond that attention copies into panels
_SHARED = 8e3  # bytes per microsecond that a tile moves through the shared part of the arena
_CALL = 0.15  # microseconds around a kernel call: prologue, first misses


@dataclass(frozen=True, slots=True)
class Cost:
    """A group's cost: microseconds of one tile, and how many tiles there are."""

    tile: float
    tiles: int

    def seconds(self, threads: int) -> float:
        """Microseconds for the whole group on some threads."""
        return -(-self.tiles // threads) * self.tile + (_BARRIER if threads > 1 else 0)


def gemm_share(rows: int, target: Target) -> float:
    """The share of the arithmetic peak that the micro-kernel reaches for a number of rows.

    A micro tile of r rows issues r * vectors multiply-adds for vectors + r loads; below about
    eight accumulators the latency of the multiply-add shows. The rest is measured: a panel that is
    loaded for few rows pays for its way from memory (docs/performance.md).
    """
    tiles = -(-rows // target.tile_rows)
    accumulators = rows / tiles * target.tile_vectors
    return 0.98 * min(1.0, accumulators / 9) * rows / (rows + 2.5)


def group_cost(
    mir: Mir, group: Group, known: Facts, arena: int, scratch: int, target: Target
) -> Cost:
    """What a group costs; `arena` and `scratch` are the bytes of the shared and a tile's part."""
    peak = _GIGAHERTZ * 1e3 * target.lanes * 4
    slow = 1 + _SPILL * max(0.0, scratch / _CACHE - 1)
    total = arena / group.tiles / _SHARED
    for index in group.nodes:
        node = mir.nodes[index]
        flops = node_flops(mir, index) / group.tiles
        streamed = sum(
            value_bytes(mir.nodes[i]) for i in node.inputs if mir.nodes[i].op is Op.PARAM
        )
        if node.op is Op.MATMUL:
            share = gemm_share(node.shape[0] // group.tiles, target)
            total += max(flops / (peak * share) * slow, streamed / _STREAM)
        else:
            total += flops / (peak * 0.4)
        if node.op is Op.ATTENTION:
            copied = value_bytes(node) * 2 / known.sequences
            sequences = max(1, known.sequences // group.tiles)
            total += copied * sequences / _PACK
        if reads_whole(node, group.tiles, known):
            total += _BARRIER
        total += _CALL
    return Cost(total, group.tiles)


def program_cost(costs: Sequence[Cost]) -> float:
    """Mean over THREADS of threads times microseconds (core time); lower is better."""
    return sum(t * sum(c.seconds(t) for c in costs) for t in THREADS) / len(THREADS)


def latency(costs: Sequence[Cost]) -> float:
    """Microseconds on the most threads of THREADS."""
    return sum(c.seconds(THREADS[-1]) for c in costs)
