"""Schedule: choose how to cut the program, then lay out its memory and name its calls."""

from __future__ import annotations

from dataclasses import replace

from rlx_ray.compiler.cpu.cost import THREADS, Cost, group_cost, latency, program_cost
from rlx_ray.compiler.cpu.kernels import lower_node
from rlx_ray.compiler.cpu.layout import Layout, lay_out
from rlx_ray.compiler.cpu.lir import Call, Lir, Packing, Region, Slot, Space
from rlx_ray.compiler.cpu.packed import Part, Site, lower_matmul, lower_packed
from rlx_ray.compiler.cpu.regions import (
    Domain,
    Facts,
    Group,
    Tiling,
    candidates,
    facts,
    group,
    reads_whole,
    value_bytes,
)
from rlx_ray.compiler.cpu.tiled import Lowered, Tiled
from rlx_ray.compiler.ir.memory import Tensor
from rlx_ray.compiler.ir.mir import Mir, Node, Note, Op, Shape, node_flops
from rlx_ray.shape import PAGE
from rlx_ray.target import Target
from rlx_ray.weights.formats import FORMATS, MatrixFormat

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
    known = facts(mir)
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
    known: Facts,
    reason: str,
    notes: tuple[Note, ...],
    target: Target,
    names: tuple[str, ...],
) -> Lir:
    params = [i for i, n in enumerate(mir.nodes) if n.op is Op.PARAM]
    inputs = [i for i, n in enumerate(mir.nodes) if n.op is Op.INPUT]
    make = _Calls(mir, layout, known, {index: at for at, index in enumerate(params)}, target.panel)
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
    """Bytes of a page of the cache: CACHE_HEAD of kernels/c/cache.h for every layer and head."""
    for node in mir.nodes:
        if node.op in (Op.ROPE_CACHE, Op.CACHE_WRITE):
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
        layout = _format(node).layout(target.panel)
    return Tensor(str(node.attr("name")), node.dtype, node.shape, -1, layout)


def _layer(node: Node) -> int:
    """Whose keys and values a node uses; 0 where it uses none."""
    return 0 if node.attr("layer") is None else node.number("layer")


def _format(node: Node) -> MatrixFormat:
    return FORMATS[str(node.attr("format") or "f32")]


