"""MIR: a DAG of operations over bound shapes, and the one table that defines each operation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from rlx_ray.compiler.ir.expr import Expr, size
from rlx_ray.component.kernel_dispatch import OpKind
from rlx_ray.dtype import DType
from rlx_ray.shape import PAGE, elements

Shape = tuple[int, ...]
Attr = int | float | str | None | tuple[int, ...] | Expr


class Op(Enum):
    """Operations of the MIR. Logical kernels come first, then primitives."""

    MATMUL = "matmul"
    LAYER_NORM = "layer_norm"
    RMS_NORM = "rms_norm"
    ATTENTION = "attention"
    SOFTMAX = "softmax"
    ACTIVATION = "activation"
    GATHER = "gather"
    POOL = "pool"
    ROPE_CACHE = "rope_cache"  # writes the cache that CACHED_ATTENTION reads
    CACHED_ATTENTION = "cached_attention"

    INPUT = "input"
    PARAM = "param"
    ELEMENTWISE = "elementwise"
    DOT = "dot"
    TAKE = "take"
    IOTA = "iota"
    LENGTH_MASK = "length_mask"
    STRIDED = "strided"
    REDUCE = "reduce"
    RESHAPE = "reshape"
    QUANTIZE = "quantize"
    CAUSAL_MASK = "causal_mask"
    CONCAT = "concat"
    CACHE_WRITE = "cache_write"  # gives its queries: what reads them comes after it
    CACHE_READ = "cache_read"  # comes after the cache_write whose queries it names


@dataclass(frozen=True, slots=True)
class Node:
    """One value: its operation, the nodes it reads, its shape and attributes.

    `dispatch` says why a logical kernel is native or how a primitive came to be; `origin` is the
    HIR node it stems from.
    """

    op: Op
    inputs: tuple[int, ...]
    shape: Shape
    dtype: DType
    attrs: tuple[tuple[str, Attr], ...] = ()
    origin: str = ""
    dispatch: str = ""

    def attr(self, name: str) -> Attr:
        """The value of an attribute; None if the node has none of that name."""
        return dict(self.attrs).get(name)

    def number(self, name: str) -> int:
        """The value of a whole-number attribute."""
        value = self.attr(name)
        assert isinstance(value, int), (self, name)
        return value

    @property
    def expr(self) -> Expr | None:
        """The expression of an elementwise region, or the epilogue of a kernel."""
        value = self.attr("expr")
        return value if not isinstance(value, int | float | str | tuple) else None


@dataclass(frozen=True, slots=True)
class Note:
    """Why a pass did something, or did not: for `explain`."""

    stage: str
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Mir:
    """A program: nodes in topological order (an input's index is below its user's)."""

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    notes: tuple[Note, ...] = field(default=())

    def users(self) -> tuple[tuple[int, ...], ...]:
        """For each node, the nodes that read it (a node that reads it twice stands twice)."""
        users: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            for source in node.inputs:
                users[source].append(index)
        return tuple(tuple(u) for u in users)


@dataclass(frozen=True, slots=True)
class ScalarFunction:
    """A function of expressions: its arity, its oracle, and the C that computes it on a vector."""

    arity: int
    oracle: Callable[..., float]
    c: str


SCALAR_FUNCTIONS: dict[str, ScalarFunction] = {
    "add": ScalarFunction(2, lambda a, b: a + b, "({} + {})"),
    "sub": ScalarFunction(2, lambda a, b: a - b, "({} - {})"),
    "mul": ScalarFunction(2, lambda a, b: a * b, "({} * {})"),
    "div": ScalarFunction(2, lambda a, b: a / b, "({} / {})"),
    "max": ScalarFunction(2, max, "vmax({}, {})"),
    "exp": ScalarFunction(1, math.exp, "vexp({})"),
    "erf": ScalarFunction(1, math.erf, "verf({})"),
    "tanh": ScalarFunction(1, math.tanh, "vtanh({})"),
    "sqrt": ScalarFunction(1, math.sqrt, "vsqrt({})"),
    "rsqrt": ScalarFunction(1, lambda a: 1 / math.sqrt(a), "vrsqrt({})"),
    "gelu": ScalarFunction(1, lambda a: 0.5 * a * (1 + math.erf(a / math.sqrt(2))), "vgelu({})"),
    "gelu_tanh": ScalarFunction(
        1,
        lambda a: 0.5 * a * (1 + math.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3))),
        "vgelu_tanh({})",
    ),
    "silu": ScalarFunction(1, lambda a: a / (1 + math.exp(-a)), "vsilu({})"),
    "relu": ScalarFunction(1, lambda a: max(a, 0.0), "vmax({}, splat(0.0f))"),
}
"""Functions of one output element. The last four are native activations; their common form is
made of the ones above."""


@dataclass(frozen=True, slots=True)
class OpDef:
    """What an operation is.

    Attributes:
        arity: fewest and most inputs.
        infer: the output's shape from the inputs' shapes and the attributes; None where the
            operation is told (tensors, iota, strided, reshape: checked by the verifier).
        kind: the RLX kind of a logical kernel; None for a primitive.
        flops: floating-point operations, for the cost model.
    """

    arity: tuple[int, int]
    infer: Callable[[Node, tuple[Shape, ...]], Shape | None]
    kind: OpKind | None = None
    flops: Callable[[Node, tuple[Shape, ...]], int] = lambda node, shapes: 0


def broadcast(shapes: tuple[Shape, ...]) -> Shape:
    """The shape of an elementwise result, aligned at the last axis.

    Raises:
        ValueError: two extents differ and neither is 1.
    """
    rank = max((len(s) for s in shapes), default=0)
    out = []
    for axis in range(-rank, 0):
        extents = {s[axis] for s in shapes if len(s) >= -axis} - {1}
        if len(extents) > 1:
            raise ValueError(f"shapes {shapes} do not broadcast")
        out.append(extents.pop() if extents else 1)
    return tuple(out)


def _told(node: Node, shapes: tuple[Shape, ...]) -> None:
    return None


def _matmul(node: Node, shapes: tuple[Shape, ...]) -> Shape:
    (m, k), (k2, n) = shapes[0], shapes[1]
    if node.attr("precision") is None and k != k2:
        raise ValueError(f"inner extents {k} and {k2} differ")
    return (m, n)


def _dot(node: Node, shapes: tuple[Shape, ...]) -> Shape:
    a, b = shapes
    if a[-1] != b[-2] or (len(b) > 2 and a[:-2] != b[:-2]):
        raise ValueError(f"{a} and {b} do not multiply")
    return (*a[:-1], b[-1])


def _attention(node: Node, shapes: tuple[Shape, ...]) -> Shape:
    width = node.number("heads") * node.number("dim")
    if shapes[0][1] != 3 * width or shapes[0][0] > shapes[1][0] * node.number("keys"):
        raise ValueError(f"qkv {shapes[0]} is not [at most sequences * keys, 3 * heads * dim]")
    return (shapes[0][0], width)


def _rope_cache(node: Node, shapes: tuple[Shape, ...]) -> Shape:
    heads, kv_heads, dim = (node.number(name) for name in ("heads", "kv_heads", "dim"))
    if shapes[0][1] != (heads + 2 * kv_heads) * dim:
        raise ValueError(f"qkv {shapes[0]} is not [rows, (heads + 2 kv_heads) * dim]")
    return (shapes[0][0], heads * dim)


def _cache_write(node: Node, shapes: tuple[Shape, ...]) -> Shape:
    queries, keys, values, (sequences, *_), *_ = shapes
    rows = sequences * node.number("tokens")
    if queries != (rows, node.number("heads") * node.number("dim")):
        raise ValueError(f"queries {queries} are not [sequences * tokens, heads * dim]")
    if not keys == values == (rows, node.number("kv_heads") * node.number("dim")):
        raise ValueError(f"keys {keys}, values {values} are not [{rows}, kv_heads * dim]")
    return queries


def _cache_read(node: Node, shapes: tuple[Shape, ...]) -> Shape:
    sequences, pages = shapes[3]
    return (sequences, node.number("kv_heads"), pages * PAGE, node.number("dim"))


def _causal_mask(node: Node, shapes: tuple[Shape, ...]) -> Shape:
    return (*shapes[0], node.number("tokens"), node.number("keys"))


def _iota(node: Node, shapes: tuple[Shape, ...]) -> Shape | None:
    return (shapes[0][0] * node.number("period"),) if shapes else None


def _concat(node: Node, shapes: tuple[Shape, ...]) -> Shape:
    a, b = shapes
    if a[:-1] != b[:-1]:
        raise ValueError(f"{a} and {b} differ before their last axis")
    return (*a[:-1], a[-1] + b[-1])


def _pool(node: Node, shapes: tuple[Shape, ...]) -> Shape:
    if shapes[0][0] > shapes[1][0] * node.number("tokens"):
        raise ValueError(f"rows {shapes[0]} are more than sequences * tokens")
    return (shapes[1][0], shapes[0][1])


def _reduce(node: Node, shapes: tuple[Shape, ...]) -> Shape:
    axis = node.number("axis")
    return (*shapes[0][:axis], 1, *shapes[0][axis + 1 :])


def _mask(node: Node, shapes: tuple[Shape, ...]) -> Shape:
    return (*shapes[0], node.number("tokens"))


def _same(node: Node, shapes: tuple[Shape, ...]) -> Shape:
    return shapes[0]


def _elementwise_flops(node: Node, shapes: tuple[Shape, ...]) -> int:
    return elements(node.shape) * (size(node.expr) if node.expr else 0)


def _matmul_flops(node: Node, shapes: tuple[Shape, ...]) -> int:
    return 2 * elements(node.shape) * shapes[1][-2] + _elementwise_flops(node, shapes)


def _attention_flops(node: Node, shapes: tuple[Shape, ...]) -> int:
    return 4 * elements(node.shape) * node.number("keys")


def _cached_flops(node: Node, shapes: tuple[Shape, ...]) -> int:
    """Against half of what the page table can hold."""
    return 2 * elements(node.shape) * shapes[3][1] * PAGE


def _several(factor: int) -> Callable[[Node, tuple[Shape, ...]], int]:
    return lambda node, shapes: factor * elements(shapes[0] if shapes else node.shape)


_EW = (0, 16)
OPS: dict[Op, OpDef] = {
    Op.MATMUL: OpDef((2, 16), _matmul, OpKind.parse("MatMul"), _matmul_flops),
    Op.LAYER_NORM: OpDef((3, 3), _same, OpKind.parse("LayerNorm"), _several(8)),
    Op.RMS_NORM: OpDef((2, 2), _same, OpKind.parse("RmsNorm"), _several(5)),
    Op.ATTENTION: OpDef((2, 2), _attention, OpKind.parse("Attention"), _attention_flops),
    Op.SOFTMAX: OpDef((1, 1), _same, OpKind.parse("Softmax"), _several(16)),
    Op.ACTIVATION: OpDef((1, 1), _same, OpKind.parse("Activation"), _several(16)),
    Op.GATHER: OpDef((1, 3), _told, OpKind.parse("Gather"), _several(0)),
    Op.POOL: OpDef((2, 2), _pool, OpKind.parse("Pool"), _several(1)),
    Op.ROPE_CACHE: OpDef((5, 7), _rope_cache, OpKind.parse("Rope"), _several(6)),
    Op.CACHED_ATTENTION: OpDef((4, 4), _same, OpKind.parse("Attention"), _cached_flops),
    Op.INPUT: OpDef((0, 0), _told),
    Op.PARAM: OpDef((0, 0), _told),
    Op.ELEMENTWISE: OpDef(_EW, lambda node, shapes: broadcast(shapes), None, _elementwise_flops),
    Op.DOT: OpDef((2, 2), _dot, None, _matmul_flops),
    Op.TAKE: OpDef((2, 2), _told),
    Op.IOTA: OpDef((0, 1), _iota),
    Op.LENGTH_MASK: OpDef((1, 1), _mask),
    Op.STRIDED: OpDef((1, 1), _told),
    Op.REDUCE: OpDef((1, 1), _reduce, None, _several(1)),
    Op.RESHAPE: OpDef((1, 1), _told),
    Op.QUANTIZE: OpDef((1, 1), _told, None, _several(6)),
    Op.CAUSAL_MASK: OpDef((1, 1), _causal_mask),
    Op.CONCAT: OpDef((2, 2), _concat),
    Op.CACHE_WRITE: OpDef((6, 6), _cache_write),
    Op.CACHE_READ: OpDef((4, 4), _cache_read),
}
"""Every operation, its rules side by side. A new one is a row here and a rule of each backend
(`cpu/rules.py`, `cuda/lower.py`); a logical kernel has a common form in `passes/common.py` too."""

LOGICAL: dict[Op, OpKind] = {op: d.kind for op, d in OPS.items() if d.kind is not None}
"""The logical kernels and their RLX kinds: the registry of the dispatch decision."""


def node_flops(mir: Mir, index: int) -> int:
    """Floating-point operations of one node."""
    node = mir.nodes[index]
    return OPS[node.op].flops(node, tuple(mir.nodes[i].shape for i in node.inputs))
