"""Lower precision: matmuls of quantised rows and packed weights, and a cache of float16."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rlx_ray.compiler.cpu.rules import uses_cache
from rlx_ray.compiler.ir.mir import Mir, Node, Note, Op
from rlx_ray.dtype import DType
from rlx_ray.target import Target
from rlx_ray.weights.formats import BLOCK, FORMATS, QUANT_ROWS, MatrixFormat


def lower_precision(mir: Mir, formats: Mapping[str, str], rest: str, target: Target) -> Mir:
    """Give matmuls packed weights of a format, and a `quantize` before their left operands.

    Matmuls of one operand share its `quantize`. An embedding table in `q8rows` is gathered from
    quantised rows. The key-value cache becomes float16. What is neither stays float32.

    Args:
        mir: a program whose matmuls are native.
        formats: by parameter, its format.
        rest: the format of matrices that have none of their own.
        target: decides the rows' element type.
    """
    nodes: list[Node] = []
    place: dict[int, int] = {}
    rows: dict[tuple[int, str], int] = {}
    notes: list[Note] = []
    weights = {n.inputs[1] for n in mir.nodes if n.op is Op.MATMUL}
    for index, node in enumerate(mir.nodes):
        moved = replace(node, inputs=tuple(place[i] for i in node.inputs))
        if node.op is Op.PARAM:
            name = str(node.attr("name"))
            moved = _param(moved, formats.get(name, rest if index in weights else ""))
        elif node.op is Op.MATMUL:
            form = FORMATS[str(nodes[moved.inputs[1]].attr("format"))]
            x = moved.inputs[0]
            if form.rows == "f32" and form.name != "f32":
                moved = _with(moved, precision=form.name, pitch=nodes[x].shape[1] * 4)
            elif form.rows != "f32":
                if (x, form.rows) not in rows:
                    rows[x, form.rows] = len(nodes)
                    nodes.append(_quantize(nodes[x], x, node.origin, form, target))
                quantised = rows[x, form.rows]
                moved = _on_rows(moved, quantised, nodes[quantised], form)
            notes.append(Note("lower_precision", node.origin, f"{form.name} weights"))
        elif uses_cache(node.op):
            moved = _with(moved, size=2)
        place[index] = len(nodes)
        nodes.append(moved)
    outputs = tuple(place[i] for i in mir.outputs)
    return Mir(tuple(nodes), outputs, (*mir.notes, *notes))


def _param(node: Node, name: str) -> Node:
    """A parameter in a format; an empty name leaves it as it is."""
    if name == QUANT_ROWS:
        extent, n = node.shape
        shape = (extent, n + n // BLOCK * 2)
        return _with(replace(node, dtype=DType.U8, shape=shape), layout=QUANT_ROWS)
    return _with(replace(node, dtype=FORMATS[name].dtype), format=name) if name else node


def _quantize(x: Node, index: int, reader: str, form: MatrixFormat, target: Target) -> Node:
    shape = (x.shape[0], form.row_elements(x.shape[1], target))
    attrs = (("k", x.shape[1]), ("precision", form.rows))
    origin = f"{reader}: rows in {form.rows}"
    return Node(Op.QUANTIZE, (index,), shape, form.row_dtype(target), attrs, origin)


def _on_rows(matmul: Node, index: int, rows: Node, form: MatrixFormat) -> Node:
    """A matmul of quantised rows, which are `pitch` bytes apart."""
    pitch = rows.shape[1] * rows.dtype.size
    moved = replace(matmul, inputs=(index, *matmul.inputs[1:]))
    return _with(moved, precision=form.name, pitch=pitch)


def _with(node: Node, **attrs: str | int) -> Node:
    return replace(node, attrs=tuple(sorted((dict(node.attrs) | attrs).items())))
