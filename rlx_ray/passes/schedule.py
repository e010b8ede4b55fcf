"""Schedule: choose how to cut the program, then lay out its memory and name its calls."""

from __future__ import annotations

from dataclasses import dataclass

from rlx_ray.dtype import DType
from rlx_ray.ir.lir import Buffer, Call, Lir, Plan, Region, Slot, Space, Tensor
from rlx_ray.ir.mir import Mir, Node, Note, Op, Shape, node_flops
from rlx_ray.passes.arena import plan
from rlx_ray.passes.cost import THREADS, group_cost, latency, program_cost
from rlx_ray.passes.kernels import Lowered, Tiled, lower_node, scratch_bytes
from rlx_ray.passes.regions import (
    Facts,
    Group,
    Tiling,
    candidates,
    facts,
    group,
    reads_whole,
    value_bytes,
)
from rlx_ray.target import Target

_SCRATCH_LIMIT = 256 << 20
"""Bytes of scratch per thread beyond which a tile size is not considered if a smaller one is."""


_NEAR = 1.02
"""Ways whose cost and latency are within this factor of the best are equal: memory decides."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where every value of a cut program lies."""

    groups: tuple[Group, ...]
    arena: Plan
    scratch: Plan
    place: dict[int, tuple[Space, int]]  # by root node: the space and the offset


def schedule(mir: Mir, target: Target) -> Lir:
    """The cheapest way to run a program by the cost model, as LIR."""
    known = facts(mir)
    tried: list[tuple[tuple[float, float], Tiling, Layout]] = []
    for tiling in candidates(known):
        layout = lay_out(mir, group(mir, tiling, known), known, target)
        arena, scratch = layout.arena.size, layout.scratch.size
        costs = [group_cost(mir, g, known, arena, scratch, target) for g in layout.groups]
        over = 1e3 if scratch > _SCRATCH_LIMIT else 1.0
        price = (program_cost(costs) * over, latency(costs) * over)
        tried.append((price, tiling, layout))
    least = min(t[0][0] for t in tried)
    quick = min(t[0][1] for t in tried if t[0][0] <= least * _NEAR)
    near = [t for t in tried if t[0][0] <= least * _NEAR and t[0][1] <= quick * _NEAR]
    (cost, _), tiling, layout = min(near, key=lambda t: t[2].arena.size + t[2].scratch.size)
    notes = tuple(
        Note(
            "schedule",
            f"{t.tiles} tiles of {t.axis}" + (" (chosen)" if t == tiling else ""),
            f"cost {c:.0f} core microseconds, {wall:.0f} on {THREADS[-1]} threads",
        )
        for (c, wall), t, _ in sorted(tried, key=lambda t: t[0])
    )
    reason = (
        f"least memory of the {len(near)} cheapest of {len(tried)} ways (cost {cost:.0f}, "
        f"cheapest {least:.0f} core microseconds)"
    )
    return _emit(mir, layout, known, reason, (*mir.notes, *notes), target)


