"""What is known of a program before its launches are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlx_ray.compiler.cuda.storage import float32_values
from rlx_ray.compiler.ir.expr import Expr, Fn, In, Lit
from rlx_ray.compiler.ir.mir import Mir, Node, Op, Shape
from rlx_ray.dtype import DType
from rlx_ray.errors import CompileError
from rlx_ray.shape import elements
from rlx_ray.weights.formats import FORMATS, QUANT_ROWS, MatrixFormat

FEW_ROWS = 32
"""Rows up to which a product with weights is `matvec`: it reads them once, whatever the rows."""

_ROW_BY_ROW = (
    *(Op.INPUT, Op.PARAM, Op.MATMUL, Op.LAYER_NORM, Op.RMS_NORM, Op.ATTENTION, Op.SOFTMAX),
    *(Op.GATHER, Op.POOL, Op.ROPE_CACHE, Op.CACHED_ATTENTION, Op.ELEMENTWISE, Op.RESHAPE),
)


@dataclass(frozen=True, slots=True)
class ProgramAnalysis:
    """A program and its types.

    Attributes:
        mir: the program.
        t: element type of activations, weights and cache.
        tf32: whether float32 products may round their factors to TF32.
        batch: sequences.
        rows: token rows.
        seq: rows of a sequence. Ragged rows are a run that counts as one sequence.
        ragged: whether sequences stand one after the other, not in a rectangle.
        lengths: the input that says how many rows of a sequence count.
        pooled: nodes whose rows are sequences.
        table: parameters by their place in the table.
        users: for each node those that read it, in order, each once.
        units: patterns that bring rows to unit length, by their last node: what they do it to.
        gathers: by the last of some gathers that are summed, all of them, the last first.
        inner: nodes inside such patterns, which have no launch of their own.
        whole: whether operations mix rows without regard to lengths, so that padding is computed.
        wide: nodes that are float32 whatever t is.
        formats: by parameter, the format of weights that stay quantised.
    """

    mir: Mir
    t: DType
    tf32: bool
    batch: int
    rows: int
    seq: int
    ragged: bool
    lengths: int
    pooled: frozenset[int]
    table: Mapping[int, int]
    users: tuple[tuple[int, ...], ...]
    units: Mapping[int, int]
    gathers: Mapping[int, tuple[int, ...]]
    inner: frozenset[int]
    whole: bool
    wide: frozenset[int]
    formats: Mapping[str, str]

    def node(self, index: int) -> Node:
        """A node of the program."""
        return self.mir.nodes[index]

    def shape(self, index: int) -> Shape:
        """The shape of a node."""
        return self.mir.nodes[index].shape

    def is_output(self, index: int) -> bool:
        """Whether a node is one of the program's outputs."""
        return index in self.mir.outputs

    def is_matrix(self, index: int) -> bool:
        """Whether a node is the weights of a linear layer."""
        return self.node(index).attr("layout") == "matrix"

    def form(self, index: int) -> MatrixFormat | None:
        """The block format of weights; None for plain ones."""
        name = self.formats.get(str(self.node(index).attr("name")))
        return None if name is None else FORMATS[name]

    def is_table(self, index: int) -> bool:
        """Whether a parameter is a table that embeddings are read from."""
        reads = any(self._embeds(self.node(u), index) for u in self.users[index])
        return self.node(index).op is Op.PARAM and reads

    def _embeds(self, reader: Node, table: int) -> bool:
        """Whether a node reads embeddings of a table; places behind a cache are rows of angles."""
        if reader.op not in (Op.GATHER, Op.TAKE) or reader.inputs[0] != table:
            return False
        counted = self.node(reader.inputs[-1])
        return not (reader.op is Op.TAKE and counted.op is Op.IOTA and counted.inputs)

    def is_coded(self, index: int) -> bool:
        """Whether an embedding table has rows of 8 bits."""
        return self.formats.get(str(self.node(index).attr("name"))) == QUANT_ROWS

    def param_dtype(self, index: int) -> DType:
        """The element type of a parameter: matrices and tables have the program's."""
        if self.is_matrix(index):
            return self.t if self.form(index) is None else DType.U8
        if self.is_table(index):
            return DType.U8 if self.is_coded(index) else self.t
        return DType.F32

    def rows_of(self, index: int) -> int:
        """The constant `seq` of a kernel over rows: those behind a sequence's end are skipped."""
        shape = self.shape(index)
        tokens = len(shape) == 2 and shape[0] == self.rows and index not in self.pooled
        return self.seq if tokens and not self.whole else 0


