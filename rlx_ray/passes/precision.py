"""Lower precision: matmuls of float32 become matmuls of quantised rows and packed weights."""

from __future__ import annotations

from dataclasses import replace

from rlx_ray.ir.mir import Mir, Node, Note, Op
from rlx_ray.matrix import MatrixFormat
from rlx_ray.target import Target


def lower_precision(mir: Mir, form: MatrixFormat, target: Target) -> Mir:
    """Give every matmul packed weights of a format, and a `quantize` before its left operand.

    Two matmuls of one operand share its `quantize`. What is not a matmul stays float32.

    Args:
        mir: a program whose matmuls are native.
        form: what the weights look like.
        target: decides the rows' element type.
    """
    nodes: list[Node] = []
    place: dict[int, int] = {}
    rows: dict[int, int] = {}
    notes: list[Note] = []
    weights = {n.inputs[1] for n in mir.nodes if n.op is Op.MATMUL}
    for index, node in enumerate(mir.nodes):
        moved = replace(node, inputs=tuple(place[i] for i in node.inputs))
        if index in weights:
            moved = replace(moved, dtype=form.dtype)
        elif node.op is Op.MATMUL:
            x = moved.inputs[0]
            if x not in rows:
                rows[x] = len(nodes)
                nodes.append(_quantize(nodes[x], x, node.origin, form, target))
            moved = _on_rows(moved, rows[x], nodes[rows[x]], form)
            notes.append(Note("lower_precision", node.origin, f"{form.precision} weights"))
        place[index] = len(nodes)
        nodes.append(moved)
    outputs = tuple(place[i] for i in mir.outputs)
    return Mir(tuple(nodes), outputs, (*mir.notes, *notes))


def _quantize(x: Node, index: int, reader: str, form: MatrixFormat, target: Target) -> Node:
    shape = (x.shape[0], form.row_elements(x.shape[1], target))
    attrs = (("k", x.shape[1]), ("precision", form.precision))
    origin = f"{reader}: rows in {form.precision}"
    return Node(Op.QUANTIZE, (index,), shape, form.row_dtype(target), attrs, origin)


def _on_rows(matmul: Node, index: int, rows: Node, form: MatrixFormat) -> Node:
    """A matmul of quantised rows, which are `pitch` bytes apart."""
    pitch = rows.shape[1] * rows.dtype.size
    attrs = dict(matmul.attrs) | {"precision": form.precision, "pitch": pitch}
    inputs = (index, *matmul.inputs[1:])
    return replace(matmul, inputs=inputs, attrs=tuple(sorted(attrs.items())))
