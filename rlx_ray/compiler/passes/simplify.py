"""Simplify: fold constants, share equal nodes, drop what nobody reads."""

from __future__ import annotations

from dataclasses import replace

from rlx_ray.compiler.ir.expr import Expr, Fn, Lit
from rlx_ray.compiler.ir.mir import SCALAR_FUNCTIONS, Mir, Node, Op

_NEUTRAL = {("add", 0.0), ("sub", 0.0), ("mul", 1.0), ("div", 1.0)}


def fold_expr(expr: Expr) -> Expr:
    """The expression with constant parts evaluated and neutral elements gone.

    x * 0 stays: x may be infinite, and a pass may not change the meaning.
    """
    if not isinstance(expr, Fn):
        return expr
    args = tuple(fold_expr(a) for a in expr.args)
    if all(isinstance(a, Lit) for a in args):
        values = [a.value for a in args if isinstance(a, Lit)]
        try:
            return Lit(float(SCALAR_FUNCTIONS[expr.name].oracle(*values)))
        except (ZeroDivisionError, OverflowError, ValueError):
            return Fn(expr.name, args)
    match args:
        case (left, Lit(value)) if (expr.name, value) in _NEUTRAL:
            return left
        case (Lit(value), right) if (expr.name, value) in {("add", 0.0), ("mul", 1.0)}:
            return right
        case _:
            return Fn(expr.name, args)


def fold_constants(mir: Mir) -> Mir:
    """Evaluate the constant parts of every expression."""
    nodes = tuple(
        replace(n, attrs=tuple((k, fold_expr(v) if isinstance(v, Fn) else v) for k, v in n.attrs))
        for n in mir.nodes
    )
    return replace(mir, nodes=nodes)


def share_equal(mir: Mir) -> Mir:
    """Common subexpressions: two nodes with equal operation, inputs and attributes become one."""
    place: dict[int, int] = {}
    seen: dict[Node, int] = {}
    for index, node in enumerate(mir.nodes):
        moved = replace(node, inputs=tuple(place[i] for i in node.inputs))
        same = replace(moved, origin="", dispatch="")
        place[index] = seen.setdefault(same, index)
    nodes = tuple(replace(n, inputs=tuple(place[i] for i in n.inputs)) for n in mir.nodes)
    return replace(mir, nodes=nodes, outputs=tuple(place[i] for i in mir.outputs))


def drop_dead(mir: Mir) -> Mir:
    """Dead code: keep inputs, parameters and what an output needs.

    Inputs and parameters stay, read or not: they are the program's signature.
    """
    live = set(mir.outputs)
    for index in range(len(mir.nodes) - 1, -1, -1):
        node = mir.nodes[index]
        if node.op in (Op.INPUT, Op.PARAM):
            live.add(index)
        if index in live:
            live.update(node.inputs)
    kept = sorted(live)
    place = {old: new for new, old in enumerate(kept)}
    nodes = tuple(
        replace(mir.nodes[i], inputs=tuple(place[j] for j in mir.nodes[i].inputs)) for i in kept
    )
    return replace(mir, nodes=nodes, outputs=tuple(place[i] for i in mir.outputs))
