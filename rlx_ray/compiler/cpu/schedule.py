"""Schedule: choose how to cut the program, then lay out its memory and name its calls."""

from __future__ import annotations

from rlx_ray.compiler.cpu.calls import Calls, matrix_format
from rlx_ray.compiler.cpu.cost import THREADS, Cost, group_cost, latency, program_cost
from rlx_ray.compiler.cpu.layout import Layout, lay_out
from rlx_ray.compiler.cpu.lir import Lir, Packing, Region
from rlx_ray.compiler.cpu.regions import RegionAnalysis, Tiling, analyse, candidates, group
from rlx_ray.compiler.cpu.rules import uses_cache
from rlx_ray.compiler.ir.memory import Tensor
from rlx_ray.compiler.ir.mir import Mir, Node, Note, Op, node_flops
from rlx_ray.shape import PAGE
from rlx_ray.target import Target

_SCRATCH_LIMIT = 256 << 20
"""Bytes of scratch per thread beyond which a tile size is not considered if a smaller one is."""

_NEAR = 1.02
"""Ways whose cost and latency are within this factor of the best are equal: memory decides."""


def schedule(
    mir: Mir,
    target: Target,
    tiling: Tiling | None = None,
    names: tuple[str, ...] = ("embedding",),
) -> Lir:
    """The cheapest way to run a program by the cost model, as LIR.

    Args:
        mir: the program.
        target: what it is for.
        tiling: a way to take instead of the cheapest.
        names: of the outputs.
    """
    known = analyse(mir)
    tried: list[tuple[tuple[float, float], Tiling, Layout]] = []
    for way in candidates(known) if tiling is None else (tiling,):
        layout = lay_out(mir, group(mir, way, known, target.panel), known, target)
        costs = [group_cost(mir, g, known, layout, target) for g in layout.groups]
        tried.append((_price(costs, layout), way, layout))
    least = min(t[0][0] for t in tried)
    quick = min(t[0][1] for t in tried if t[0][0] <= least * _NEAR)
    near = [t for t in tried if t[0][0] <= least * _NEAR and t[0][1] <= quick * _NEAR]
    (cost, _), chosen, layout = min(near, key=lambda t: t[2].arena.size + t[2].scratch.size)
    notes = tuple(
        Note(
            "schedule",
            f"{t.tiles or 'own'} tiles of {t.axis}" + (" (chosen)" if t == chosen else ""),
            f"cost {c:.0f} core microseconds, {wall:.0f} on {THREADS[-1]} threads",
        )
        for (c, wall), t, _ in sorted(tried, key=lambda t: t[0])
    )
    reason = (
        f"least memory of the {len(near)} cheapest of {len(tried)} ways (cost {cost:.0f}, "
        f"cheapest {least:.0f} core microseconds)"
    )
    return _emit(mir, layout, known, reason, (*mir.notes, *notes), target, names)


def _price(costs: list[Cost], layout: Layout) -> tuple[float, float]:
    over = 1e3 if layout.scratch.size > _SCRATCH_LIMIT else 1.0
    return program_cost(costs) * over, latency(costs) * over


def _emit(
    mir: Mir,
    layout: Layout,
    known: RegionAnalysis,
    reason: str,
    notes: tuple[Note, ...],
    target: Target,
    names: tuple[str, ...],
) -> Lir:
    params = [i for i, n in enumerate(mir.nodes) if n.op is Op.PARAM]
    inputs = [i for i, n in enumerate(mir.nodes) if n.op is Op.INPUT]
    make = Calls(mir, layout, known, target.panel)
    regions = tuple(
        Region(
            g.axis,
            g.tiles,
            tuple(c for i in g.nodes for c in make.calls(i, g)),
            reason,
            tuple(c for i in g.begin for c in make.calls(i, g)),
        )
        for g in layout.groups
    )
    packing = None
    if known.lengths is not None:
        at = layout.place[known.lengths][1]
        packing = Packing(known.sequences, known.cap, known.rows, at)
    return Lir(
        tuple(_tensor(mir.nodes[i], layout.place[i][1]) for i in inputs),
        tuple(_param(mir.nodes[i], target) for i in params),
        tuple(
            Tensor(name, mir.nodes[i].dtype, mir.nodes[i].shape, layout.place[known.root[i]][1])
            for name, i in zip(names, mir.outputs, strict=True)
        ),
        regions,
        layout.arena,
        layout.scratch,
        sum(node_flops(mir, i) for i in range(len(mir.nodes))),
        packing,
        notes,
        _page_bytes(mir, target),
    )


def _page_bytes(mir: Mir, target: Target) -> int:
    """Bytes of a page of the cache; 0 without one. Units check it against kernels/c/cache.h."""
    for node in mir.nodes:
        if uses_cache(node.op):
            dim = node.number("dim")
            values = -(-dim // target.panel) * target.panel
            heads = node.number("layers") * node.number("kv_heads")
            return node.number("size") * heads * PAGE * (dim + values)
    return 0


def _tensor(node: Node, offset: int) -> Tensor:
    return Tensor(str(node.attr("name")), node.dtype, node.shape, offset)


def _param(node: Node, target: Target) -> Tensor:
    layout = str(node.attr("layout"))
    if layout == "matrix":
        layout = matrix_format(node).layout(target.panel)
    return Tensor(str(node.attr("name")), node.dtype, node.shape, -1, layout)