def find(mir: Mir, t: DType, tf32: bool, formats: Mapping[str, str]) -> ProgramAnalysis:
    """The analysis of a program.

    Raises:
        CompileError: it has no token ids or no lengths of its rows, or operations that need a
            rectangle where its rows are ragged.
    """
    ids, lengths = _input(mir, "input_ids", 1, 2), _input(mir, "lengths", 1)
    tokens = mir.nodes[ids].shape
    params = [i for i, n in enumerate(mir.nodes) if n.op is Op.PARAM]
    users = tuple(tuple(sorted(set(u))) for u in mir.users())
    found = {i: _unit_length(mir, users, i) for i in range(len(mir.nodes))}
    units = {last: parts for last, parts in found.items() if parts}
    gathers = _gathers(mir, users, formats)
    inner = {i for parts in (*units.values(), *gathers.values()) for i in parts[1:]}
    whole = any(n.op not in _ROW_BY_ROW for i, n in enumerate(mir.nodes) if i not in inner)
    if len(tokens) == 1 and whole:
        raise CompileError(
            "operations of a ragged variant mix rows without regard to lengths.",
            "Take native kernels, or a variant without rows.",
        )
    return ProgramAnalysis(
        mir,
        t,
        tf32,
        mir.nodes[lengths].shape[0],
        elements(tokens),
        tokens[-1],
        len(tokens) == 1,
        lengths,
        _pooled(mir),
        {index: at for at, index in enumerate(params)},
        users,
        {last: parts[0] for last, parts in units.items()},
        gathers,
        frozenset(inner),
        whole,
        float32_values(mir) if whole else frozenset(),
        formats,
    )


def _input(mir: Mir, name: str, *ranks: int) -> int:
    """The input of a name, whose axes are one of `ranks`."""
    for index, node in enumerate(mir.nodes):
        named = node.op is Op.INPUT and node.attr("name") == name
        if named and len(node.shape) in ranks:
            return index
    axes = " or ".join(map(str, ranks))
    raise CompileError(
        f"the graph has no input {name!r} of {axes} axes, which CUDA targets need.",
        "Name it so in the family's graph builder, or use CPU targets.",
    )


def _pooled(mir: Mir) -> frozenset[int]:
    """Pooling, and all that is made of it."""
    found: set[int] = set()
    for index, node in enumerate(mir.nodes):
        if node.op is Op.POOL or found.intersection(node.inputs):
            found.add(index)
    return frozenset(found)


def _gathers(
    mir: Mir, users: tuple[tuple[int, ...], ...], formats: Mapping[str, str]
) -> dict[int, tuple[int, ...]]:
    """Gathers that one launch of `embed` sums: at most two by ids, one by position, one coded."""
    found: dict[int, tuple[int, ...]] = {}
    claimed: set[int] = set()

    def fits(chain: list[int]) -> bool:
        nodes = [mir.nodes[i] for i in chain]
        ids = sum(n.number("ids") for n in nodes)
        names = [str(mir.nodes[n.inputs[0]].attr("name")) for n in nodes]
        coded = sum(formats.get(name) == QUANT_ROWS for name in names)
        return ids <= 2 and len(nodes) - ids <= 1 and coded <= 1

    for last in range(len(mir.nodes) - 1, -1, -1):
        if mir.nodes[last].op is not Op.GATHER or last in claimed:
            continue
        chain = [last]
        while mir.nodes[chain[-1]].number("base"):
            base = mir.nodes[chain[-1]].inputs[-1]
            alone = users[base] == (chain[-1],) and base not in mir.outputs
            if mir.nodes[base].op is not Op.GATHER or not alone or not fits([*chain, base]):
                break
            chain.append(base)
        claimed.update(chain)
        found[last] = tuple(chain)
    return found


def _unit_length(mir: Mir, users: tuple[tuple[int, ...], ...], last: int) -> tuple[int, ...]:
    """The nodes of x / max(|x|, 1e-12) that ends at a node: x, then those between; or none."""

    def made_by(index: int, expr: Expr) -> bool:
        node = mir.nodes[index]
        return node.op is Op.ELEMENTWISE and node.expr == expr

    if not made_by(last, Fn("div", (In(0), In(1)))):
        return ()
    x, length = mir.nodes[last].inputs
    if not made_by(length, Fn("max", (Fn("sqrt", (In(0),)), Lit(1e-12)))):
        return ()
    (total,) = mir.nodes[length].inputs
    reduce = mir.nodes[total]
    axis = len(mir.nodes[x].shape) - 1
    if reduce.op is not Op.REDUCE or reduce.attr("kind") != "sum" or reduce.attr("axis") != axis:
        return ()
    (square,) = reduce.inputs
    if not made_by(square, Fn("mul", (In(0), In(1)))) or mir.nodes[square].inputs != (x, x):
        return ()
    alone = users[square] == (total,) and users[total] == (length,) and users[length] == (last,)
    return (x, square, total, length) if alone else ()
