"""HIR to MIR: each HIR operation becomes logical kernels and primitives over bound shapes."""

from __future__ import annotations

from rlx_ray.compiler.ir.expr import Acc, Expr, Fn, In, Lit
from rlx_ray.compiler.ir.hir import Hir, HirNode, HirOp
from rlx_ray.compiler.ir.mir import Attr, Mir, Node, Op, Shape
from rlx_ray.dtype import DType
from rlx_ray.errors import VerifyError


class MirBuilder:
    """Appends nodes and remembers which HIR node they stem from."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.origin = ""
        self.dispatch = ""

    def add(
        self,
        op: Op,
        inputs: tuple[int, ...],
        shape: Shape,
        dtype: DType = DType.F32,
        **attrs: Attr,
    ) -> int:
        """Append a node and return its index."""
        kept = tuple(sorted((k, v) for k, v in attrs.items()))
        self.nodes.append(Node(op, inputs, shape, dtype, kept, self.origin, self.dispatch))
        return len(self.nodes) - 1

    def shape(self, index: int) -> Shape:
        """The shape of a node."""
        return self.nodes[index].shape

    def elementwise(self, expr: Expr, inputs: tuple[int, ...], shape: Shape) -> int:
        """Append an elementwise region."""
        return self.add(Op.ELEMENTWISE, inputs, shape, expr=expr)

    def binary(self, name: str, a: int, b: int) -> int:
        """Append a function of two tensors of which the first has the result's shape."""
        return self.elementwise(Fn(name, (In(0), In(1))), (a, b), self.shape(a))

    def unary(self, name: str, a: int) -> int:
        """Append a function of one tensor."""
        return self.elementwise(Fn(name, (In(0),)), (a,), self.shape(a))


def lower(hir: Hir, *, direct: bool) -> Mir:
    """A bound HIR as MIR.

    Args:
        hir: the specialised model.
        direct: True (fusion policy `direct`) gives a linear its bias as an epilogue at once;
            False (`fusable`) leaves it as an operation of its own for the fuse pass.
    """
    b = MirBuilder()
    known: dict[str, int] = {}
    for tensor in hir.inputs:
        shape = tuple(d.size for d in tensor.shape)
        b.origin = tensor.name
        known[tensor.name] = b.add(Op.INPUT, (), shape, tensor.dtype, name=tensor.name)
    for tensor in hir.params:
        shape = tuple(d.size for d in tensor.shape)
        b.origin = tensor.name
        known[tensor.name] = b.add(
            Op.PARAM, (), shape, tensor.dtype, name=tensor.name, layout=tensor.layout
        )
    for node in hir.nodes:
        b.origin = node.name
        inputs = tuple(known[i] if i is not None else None for i in node.inputs)
        known[node.name] = _lower_node(b, node, inputs, direct)
    return Mir(tuple(b.nodes), tuple(known[name] for name in hir.outputs))


_BINARY = {HirOp.ADD: "add", HirOp.MUL: "mul"}
_NORMS = {HirOp.LAYER_NORM: Op.LAYER_NORM, HirOp.RMS_NORM: Op.RMS_NORM}


def _lower_node(b: MirBuilder, node: HirNode, inputs: tuple[int | None, ...], direct: bool) -> int:
    shape = tuple(d.size for d in node.shape)
    present = tuple(i for i in inputs if i is not None)
    if node.op in _BINARY:
        return b.binary(_BINARY[node.op], *present)
    if node.op in _NORMS:
        return b.add(_NORMS[node.op], present, shape, eps=node.attr("eps"))
    match node.op:
        case HirOp.EMBED:
            _, ids, base = inputs
            return b.add(
                Op.GATHER,
                present,
                shape,
                ids=int(ids is not None),
                base=int(base is not None),
                period=node.attr("period"),
                first=node.attr("first"),
            )
        case HirOp.LINEAR:
            return _linear(b, present, shape, direct)
        case HirOp.ATTENTION:
            return b.add(Op.ATTENTION, present, shape, DType.F32, **dict(node.attrs))
        case HirOp.CACHED_ATTENTION:
            return _cached_attention(b, present, shape, dict(node.attrs))
        case HirOp.ACTIVATION:
            return b.add(Op.ACTIVATION, present, shape, function=node.attr("function"))
        case HirOp.POOL:
            return b.add(Op.POOL, present, shape, DType.F32, **dict(node.attrs))
        case HirOp.NORMALIZE:
            return _normalize(b, present[0])
        case _:
            raise VerifyError(f"HIR op {node.op} has no lowering.")


def _linear(b: MirBuilder, inputs: tuple[int, ...], shape: Shape, direct: bool) -> int:
    x, weight, *bias = inputs
    if not bias:
        return b.add(Op.MATMUL, (x, weight), shape)
    if direct:
        epilogue = Fn("add", (Acc(), In(0)))
        return b.add(Op.MATMUL, (x, weight, *bias), shape, expr=epilogue)
    return b.binary("add", b.add(Op.MATMUL, (x, weight), shape), *bias)


def _cached_attention(
    b: MirBuilder, inputs: tuple[int, ...], shape: Shape, attrs: dict[str, Attr]
) -> int:
    """Rows turned and put into the cache, then attention over it. `size`: a number's bytes."""
    attrs = {**attrs, "size": 4}
    _, lengths, past, pages, *_ = inputs
    queries = b.add(Op.ROPE_CACHE, inputs, shape, DType.F32, **attrs)
    return b.add(Op.CACHED_ATTENTION, (queries, lengths, past, pages), shape, DType.F32, **attrs)


def _normalize(b: MirBuilder, x: int) -> int:
    """X / max(|x|, 1e-12), the L2 normalisation of torch.nn.functional.normalize."""
    axis = len(b.shape(x)) - 1
    square = b.binary("mul", x, x)
    total = b.add(Op.REDUCE, (square,), (*b.shape(x)[:-1], 1), axis=axis, kind="sum")
    length = Fn("max", (Fn("sqrt", (In(0),)), Lit(1e-12)))
    norm = b.elementwise(length, (total,), b.shape(total))
    return b.binary("div", x, norm)
