"""Dispatch: each logical kernel becomes native or common, and the reason is kept."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from rlx_ray.compiler.ir.expr import Fn, In
from rlx_ray.compiler.ir.mir import LOGICAL, Mir, Node, Note, Op
from rlx_ray.compiler.passes.common import COMMON
from rlx_ray.compiler.passes.lower import MirBuilder
from rlx_ray.component.kernel_dispatch import KernelDispatchConfig, OpKind, decide


def dispatch(mir: Mir, config: KernelDispatchConfig, supported: Collection[OpKind]) -> Mir:
    """Replace every logical kernel whose decision is common by its primitives.

    A common lowering may itself hold logical kernels (attention holds a softmax): they are decided
    in turn.

    Args:
        mir: the lowered program.
        config: the component's dispatch.
        supported: kinds that the backend has native kernels for.
    """
    registry = tuple(LOGICAL.values())
    decisions = {kind: decide(config, kind, supported, registry) for kind in registry}
    b = MirBuilder()
    notes: dict[tuple[str, str], Note] = {}
    place: dict[int, int] = {}

    def put(node: Node) -> int:
        kind = LOGICAL.get(node.op)
        if kind is None:
            b.nodes.append(node)
            return len(b.nodes) - 1
        decision = decisions[kind]
        b.origin, b.dispatch = node.origin, decision.reason
        word = "common" if decision.lower_to_common else "native"
        notes[(kind.rust, word)] = Note("dispatch", f"{kind.rust}: {word}", decision.reason)
        if decision.lower_to_common:
            return _inline(node)
        if node.op is Op.ACTIVATION:
            native = Fn(str(node.attr("function")), (In(0),))
            return b.elementwise(native, node.inputs, node.shape)
        b.nodes.append(replace(node, dispatch=decision.reason))
        return len(b.nodes) - 1

    def _inline(node: Node) -> int:
        inner = MirBuilder()
        inner.nodes = list(b.nodes)
        inner.origin, inner.dispatch = node.origin, b.dispatch
        start = len(b.nodes)
        result = COMMON[node.op](inner, node, node.inputs)
        local = {i: i for i in range(start)}
        for offset, made in enumerate(inner.nodes[start:]):
            local[start + offset] = put(replace(made, inputs=tuple(local[i] for i in made.inputs)))
        return local[result]

    for index, node in enumerate(mir.nodes):
        place[index] = put(replace(node, inputs=tuple(place[i] for i in node.inputs)))
    outputs = tuple(place[i] for i in mir.outputs)
    return Mir(tuple(b.nodes), outputs, (*mir.notes, *notes.values()))
