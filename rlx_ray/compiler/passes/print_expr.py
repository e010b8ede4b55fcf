"""Expressions as C, which CUDA reads too; the kernels define the functions for their registers."""

from __future__ import annotations

from rlx_ray.compiler.ir.expr import Acc, Expr, Fn, In, Lit
from rlx_ray.compiler.ir.mir import SCALAR_FUNCTIONS


def number(value: float) -> str:
    """A C literal that reads back as the float32 nearest to the value."""
    if isinstance(value, int):
        return str(value)
    return f"{value!r}f" if "e" in repr(value) or "." in repr(value) else f"{value!r}.0f"


def print_expr(expr: Expr) -> str:
    """C for an expression over `acc` and the operands `v0`, `v1` ..."""
    match expr:
        case In(index):
            return f"v{index}"
        case Acc():
            return "acc"
        case Lit(value):
            return f"splat({number(float(value))})"
        case Fn(name, args):
            return SCALAR_FUNCTIONS[name].c.format(*(print_expr(a) for a in args))