def lay_out(mir: Mir, groups: tuple[Group, ...], known: Facts, target: Target) -> Layout:
    """Give each value a place: a tile's scratch if one group makes and reads it, else the arena."""
    home = {index: g for g, grouped in enumerate(groups) for index in grouped.nodes}
    uses = _uses(mir, known)
    shared: list[Buffer] = []
    own: list[Buffer] = []
    end = len(groups)
    outputs = {known.root[i] for i in mir.outputs}
    for index, node in enumerate(mir.nodes):
        if node.op in (Op.PARAM, Op.RESHAPE):
            continue
        size = value_bytes(node)
        if node.op is Op.INPUT:
            shared.append(Buffer(str(index), size, 0, end))
            continue
        here = groups[home[index]]
        readers = uses[index]
        local = index not in outputs and all(
            home[r] == home[index] and not reads_whole(mir.nodes[r], here.tiles, known)
            for r in readers
        )
        if local:
            own.append(Buffer(str(index), size // here.tiles, index, max([index, *readers])))
        else:
            last = end if index in outputs else max(home[r] for r in readers)
            shared.append(Buffer(str(index), size, home[index], last))
        extra = scratch_bytes(mir, node, target.panel, target.tile_rows)
        if extra:
            own.append(Buffer(f"{index}.scratch", extra, index, index))
    arena, scratch = plan(shared), plan(own)
    place = {int(b.name): (Space.ARENA, b.offset) for b in arena.buffers}
    place |= {
        int(b.name): (Space.SCRATCH, b.offset)
        for b in scratch.buffers
        if not b.name.endswith(".scratch")
    }
    return Layout(groups, arena, scratch, place)


def _uses(mir: Mir, known: Facts) -> dict[int, list[int]]:
    """For each root, the nodes that read its memory, through reshapes or not."""
    uses: dict[int, list[int]] = {i: [] for i in range(len(mir.nodes))}
    for index, node in enumerate(mir.nodes):
        if node.op is not Op.RESHAPE:
            for source in node.inputs:
                uses[known.root[source]].append(index)
    return uses


def _emit(
    mir: Mir,
    layout: Layout,
    known: Facts,
    reason: str,
    notes: tuple[Note, ...],
    target: Target,
) -> Lir:
    params = [i for i, n in enumerate(mir.nodes) if n.op is Op.PARAM]
    inputs = [i for i, n in enumerate(mir.nodes) if n.op is Op.INPUT]
    table = {index: position for position, index in enumerate(params)}
    extra = {
        int(b.name.removesuffix(".scratch")): b.offset
        for b in layout.scratch.buffers
        if b.name.endswith(".scratch")
    }
    regions = []
    for grouped in layout.groups:
        calls = tuple(
            _call(mir, index, grouped.tiles, layout, known, table, extra.get(index))
            for index in grouped.nodes
        )
        regions.append(Region(grouped.axis, grouped.tiles, calls, reason))
    return Lir(
        tuple(_tensor(mir.nodes[i], layout.place[i][1]) for i in inputs),
        tuple(_param(mir.nodes[i], target) for i in params),
        tuple(_output(mir, i, layout.place[known.root[i]][1]) for i in mir.outputs),
        tuple(regions),
        layout.arena,
        layout.scratch,
        sum(node_flops(mir, i) for i in range(len(mir.nodes))),
        notes,
    )


def _ctype(dtype: DType) -> str:
    return "int" if dtype is DType.I32 else "float"


def _tensor(node: Node, offset: int) -> Tensor:
    return Tensor(str(node.attr("name")), _ctype(node.dtype), node.shape, offset)


def _output(mir: Mir, index: int, offset: int) -> Tensor:
    node = mir.nodes[index]
    name = "embedding" if len(mir.outputs) == 1 else node.origin
    return Tensor(name, _ctype(node.dtype), node.shape, offset)


def _param(node: Node, target: Target) -> Tensor:
    layout = f"panel{target.panel}" if node.attr("layout") == "matrix" else "plain"
    return Tensor(str(node.attr("name")), _ctype(node.dtype), node.shape, -1, layout)


def _call(
    mir: Mir,
    index: int,
    tiles: int,
    layout: Layout,
    known: Facts,
    table: dict[int, int],
    extra: int | None,
) -> Call:
    node = mir.nodes[index]
    whole = reads_whole(node, tiles, known)
    shapes = tuple(_in_tile(mir, i, tiles, known) for i in node.inputs)
    tiled = Tiled(node, _in_tile(mir, index, tiles, known), shapes, tiles, known.sequences)
    lowered: Lowered = lower_node(tiled)

    def slot(value: int, *, moving: bool = True) -> Slot:
        made = mir.nodes[value]
        if made.op is Op.PARAM:
            return Slot(Space.PARAM, table[value], 0, _ctype(made.dtype))
        space, offset = layout.place[known.root[value]]
        moves = moving and space is Space.ARENA and known.batched[value]
        stride = value_bytes(made) // tiles if moves else 0
        return Slot(space, offset, stride, _ctype(made.dtype))

    sources = tuple(None if i is None else node.inputs[i] for i in lowered.inputs)
    return Call(
        lowered.kernel,
        slot(index),
        tuple(None if v is None else slot(v, moving=not whole) for v in sources),
        tuple(slot(node.inputs[i]) for i in lowered.operands),
        None if extra is None else Slot(Space.SCRATCH, extra),
        node.origin,
    )


def _in_tile(mir: Mir, index: int, tiles: int, known: Facts) -> Shape:
    """A value's shape in one tile: its leading axis cut where it holds the batch."""
    shape = mir.nodes[index].shape
    if not known.batched[index] or tiles == 1 or shape[0] % tiles:
        return shape
    return (shape[0] // tiles, *shape[1:])
