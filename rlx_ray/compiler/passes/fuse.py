"""Fuse: elementwise chains become one region, and regions become epilogues of the matmul before.

A value is moved into its reader when that reader is its only one: nothing is computed twice.
"""

from __future__ import annotations

from dataclasses import replace

from rlx_ray.compiler.ir.expr import Acc, Expr, In, rewrite
from rlx_ray.compiler.ir.mir import Mir, Node, Note, Op
from rlx_ray.compiler.passes.simplify import drop_dead

_MOST_OPERANDS = 12
"""Operands of one region: more would spill registers."""


def fuse(mir: Mir) -> Mir:
    """Merge elementwise producers into their readers, then regions into matmul epilogues."""
    users = [len(set(u)) for u in mir.users()]
    for index in mir.outputs:
        users[index] += 1
    nodes = list(mir.nodes)
    notes: list[Note] = []
    for index, node in enumerate(nodes):
        if node.op is not Op.ELEMENTWISE:
            continue
        for source in node.inputs:
            reader = nodes[index]
            if source not in reader.inputs or nodes[source].op is not Op.ELEMENTWISE:
                continue
            reason = _refusal(nodes[source], reader, users[source])
            if reason:
                notes.append(Note("fuse", f"{reader.origin}: kept apart", reason))
                continue
            nodes[index] = _merge(nodes[source], reader, source)
    for index, node in enumerate(nodes):
        if node.op is Op.ELEMENTWISE:
            nodes[index] = _into_matmul(nodes, node, users, notes)
    return drop_dead(replace(mir, nodes=tuple(nodes), notes=(*mir.notes, *notes)))


def _refusal(source: Node, reader: Node, users: int) -> str:
    if users > 1:
        return f"{source.origin} has {users} readers"
    if source.shape != reader.shape:
        return f"{source.origin} is broadcast and would be computed again for each element"
    if len(source.inputs) + len(reader.inputs) > _MOST_OPERANDS:
        return f"more than {_MOST_OPERANDS} operands"
    return ""


def _merge(source: Node, reader: Node, index: int) -> Node:
    """The reader with the source's expression in the place of its value."""
    inputs = list(dict.fromkeys((*(i for i in reader.inputs if i != index), *source.inputs)))
    inner, outer = source.expr, reader.expr
    assert inner is not None
    assert outer is not None

    def inner_leaf(leaf: Expr) -> Expr:
        return In(inputs.index(source.inputs[leaf.index])) if isinstance(leaf, In) else leaf

    moved = rewrite(inner, inner_leaf)

    def outer_leaf(leaf: Expr) -> Expr:
        if not isinstance(leaf, In):
            return leaf
        at = reader.inputs[leaf.index]
        return moved if at == index else In(inputs.index(at))

    return replace(reader, inputs=tuple(inputs), attrs=(("expr", rewrite(outer, outer_leaf)),))


def _into_matmul(nodes: list[Node], node: Node, users: list[int], notes: list[Note]) -> Node:
    """The region as the epilogue of a matmul that only it reads; itself where there is none."""
    for source in node.inputs:
        matmul = nodes[source]
        if matmul.op is not Op.MATMUL:
            continue
        if users[source] > 1 or matmul.shape != node.shape:
            notes.append(
                Note("fuse", f"{node.origin}: no epilogue", f"{matmul.origin} has other readers")
            )
            continue
        x, weight, *operands = matmul.inputs
        inputs = list(dict.fromkeys((*operands, *(i for i in node.inputs if i != source))))
        before: Expr = Acc() if matmul.expr is None else matmul.expr

        def first(leaf: Expr, operands: list[int] = operands, inputs: list[int] = inputs) -> Expr:
            return In(inputs.index(operands[leaf.index])) if isinstance(leaf, In) else leaf

        value = rewrite(before, first)

        def then(
            leaf: Expr, at: int = source, value: Expr = value, inputs: list[int] = inputs
        ) -> Expr:
            if not isinstance(leaf, In):
                return leaf
            index = node.inputs[leaf.index]
            return value if index == at else In(inputs.index(index))

        assert node.expr is not None
        notes.append(Note("fuse", f"{node.origin}: epilogue of {matmul.origin}", "its only reader"))
        return replace(
            matmul,
            inputs=(x, weight, *inputs),
            attrs=(("expr", rewrite(node.expr, then)),),
            origin=f"{matmul.origin} + {node.origin}",
        )
    return node
