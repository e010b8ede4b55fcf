"""Memory planning: buffers with lifetimes in, offsets out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlx_ray.compiler.ir.memory import Buffer, MemoryPlan

ALIGNMENT = 64


def align(size: int, alignment: int = ALIGNMENT) -> int:
    """`size` rounded up to the alignment."""
    return (size + alignment - 1) // alignment * alignment


def liveness_bound(buffers: Sequence[Buffer]) -> int:
    """The least memory any plan needs: the largest sum of sizes alive at one step (bytes)."""
    steps = {b.first for b in buffers}
    return max((sum(b.size for b in buffers if b.first <= s <= b.last) for s in steps), default=0)


def plan(buffers: Sequence[Buffer], alignment: int = ALIGNMENT) -> MemoryPlan:
    """Offsets for buffers so that no two that live at one step overlap.

    Greedy by size: each buffer, the largest first, goes into the smallest gap that fits between
    the buffers already placed whose lives meet its own. Sizes are rounded up to the alignment in
    bytes. Several orders are tried and the smallest result is kept.
    """
    sized = [replace(b, size=align(b.size, alignment)) for b in buffers]
    orders = (
        sorted(sized, key=lambda b: (-b.size, b.first, b.name)),
        sorted(sized, key=lambda b: (b.first, -b.size, b.name)),
        sorted(sized, key=lambda b: (b.first - b.last, -b.size, b.name)),
    )
    best = min((_place(order) for order in orders), key=_extent)
    order = {b.name: i for i, b in enumerate(sized)}
    placed = tuple(sorted(best, key=lambda b: order[b.name]))
    return MemoryPlan(placed, _extent(placed), liveness_bound(sized))


def _extent(placed: Sequence[Buffer]) -> int:
    return max((b.offset + b.size for b in placed), default=0)


def _place(order: Sequence[Buffer]) -> list[Buffer]:
    placed: list[Buffer] = []
    for buffer in order:
        rivals = sorted(
            (p for p in placed if p.first <= buffer.last and buffer.first <= p.last),
            key=lambda p: p.offset,
        )
        offset, best, slack = 0, None, None
        for rival in rivals:
            gap = rival.offset - offset
            if gap >= buffer.size and (slack is None or gap < slack):
                best, slack = offset, gap
            offset = max(offset, rival.offset + rival.size)
        placed.append(replace(buffer, offset=offset if best is None else best))
    return placed
