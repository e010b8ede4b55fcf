"""Kernel templates: functions of named arguments whose results are kernel instances."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from rlx_ray.compiler.ir.expr import Expr
from rlx_ray.compiler.passes.operands import OperandAccess
from rlx_ray.compiler.passes.print_expr import number
from rlx_ray.errors import VerifyError


class Extent(Enum):
    """A number of rows that only a tile's span knows, as C."""

    ROWS = "s->rows"
    SEQUENCES = "s->seqs"


Argument = int | float | str | Extent
"""What a field is given; a text is the name of a constant of kernels/c/*.h."""

Flops = Callable[[Mapping[str, int], int, int], int]
"""From a kernel's whole numbers, the rows and the sequences of a forward pass: its operations."""

EXPRESSIONS = ("function", "micro", "epilogue")
"""Names in a body that stand for the kernel's expression, and are no fields: the function of one
register of elements, a matmul's micro-kernel that ends with it, and the function or 0."""


def _uncounted(sizes: Mapping[str, int], rows: int, sequences: int) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class Template:
    """A call of a function of kernels/c/*.h; `$name` is a field, which each instance gives.

    In a body `y` is the output, `a`, `b`, `c` and so on the inputs (const void *), `cache` and
    `layer` the key-value cache and the layer where the template takes them, `x` the operands, `t`
    the kernel's own scratch, `s` the tile's span and `tile` its number.

    Attributes:
        name: for `explain`, profiles and errors.
        body: the call.
        header: the file that holds the function.
        inputs: how many inputs it takes.
        cache: whether it takes the key-value cache.
        unit: what a unit says once, before the call, for all instances that say the same.
        flops: floating-point operations of a forward pass, for profiles; 0 where none are counted.
    """

    name: str
    body: str
    header: str
    inputs: int = 3
    cache: bool = False
    unit: str = ""
    flops: Flops = _uncounted

    def __call__(
        self,
        expr: Expr | None = None,
        operands: tuple[OperandAccess, ...] = (),
        /,
        **arguments: Argument,
    ) -> Kernel:
        """The instance with some arguments.

        Raises:
            VerifyError: a field is missing, or an argument is no field.
        """
        return Kernel(self, tuple(arguments.items()), expr, operands)

    @property
    def fields(self) -> tuple[str, ...]:
        """What an instance must be given, in the order of the body."""
        named = (*_names(self.body), *_names(self.unit))
        return tuple(name for name in dict.fromkeys(named) if name not in EXPRESSIONS)

    def check(self, given: Iterable[str]) -> None:
        """Check that every field is given, once, and nothing else.

        Raises:
            VerifyError: it is not; the message names the template and the fields.
        """
        names = list(given)
        missing = [name for name in self.fields if name not in names]
        unknown = [name for name in names if name not in self.fields]
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        for what, found in (("lacks", missing), ("has no", unknown), ("is given twice", twice)):
            if found:
                fields = ", ".join(map(repr, found))
                raise VerifyError(f"kernel template {self.name!r} {what} {fields}.")


@dataclass(frozen=True, slots=True)
class Kernel:
    """An instance of a template: its compile-time arguments and, if any, its expression.

    Kernels that are equal are one function in the unit, whatever the number of their calls.

    Raises:
        VerifyError: the arguments are not the template's fields.
    """

    template: Template
    arguments: tuple[tuple[str, Argument], ...]
    expr: Expr | None = None
    operands: tuple[OperandAccess, ...] = ()

    def __post_init__(self) -> None:
        self.template.check(name for name, _ in self.arguments)

    @property
    def sizes(self) -> dict[str, int]:
        """The arguments that are whole numbers."""
        return {name: value for name, value in self.arguments if isinstance(value, int)}

    def body(self, expressions: Mapping[str, str]) -> str:
        """The call as C.

        Args:
            expressions: what the names of EXPRESSIONS that the body uses stand for.
        """
        return _filled(self.template.body, self.arguments, expressions)

    @property
    def unit(self) -> str:
        """What the unit says once, as C; empty where it need not."""
        return _filled(self.template.unit, self.arguments, {})


def expressions(template: Template) -> tuple[str, ...]:
    """The names of EXPRESSIONS that a template's body uses."""
    return tuple(name for name in _names(template.body) if name in EXPRESSIONS)


def spelled(value: Argument) -> str:
    """An argument as C."""
    match value:
        case Extent():
            return value.value
        case str():
            return value
        case _:
            return number(value)


def _names(text: str) -> list[str]:
    return string.Template(text).get_identifiers()


def _filled(text: str, arguments: Iterable[tuple[str, Argument]], others: Mapping[str, str]) -> str:
    named = {name: spelled(value) for name, value in arguments}
    return string.Template(text).substitute(named, **others)