class _Calls:
    """Makes the calls of one program's nodes; `table` is each parameter's place in the table."""

    def __init__(
        self, mir: Mir, layout: Layout, known: Facts, table: dict[int, int], panel: int
    ) -> None:
        self._mir, self._layout, self._known = mir, layout, known
        self._table, self._panel = table, panel
        self._extra = {
            int(b.name.removesuffix(".scratch")): b.offset
            for b in layout.scratch.buffers
            if b.name.endswith(".scratch")
        }

    def calls(self, index: int, group: Group) -> tuple[Call, ...]:
        """What computes one tile of a node; empty if the node before it has done so."""
        node = self._mir.nodes[index]
        if not self._known.packed or not self._known.batched[index]:
            return (self._rectangle(index, group.tiles),)
        if node.op is not Op.MATMUL:
            domain = self._known.domain[index]
            assert domain is not None
            lowered = lower_packed(self._mir, node, Site(group.axis, domain))
            return (self._packed(index, lowered, group),)
        if index in self._layout.pairs:
            return self._pair(index, group)
        if self._layout.pairs.get(node.inputs[0], (None,))[0] == index:
            return ()
        return (self._matmul(index, group),)

    def _matmul(self, index: int, group: Group) -> Call:
        node = self._mir.nodes[index]
        depth, columns = self._mir.nodes[node.inputs[1]].shape
        own = columns
        if group.axis == "columns":
            own = -(-columns // self._panel) // group.tiles * self._panel
        part = Part(own, depth, False, True, depth, columns, self._domain(index))
        call = self._packed(index, lower_matmul(self._mir, node, part), group)
        if group.axis != "columns":
            return call
        return self._by_columns(call, node, own, depth)

    def _by_columns(self, call: Call, node: Node, own: int, depth: int) -> Call:
        """The call for a tile of `own` columns: weights, operands and result move along them."""
        x, weight = call.inputs
        assert weight is not None
        columns = node.shape[1]
        form = _format(self._mir.nodes[node.inputs[1]])
        operands = tuple(
            _moved(slot, own * 4) if self._mir.nodes[i].shape[-1] == columns else slot
            for slot, i in zip(call.operands, node.inputs[2:], strict=True)
        )
        constants = (*call.kernel.constants, ("total", columns))
        return Call(
            replace(call.kernel, template=f"{call.kernel.template}_columns", constants=constants),
            _moved(call.output, own * 4),
            (x, _moved(weight, own // self._panel * form.panel_bytes(depth, self._panel))),
            operands,
            None,
            call.origin,
        )

    def _pair(self, index: int, group: Group) -> tuple[Call, ...]:
        """A hidden value and its reader, some columns at a time."""
        mir, (reader, chunk) = self._mir, self._layout.pairs[index]
        up, down = mir.nodes[index], mir.nodes[reader]
        depth, hidden = mir.nodes[up.inputs[1]].shape
        columns, made = down.shape[1], []
        for at in range(0, hidden, chunk):
            part = Part(chunk, depth, False, True, depth, chunk, self._domain(index))
            first = self._packed(index, lower_matmul(mir, up, part), group)
            operands = tuple(
                _shifted(slot, at * 4) if mir.nodes[i].shape[-1] == hidden else slot
                for slot, i in zip(first.operands, up.inputs[2:], strict=True)
            )
            x, weight = first.inputs
            weights = (x, _shifted(weight, at * depth * 4))
            made.append(
                Call(first.kernel, first.output, weights, operands, None, f"{up.origin} at {at}")
            )
            last = at + chunk == hidden
            part = Part(columns, chunk, at > 0, last, chunk, columns, self._domain(reader))
            second = self._packed(reader, lower_matmul(mir, down, part), group)
            x, weight = second.inputs
            weights = (x, _shifted(weight, at * self._panel * 4))
            origin = f"{down.origin} at {at}"
            made.append(Call(second.kernel, second.output, weights, second.operands, None, origin))
        return tuple(made)

    def _domain(self, index: int) -> Domain:
        domain = self._known.domain[index]
        assert domain is not None
        return domain

    def _packed(self, index: int, lowered: Lowered, group: Group) -> Call:
        node = self._mir.nodes[index]
        whole = reads_whole(node, group.axis)
        sources = tuple(None if i is None else node.inputs[i] for i in lowered.inputs)
        extra = self._extra.get(index)
        return Call(
            lowered.kernel,
            self._slot(index),
            tuple(None if v is None else self._slot(v, moving=not whole) for v in sources),
            tuple(self._slot(node.inputs[i]) for i in lowered.operands),
            None if extra is None else Slot(Space.SCRATCH, extra),
            node.origin,
            _layer(node),
        )

    def _slot(self, value: int, *, moving: bool = True) -> Slot:
        """A value of a packed program: what is shared moves with the tile's span."""
        made = self._mir.nodes[value]
        if made.op is Op.PARAM:
            return Slot(Space.PARAM, self._table[value])
        space, offset = self._layout.place[self._known.root[value]]
        if space is Space.SCRATCH or made.op is Op.INPUT or not moving:
            return Slot(space, offset)
        step = value_bytes(made) // made.shape[0]
        if self._known.domain[value] is Domain.TOKENS:
            return Slot(space, offset, row=step)
        batched = self._known.batched[value]
        return Slot(space, offset, sequence=step if batched else 0)

    def _rectangle(self, index: int, tiles: int) -> Call:
        """A node of a program that is not packed, or one that does not depend on the batch."""
        node = self._mir.nodes[index]
        shapes = tuple(self._in_tile(i, tiles) for i in node.inputs)
        lowered = lower_node(Tiled(node, self._in_tile(index, tiles), shapes, tiles))
        extra = self._extra.get(index)

        def slot(value: int) -> Slot:
            made = self._mir.nodes[value]
            if made.op is Op.PARAM:
                return Slot(Space.PARAM, self._table[value])
            space, offset = self._layout.place[self._known.root[value]]
            moves = space is Space.ARENA and self._known.batched[value]
            return Slot(space, offset, value_bytes(made) // tiles if moves else 0)

        sources = tuple(None if i is None else node.inputs[i] for i in lowered.inputs)
        return Call(
            lowered.kernel,
            slot(index),
            tuple(None if v is None else slot(v) for v in sources),
            tuple(slot(node.inputs[i]) for i in lowered.operands),
            None if extra is None else Slot(Space.SCRATCH, extra),
            node.origin,
            _layer(node),
        )

    def _in_tile(self, index: int, tiles: int) -> Shape:
        """A value's shape in one tile: its leading axis cut where it holds the batch."""
        shape = self._mir.nodes[index].shape
        if not self._known.batched[index] or tiles == 1 or shape[0] % tiles:
            return shape
        return (shape[0] // tiles, *shape[1:])


def _moved(slot: Slot, stride: int) -> Slot:
    """A slot that moves by so many bytes from tile to tile."""
    return replace(slot, stride=stride)


def _shifted(slot: Slot | None, shift: int) -> Slot:
    """A slot that begins so many bytes later."""
    assert slot is not None
    return replace(slot, shift=shift)
