"""MIR to launches: every node by its rule, then the sampling of tokens, then the arena."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from rlx_ray.artifact.launch_plan import Address
from rlx_ray.compiler.cuda import attention, matmuls, primitives, rows, sampling
from rlx_ray.compiler.cuda.analysis import ProgramAnalysis, find
from rlx_ray.compiler.cuda.launches import ALIGNMENT, Launches
from rlx_ray.compiler.cuda.state import Array, Lowering
from rlx_ray.compiler.cuda.writer import Local, Place, behind
from rlx_ray.compiler.ir.memory import Tensor
from rlx_ray.compiler.ir.mir import Mir, Node, Op, node_flops
from rlx_ray.compiler.passes.arena import align
from rlx_ray.compiler.passes.simplify import drop_dead
from rlx_ray.component.profile import CompileProfile
from rlx_ray.dtype import DType
from rlx_ray.errors import VerifyError
from rlx_ray.shape import elements
from rlx_ray.weights.formats import BLOCK, QUANT_ROWS, ROWS_LAYOUT, tiles_layout

Rule = Callable[[Lowering, int], None]

RULES: dict[Op, Rule] = {
    Op.MATMUL: matmuls.matmul,
    Op.DOT: matmuls.dot,
    Op.LAYER_NORM: rows.norm,
    Op.RMS_NORM: rows.norm,
    Op.GATHER: rows.gather,
    Op.TAKE: rows.take,
    Op.POOL: rows.pool,
    Op.SOFTMAX: rows.softmax,
    Op.ATTENTION: attention.attention,
    Op.ROPE_CACHE: attention.rope_cache,
    Op.CACHED_ATTENTION: attention.cached_attention,
    Op.ELEMENTWISE: primitives.elementwise,
    Op.RESHAPE: primitives.reshape,
    Op.REDUCE: primitives.reduce,
    Op.STRIDED: primitives.strided,
    Op.LENGTH_MASK: primitives.length_mask,
    Op.IOTA: primitives.iota,
    Op.CAUSAL_MASK: primitives.causal_mask,
    Op.CONCAT: primitives.concat,
    Op.CACHE_WRITE: primitives.cache_write,
    Op.CACHE_READ: primitives.cache_read,
}
"""How each operation becomes launches."""


def lower(
    mir: Mir, profile: CompileProfile, formats: Mapping[str, str], names: tuple[str, ...]
) -> Launches:
    """A program as launches.

    Args:
        mir: the program, after the passes over it.
        profile: its precision is the type of activations, weights and cache; `backend.tf32` says
            whether float32 products may round their factors.
        formats: of parameters whose weights stay quantised (rlx_ray.weights.formats).
        names: of the outputs.
    """
    t, tf32 = DType.parse(profile.precision.compute), bool(dict(profile.backend).get("tf32"))
    s = Lowering(find(mir, t, tf32, formats))
    inputs = _inputs(s)
    _place_tensors(s, _places(inputs))
    if s.analysis.ragged:
        rows.find_starts(s)
    for index, node in enumerate(mir.nodes):
        if node.op in RULES:
            RULES[node.op](s, index)
        elif index not in s.values:
            raise VerifyError(f"MIR op {node.op.value!r} has no launch.")
    outputs: _Placed = [
        (s.cast(index, DType.F32).place, Tensor(name, DType.F32, mir.nodes[index].shape, -1))
        for name, index in zip(names, mir.outputs, strict=True)
    ]
    if attention.page_bytes(s.analysis):
        ((logits, tensor),) = outputs
        outputs += sampling.sample(s, logits, tensor.shape, _places(inputs))
    return _finish(s, inputs, outputs)


_Placed = list[tuple[Place, Tensor]]
"""Inputs or outputs, which have no offset yet."""


def _places(found: _Placed) -> dict[str, Place]:
    return {tensor.name: place for place, tensor in found}


def _inputs(s: Lowering) -> _Placed:
    """The program's inputs, one behind the other in a buffer, so that one copy fills them."""
    mir = s.analysis.mir
    nodes = [n for n in mir.nodes if n.op is Op.INPUT]
    found = [Tensor(str(n.attr("name")), n.dtype, n.shape, -1) for n in nodes]
    if attention.page_bytes(s.analysis):
        found += sampling.sampling_inputs(*mir.nodes[mir.outputs[0]].shape)
    sizes = [align(elements(t.shape) * t.dtype.size, ALIGNMENT) for t in found]
    whole = s.writer.buffer("inputs", sum(sizes))
    s.writer.keep(whole, from_start=True)
    return [(behind(whole, sum(sizes[:i])), tensor) for i, tensor in enumerate(found)]


def _place_tensors(s: Lowering, inputs: Mapping[str, Place]) -> None:
    """Inputs and parameters are in memory from the start."""
    for index, node in enumerate(s.analysis.mir.nodes):
        if node.op is Op.INPUT:
            s.values[index] = Array(inputs[str(node.attr("name"))], node.dtype)
        elif node.op is Op.PARAM:
            address = Address("param", 0, s.analysis.table[index])
            s.values[index] = Array(address, s.analysis.param_dtype(index))


def drop_single_rows(mir: Mir) -> Mir:
    """The last of one token is that token: no launch gathers what is in its place already."""
    place: dict[int, int] = {}
    nodes = []
    for index, node in enumerate(mir.nodes):
        moved = replace(node, inputs=tuple(place[i] for i in node.inputs))
        single = node.op is Op.POOL and node.attr("kind") == "last" and node.number("tokens") == 1
        place[index] = moved.inputs[0] if single else index
        nodes.append(moved)
    outputs = tuple(place[i] for i in mir.outputs)
    return drop_dead(replace(mir, nodes=tuple(nodes), outputs=outputs))


def _finish(s: Lowering, inputs: _Placed, outputs: _Placed) -> Launches:
    """The program with its arena planned."""
    for place, _ in outputs:
        s.writer.keep(place)
    steps, arena, offsets = s.writer.finish()

    def offset(place: Place) -> int:
        assert isinstance(place, Local)
        return offsets[place.buffer] + place.offset

    def tensors(found: _Placed) -> tuple[Tensor, ...]:
        return tuple(replace(tensor, offset=offset(place)) for place, tensor in found)

    nodes = s.analysis.mir.nodes
    return Launches(
        tensors(inputs),
        tuple(_param(s.analysis, index, nodes[index]) for index in s.analysis.table),
        tensors(outputs),
        steps,
        arena,
        sum(node_flops(s.analysis.mir, i) for i in range(len(nodes))),
        tuple((offset(place), nbytes) for place, nbytes in s.zeroed.values()),
        tuple(s.adjacent),
        (*s.analysis.mir.notes, *s.notes),
        attention.page_bytes(s.analysis),
    )


def _param(analysis: ProgramAnalysis, index: int, node: Node) -> Tensor:
    """A parameter as it is packed (weights/packing_cuda.py)."""
    name, dtype = str(node.attr("name")), analysis.param_dtype(index)
    if analysis.is_matrix(index):
        form = analysis.form(index)
        layout = ROWS_LAYOUT if form is None else tiles_layout(form.name)
        return Tensor(name, dtype, node.shape, -1, layout)
    if analysis.is_table(index) and analysis.is_coded(index):
        extent, n = node.shape
        return Tensor(name, dtype, (extent, n + n // BLOCK * 2), -1, QUANT_ROWS)
    return Tensor(name, dtype, node.shape, -1)
