"""What a rule works on: the values that are in memory so far, and the writer of launches.

Two things wait for their readers. A norm that a `matvec` reads is computed in it. A library's
product whose epilogue its reader can do stays as it is until then: it is *raw*.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rlx_ray.artifact.launch_plan import NULL
from rlx_ray.compiler.cuda.analysis import ProgramAnalysis
from rlx_ray.compiler.cuda.constants import Operand, Value
from rlx_ray.compiler.cuda.writer import Place, Writer
from rlx_ray.compiler.ir.expr import Expr, In, Lit
from rlx_ray.compiler.ir.mir import Note, Op, Shape
from rlx_ray.compiler.passes.operands import grid, operand
from rlx_ray.dtype import DType
from rlx_ray.shape import elements


@dataclass(frozen=True, slots=True)
class Array:
    """A value in memory."""

    place: Place
    dtype: DType


@dataclass(frozen=True, slots=True)
class Raw:
    """A product without its epilogue: `place` + bias + residual is the value.

    Attributes:
        place: the product.
        bias: node of a float32 vector, or None.
        residual: node of a value of the product's shape, or None.
    """

    place: Place
    bias: int | None
    residual: int | None


@dataclass(frozen=True, slots=True)
class Ragged:
    """Where the rows of sequences are that stand one after the other.

    Attributes:
        starts: [batch + 1], where each begins and the last one ends.
        rows: how many rows count.
        places: of each row in its sequence.
    """

    starts: Place
    rows: Place
    places: Place


@dataclass(slots=True)
class Lowering:
    """A program while it is lowered.

    Attributes:
        analysis: what is known of it.
        ragged: the tables of a ragged program's rows.
        writer: where launches go.
        values: nodes in memory.
        raws: products that wait for their reader.
        late: for each node that waits, what writes it on demand.
        adjacent: parameters that are read as one: (first, second, bytes).
        casts: values in another type than they were made in.
        zeroed: buffers that are zero before the first run and after each, with their bytes.
        notes: why operations share a launch, or do not.
    """

    analysis: ProgramAnalysis
    ragged: Ragged | None = None
    writer: Writer = field(default_factory=Writer)
    values: dict[int, Array] = field(default_factory=dict)
    raws: dict[int, Raw] = field(default_factory=dict)
    late: dict[int, Callable[[], None]] = field(default_factory=dict)
    adjacent: dict[tuple[int, int, int], None] = field(default_factory=dict)
    casts: dict[tuple[Array, DType], Array] = field(default_factory=dict)
    zeroed: dict[str, tuple[Place, int]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    @property
    def t(self) -> DType:
        """Element type of activations."""
        return self.analysis.t

    def array(self, index: int) -> Array:
        """A node in memory; one that waits is written now."""
        if index in self.late:
            self.late.pop(index)()
        return self.values[index]

    def read(self, index: int) -> Array:
        """A node as products, native kernels and the cache take it: in the program's type."""
        array, made = self.array(index), self.analysis.node(index).op is not Op.PARAM
        return self.cast(index, self.t) if made and array.dtype is DType.F32 else array

    def place(self, index: int | None) -> Place:
        """Where a node lies as `read` has it; null for None."""
        return NULL if index is None else self.read(index).place

    def note(self, index: int, text: str, reason: str) -> None:
        """Say something of a node, and why it is so."""
        self.notes.append(Note("launches", f"{self.analysis.node(index).origin}: {text}", reason))

    def take(self, index: int) -> Raw:
        """A product as it is for its reader, which does the epilogue; or a value in memory."""
        if index not in self.raws:
            return Raw(self.place(index), None, None)
        del self.late[index]
        return self.raws.pop(index)

    @property
    def lengths(self) -> Place:
        """How many rows count, for kernels over rows: of each sequence, or of a run of them."""
        return self.place(self.analysis.lengths) if self.ragged is None else self.ragged.rows

    @property
    def spans(self) -> tuple[dict[str, Value], dict[str, Place]]:
        """The constant and the argument by which a kernel over sequences finds their rows."""
        if self.ragged is None:
            return {"ragged": 0}, {"lengths": self.lengths}
        return {"ragged": self.analysis.rows}, {"lengths": self.ragged.starts}

    def make(self, index: int, dtype: DType | None = None) -> Place:
        """A buffer for a node's value, of its own type or another one."""
        kind = dtype or self.type_of(index)
        node = self.analysis.node(index)
        place = self.writer.buffer(node.origin, elements(node.shape) * kind.size)
        self.values[index] = Array(place, kind)
        return place

    def type_of(self, index: int) -> DType:
        """The type that a node's value is made in: the program's, but for what stays float32."""
        return DType.F32 if index in self.analysis.wide else self.t

    def result_type(self, index: int) -> DType:
        """Float32 for an output that nothing else reads, else the node's type."""
        alone = self.analysis.is_output(index) and not self.analysis.users[index]
        return DType.F32 if alone else self.type_of(index)

    def skipping(self, index: int) -> tuple[dict[str, Value], dict[str, Place]]:
        """The constant and the argument by which a kernel over a node's rows skips padding."""
        seq = self.analysis.rows_of(index)
        return {"seq": seq}, ({"lengths": self.lengths} if seq else {})

    def elementwise(
        self,
        index: int,
        expr: Expr,
        operands: list[tuple[Array, Shape]],
        out: Array,
        part: str = "",
    ) -> None:
        """Launch y = expr of operands, broadcast to a node's shape; y may be one of them."""
        shape = self.analysis.shape(index)
        skip, lengths = self.skipping(index)
        plain = all(own == shape or elements(own) == 1 for _, own in operands)
        if plain and not skip["seq"]:
            flat = (1, elements(shape))
            operands = [(a, flat if own == shape else own) for a, own in operands]
            shape = flat
        rows, n = grid(shape)
        views = tuple(_view(array.dtype, shape, own) for array, own in operands)
        given: dict[str, Value] = {"t": out.dtype, "rows": rows, "n": n, "expr": expr, **skip}
        places = {f"x{k}": array.place for k, (array, _) in enumerate(operands)}
        origin = f"{self.analysis.node(index).origin}{part}"
        self.writer.call(
            "elementwise", origin, {**given, "operands": views}, **places, **lengths, y=out.place
        )

    def cast(self, index: int, dtype: DType) -> Array:
        """A node's value in another type."""
        have, node = self.array(index), self.analysis.node(index)
        if have.dtype is dtype:
            return have
        if (have, dtype) in self.casts:
            return self.casts[have, dtype]
        place = self.writer.buffer(f"{node.origin} as {dtype}", elements(node.shape) * dtype.size)
        made = self.casts[have, dtype] = Array(place, dtype)
        self.elementwise(index, In(0), [(have, node.shape)], made)
        return made

    def zero_padding(self, index: int) -> None:
        """Zero a value that a kernel is to write but for its padding, where that is read."""
        if self.analysis.whole:
            self.elementwise(index, Lit(0.0), [], self.values[index], ": padding")


def _view(dtype: DType, shape: Shape, own: Shape) -> Operand:
    """How an operand is read at a row of the result."""
    view = operand(shape, own)
    terms = []
    for div, mod, step in view.terms:
        row = "row" if div == 1 else f"row / {div}"
        row = f"{row} % {mod}" if mod else row
        terms.append(f"{row} * {step}" if step != 1 else row)
    return Operand(dtype, " + ".join(terms) or "0", view.column_step)
