"""Calls: the kernel instances of a laid-out program's nodes, and where each finds its values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rlx_ray.compiler.cpu.layout import Layout
from rlx_ray.compiler.cpu.lir import KernelCall, Space, TileArgument
from rlx_ray.compiler.cpu.op_rule import Domain, Lowered, Part, Site
from rlx_ray.compiler.cpu.regions import Group, RegionAnalysis, reads_whole, value_bytes
from rlx_ray.compiler.cpu.rules import lower_packed, lower_padded
from rlx_ray.compiler.ir.mir import Mir, Node, Op, Shape
from rlx_ray.shape import elements
from rlx_ray.weights.formats import FORMATS, MatrixFormat


def matrix_format(node: Node) -> MatrixFormat:
    """The packed format of a parameter that is a matrix."""
    return FORMATS[str(node.attr("format") or "f32")]


class Calls:
    """Makes the calls of one program's nodes.

    Args:
        mir: the program.
        layout: where its values lie.
        known: what is known of it.
        panel: columns of a panel of weights.
    """

    def __init__(self, mir: Mir, layout: Layout, known: RegionAnalysis, panel: int) -> None:
        self._mir, self._layout, self._known, self._panel = mir, layout, known, panel
        params = (i for i, n in enumerate(mir.nodes) if n.op is Op.PARAM)
        self._table = {index: at for at, index in enumerate(params)}
        self._extra = {
            int(b.name.removesuffix(".scratch")): b.offset
            for b in layout.scratch.buffers
            if b.name.endswith(".scratch")
        }

    def calls(self, index: int, group: Group) -> tuple[KernelCall, ...]:
        """What computes one tile of a node; empty if the node before it has done so."""
        node = self._mir.nodes[index]
        if not self._known.packed or not self._known.batched[index]:
            return (self._padded(index, group.tiles),)
        if index in self._layout.pairs:
            return self._pair(index, group)
        if self._layout.pairs.get(node.inputs[0], (None,))[0] == index:
            return ()
        if group.axis == "columns" and index in group.nodes:
            return (self._by_columns(index, group),)
        return (self._packed(index, group),)

    def _by_columns(self, index: int, group: Group) -> KernelCall:
        """A matmul in tiles of columns: weights, operands and result move along them."""
        node = self._mir.nodes[index]
        depth, columns = self._mir.nodes[node.inputs[1]].shape
        own = -(-columns // self._panel) // group.tiles * self._panel
        call = self._packed(index, group, Part(own, depth, depth, columns, by_columns=True))
        x, weight = call.inputs
        assert weight is not None
        form = matrix_format(self._mir.nodes[node.inputs[1]])
        operands = tuple(
            _moved(argument, own * 4) if self._mir.nodes[i].shape[-1] == columns else argument
            for argument, i in zip(call.operands, node.inputs[2:], strict=True)
        )
        panels = own // self._panel * form.panel_bytes(depth, self._panel)
        return replace(
            call,
            output=_moved(call.output, own * 4),
            inputs=(x, _moved(weight, panels)),
            operands=operands,
        )

    def _pair(self, index: int, group: Group) -> tuple[KernelCall, ...]:
        """A hidden value and its reader, some columns at a time."""
        mir, (reader, chunk) = self._mir, self._layout.pairs[index]
        up, down = mir.nodes[index], mir.nodes[reader]
        depth, hidden = mir.nodes[up.inputs[1]].shape
        columns, made = down.shape[1], []
        for at in range(0, hidden, chunk):
            first = self._packed(index, group, Part(chunk, depth, depth, chunk))
            operands = tuple(
                _shifted(argument, at * 4) if mir.nodes[i].shape[-1] == hidden else argument
                for argument, i in zip(first.operands, up.inputs[2:], strict=True)
            )
            inputs = (first.inputs[0], _shifted(first.inputs[1], at * depth * 4))
            origin = f"{up.origin} at {at}"
            made.append(replace(first, inputs=inputs, operands=operands, origin=origin))
            part = Part(columns, chunk, chunk, columns, more=at > 0, last=at + chunk == hidden)
            second = self._packed(reader, group, part)
            inputs = (second.inputs[0], _shifted(second.inputs[1], at * self._panel * 4))
            made.append(replace(second, inputs=inputs, origin=f"{down.origin} at {at}"))
        return tuple(made)

    def _packed(self, index: int, group: Group, part: Part | None = None) -> KernelCall:
        """A node over packed rows: shared values move with the tile's span."""
        node, domain = self._mir.nodes[index], self._known.domain[index]
        assert domain is not None
        shapes = tuple(self._mir.nodes[i].shape for i in node.inputs)
        site = Site(node, node.shape, shapes, domain.extent, group.axis, group.tiles, part)
        source = self._place if reads_whole(node, group.axis) else self._in_span
        return self._call(index, lower_packed(site), self._in_span, source)

    def _padded(self, index: int, tiles: int) -> KernelCall:
        """A node of a program that is not packed, or one that does not depend on the batch."""
        node, shape = self._mir.nodes[index], self._in_tile(index, tiles)
        shapes = tuple(self._in_tile(i, tiles) for i in node.inputs)
        site = Site(node, shape, shapes, elements(shape[:-1]), "sequences", tiles)

        def argument(value: int) -> TileArgument:
            place = self._place(value)
            moves = place.space is Space.ARENA and self._known.batched[value]
            return _moved(place, value_bytes(self._mir.nodes[value]) // tiles) if moves else place

        return self._call(index, lower_padded(site), argument, argument)

    def _call(
        self,
        index: int,
        lowered: Lowered,
        argument: Callable[[int], TileArgument],
        source: Callable[[int], TileArgument],
    ) -> KernelCall:
        """A node's call; `argument` finds its output and operands, `source` its inputs."""
        node, extra = self._mir.nodes[index], self._extra.get(index)
        return KernelCall(
            lowered.kernel,
            argument(index),
            tuple(None if i is None else source(node.inputs[i]) for i in lowered.inputs),
            tuple(argument(node.inputs[i]) for i in lowered.operands),
            None if extra is None else TileArgument(Space.SCRATCH, extra),
            node.origin,
            0 if node.attr("layer") is None else node.number("layer"),
        )

    def _place(self, value: int) -> TileArgument:
        """Where a value begins."""
        if self._mir.nodes[value].op is Op.PARAM:
            return TileArgument(Space.PARAM, self._table[value])
        return TileArgument(*self._layout.place[self._known.root[value]])

    def _in_span(self, value: int) -> TileArgument:
        """Where a tile's rows of a value begin, if tiles share it."""
        made, place = self._mir.nodes[value], self._place(value)
        if place.space is not Space.ARENA or made.op is Op.INPUT:
            return place
        step = value_bytes(made) // made.shape[0]
        match self._known.domain[value]:
            case Domain.TOKENS:
                return replace(place, row=step)
            case Domain.SEQUENCES:
                return replace(place, sequence=step)
            case None:
                return place

    def _in_tile(self, index: int, tiles: int) -> Shape:
        """A value's shape in one tile: its leading axis cut where it holds the batch."""
        shape = self._mir.nodes[index].shape
        if not self._known.batched[index] or tiles == 1 or shape[0] % tiles:
            return shape
        return (shape[0] // tiles, *shape[1:])


def _moved(argument: TileArgument, stride: int) -> TileArgument:
    """An argument that moves by `stride` bytes from tile to tile."""
    return replace(argument, stride=stride)


def _shifted(argument: TileArgument | None, shift: int) -> TileArgument:
    """An argument that begins `shift` bytes later."""
    assert argument is not None
    return replace(argument, shift=shift)
