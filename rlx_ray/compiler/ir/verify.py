"""One verifier per level. Each raises VerifyError that names the node; passes run it after each."""

from __future__ import annotations

from rlx_ray.compiler.ir.expr import Acc, Expr, Fn, In, Lit
from rlx_ray.compiler.ir.hir import Hir
from rlx_ray.compiler.ir.memory import MemoryPlan
from rlx_ray.compiler.ir.mir import OPS, SCALAR_FUNCTIONS, Mir, Node, Op, broadcast
from rlx_ray.errors import VerifyError
from rlx_ray.shape import elements


def verify_hir(hir: Hir, *, bound: bool) -> Hir:
    """Names are unique and defined before use; with `bound`, every extent is a positive number.

    Raises:
        VerifyError: a rule is broken.
    """
    known = {t.name for t in (*hir.inputs, *hir.params)}
    if len(known) != len(hir.inputs) + len(hir.params):
        raise VerifyError("HIR: two tensors have one name.")
    for node in hir.nodes:
        missing = [i for i in node.inputs if i is not None and i not in known]
        if missing:
            raise VerifyError(f"HIR node {node.name!r} reads {missing[0]!r}, which is not known.")
        if node.name in known:
            raise VerifyError(f"HIR node {node.name!r} is defined twice.")
        known.add(node.name)
    for name in hir.outputs:
        if name not in known:
            raise VerifyError(f"HIR output {name!r} is not known.")
    if bound:
        shapes = {t.name: t.shape for t in (*hir.inputs, *hir.params)}
        shapes |= {n.name: n.shape for n in hir.nodes}
        for name, shape in shapes.items():
            if any(d.size < 1 for d in shape):
                raise VerifyError(f"HIR {name!r} has an empty shape.")
    return hir


def verify_mir(mir: Mir) -> Mir:
    """Order, arity, shapes by the op table, expressions within their operands.

    Raises:
        VerifyError: a rule is broken.
    """
    for index, node in enumerate(mir.nodes):
        where = f"MIR node %{index} ({node.op.value}, from {node.origin!r})"
        if any(not 0 <= i < index for i in node.inputs):
            raise VerifyError(f"{where} reads {node.inputs}, not all of which come before it.")
        low, high = OPS[node.op].arity
        if not low <= len(node.inputs) <= high:
            raise VerifyError(f"{where} has {len(node.inputs)} inputs, not {low} to {high}.")
        shapes = tuple(mir.nodes[i].shape for i in node.inputs)
        try:
            expected = OPS[node.op].infer(node, shapes)
        except (ValueError, IndexError) as error:
            raise VerifyError(f"{where}: {error}.") from error
        if expected is not None and expected != node.shape:
            raise VerifyError(f"{where} has shape {node.shape}, its inputs give {expected}.")
        _verify_attrs(mir, node, shapes, where)
    if any(not 0 <= i < len(mir.nodes) for i in mir.outputs) or not mir.outputs:
        raise VerifyError(f"MIR outputs {mir.outputs} are not nodes.")
    return mir


def _verify_attrs(mir: Mir, node: Node, shapes: tuple[tuple[int, ...], ...], where: str) -> None:
    match node.op:
        case Op.ELEMENTWISE:
            if node.expr is None:
                raise VerifyError(f"{where} has no expression.")
            _verify_expr(node.expr, len(shapes), False, where)
        case Op.MATMUL if node.expr is not None:
            _verify_expr(node.expr, len(shapes) - 2, True, where)
            for shape in shapes[2:]:
                if broadcast((shape, node.shape)) != node.shape:
                    raise VerifyError(f"{where}: operand {shape} does not fit {node.shape}.")
        case Op.RESHAPE if elements(shapes[0]) != elements(node.shape):
            raise VerifyError(f"{where} makes {node.shape} of {shapes[0]}.")
        case _:
            pass


def _verify_expr(expr: Expr, operands: int, acc: bool, where: str) -> None:
    match expr:
        case In(index) if not 0 <= index < operands:
            raise VerifyError(f"{where}: operand ${index} of {operands}.")
        case Acc() if not acc:
            raise VerifyError(f"{where}: only an epilogue has an accumulator.")
        case Fn(name, args):
            if name not in SCALAR_FUNCTIONS or SCALAR_FUNCTIONS[name].arity != len(args):
                raise VerifyError(f"{where}: no function {name!r} of {len(args)} arguments.")
            for arg in args:
                _verify_expr(arg, operands, acc, where)
        case In() | Acc() | Lit():
            pass


def verify_plan(plan: MemoryPlan, what: str) -> None:
    """No two buffers that live at one time overlap, and all lie inside the plan.

    Raises:
        VerifyError: a rule is broken.
    """
    for i, a in enumerate(plan.buffers):
        if a.offset < 0 or a.offset + a.size > plan.size or a.offset % 64:
            raise VerifyError(f"{what}: buffer {a.name!r} lies outside or is not aligned.")
        for b in plan.buffers[i + 1 :]:
            alive = a.first <= b.last and b.first <= a.last
            if alive and a.offset < b.offset + b.size and b.offset < a.offset + a.size:
                raise VerifyError(f"{what}: buffers {a.name!r} and {b.name!r} overlap.")
