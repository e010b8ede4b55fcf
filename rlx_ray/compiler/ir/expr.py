"""Expressions of elementwise regions: small trees over the operands of one output element."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class In:
    """The element of operand `index` that meets the output element."""

    index: int


@dataclass(frozen=True, slots=True)
class Acc:
    """The value that the kernel itself computed: only in epilogues."""


@dataclass(frozen=True, slots=True)
class Lit:
    """A number."""

    value: float


@dataclass(frozen=True, slots=True)
class Fn:
    """A scalar function (its name in `ir.mir.SCALAR_FUNCTIONS`) of expressions."""

    name: str
    args: tuple[Expr, ...]


Expr: TypeAlias = In | Acc | Lit | Fn


def rewrite(expr: Expr, leaf: Callable[[Expr], Expr]) -> Expr:
    """The same tree with `leaf` applied to each of its leaves."""
    match expr:
        case Fn(name, args):
            return Fn(name, tuple(rewrite(a, leaf) for a in args))
        case In() | Acc() | Lit():
            return leaf(expr)


def text(expr: Expr) -> str:
    """A stable text: `add(acc, $0)`."""
    match expr:
        case In(index):
            return f"${index}"
        case Acc():
            return "acc"
        case Lit(value):
            return repr(value)
        case Fn(name, args):
            return f"{name}({', '.join(text(a) for a in args)})"


def size(expr: Expr) -> int:
    """The number of functions in the tree."""
    return 1 + sum(size(a) for a in expr.args) if isinstance(expr, Fn) else 0
