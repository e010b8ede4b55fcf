"""Common lowerings: each logical kernel as the same maths in primitives.

These are the definitions that native kernels are held against; they favour plainness over speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from rlx_ray.compiler.ir.expr import Acc, Expr, Fn, In, Lit, rewrite
from rlx_ray.compiler.ir.mir import Node, Op
from rlx_ray.compiler.passes.common_attention import FAR, attention, cached_attention, rope_cache
from rlx_ray.compiler.passes.lower import MirBuilder
from rlx_ray.dtype import DType
from rlx_ray.shape import elements


def _matmul(b: MirBuilder, node: Node, inputs: tuple[int, ...]) -> int:
    x, weight, *operands = inputs
    dot = b.add(Op.DOT, (x, weight), node.shape)
    if node.expr is None:
        return dot

    def leaf(expr: Expr) -> Expr:
        match expr:
            case Acc():
                return In(0)
            case In(index):
                return In(index + 1)
            case _:
                return expr

    return b.elementwise(rewrite(node.expr, leaf), (dot, *operands), node.shape)


def _layer_norm(b: MirBuilder, node: Node, inputs: tuple[int, ...]) -> int:
    x, gain, bias = inputs
    n = node.shape[-1]
    axis = len(node.shape) - 1
    column = (*node.shape[:-1], 1)
    total = b.add(Op.REDUCE, (x,), column, axis=axis, kind="sum")
    mean = b.elementwise(Fn("mul", (In(0), Lit(1 / n))), (total,), column)
    centred = b.binary("sub", x, mean)
    squares = b.add(Op.REDUCE, (b.binary("mul", centred, centred),), column, axis=axis, kind="sum")
    eps = node.attr("eps")
    assert isinstance(eps, float)
    variance = Fn("add", (Fn("mul", (In(0), Lit(1 / n))), Lit(eps)))
    scale = b.elementwise(Fn("rsqrt", (variance,)), (squares,), column)
    scaled = Fn("mul", (Fn("mul", (In(0), In(1))), In(2)))
    return b.elementwise(Fn("add", (scaled, In(3))), (centred, scale, gain, bias), node.shape)


def _rms_norm(b: MirBuilder, node: Node, inputs: tuple[int, ...]) -> int:
    x, gain = inputs
    axis = len(node.shape) - 1
    column = (*node.shape[:-1], 1)
    squares = b.add(Op.REDUCE, (b.binary("mul", x, x),), column, axis=axis, kind="sum")
    eps = node.attr("eps")
    assert isinstance(eps, float)
    mean = Fn("add", (Fn("mul", (In(0), Lit(1 / node.shape[-1]))), Lit(eps)))
    scale = b.elementwise(Fn("rsqrt", (mean,)), (squares,), column)
    scaled = Fn("mul", (Fn("mul", (In(0), In(1))), In(2)))
    return b.elementwise(scaled, (x, scale, gain), node.shape)


def _softmax(b: MirBuilder, node: Node, inputs: tuple[int, ...]) -> int:
    axis = len(node.shape) - 1
    column = (*node.shape[:-1], 1)
    most = b.add(Op.REDUCE, inputs, column, axis=axis, kind="max")
    powers = b.unary("exp", b.binary("sub", inputs[0], most))
    total = b.add(Op.REDUCE, (powers,), column, axis=axis, kind="sum")
    return b.binary("div", powers, total)


def activation_expr(function: str) -> Expr:
    """An activation in primitive functions of operand 0.

    Raises:
        KeyError: no such activation.
    """
    x = In(0)
    half = Fn("mul", (x, Lit(0.5)))
    erf = Fn("erf", (Fn("mul", (x, Lit(1 / math.sqrt(2)))),))
    cube = Fn("mul", (Fn("mul", (Fn("mul", (x, x)), x)), Lit(0.044715)))
    inner = Fn("mul", (Fn("add", (x, cube)), Lit(math.sqrt(2 / math.pi))))
    table: dict[str, Expr] = {
        "gelu": Fn("mul", (half, Fn("add", (erf, Lit(1.0))))),
        "gelu_tanh": Fn("mul", (half, Fn("add", (Fn("tanh", (inner,)), Lit(1.0))))),
        "silu": Fn("div", (x, Fn("add", (Fn("exp", (Fn("mul", (x, Lit(-1.0))),)), Lit(1.0))))),
        "relu": Fn("max", (x, Lit(0.0))),
    }
    return table[function]


def _activation(b: MirBuilder, node: Node, inputs: tuple[int, ...]) -> int:
    return b.elementwise(activation_expr(str(node.attr("function"))), inputs, node.shape)


def _gather(b: MirBuilder, node: Node, inputs: tuple[int, ...]) -> int:
    rest = list(inputs[1:])
    if node.number("ids"):
        ids = b.add(Op.RESHAPE, (rest.pop(0),), (node.shape[0],), DType.I32)
    else:
        period, first = node.number("period"), node.number("first")
        ids = b.add(Op.IOTA, (), (node.shape[0],), DType.I32, period=period, first=first)
    rows = b.add(Op.TAKE, (inputs[0], ids), node.shape)
    return b.binary("add", rows, rest[0]) if rest else rows


def _pool(b: MirBuilder, node: Node, inputs: tuple[int, ...]) -> int:
    x, lengths = inputs
    (batch, n), tokens = node.shape, node.number("tokens")
    if node.attr("kind") == "cls":
        first = b.add(
            Op.STRIDED,
            (x,),
            (batch, n),
            extents=(batch, 1, 1, n),
            steps=(tokens * n, 0, 0, 1),
            shift=0,
        )
        return first
    grid = (batch, tokens, n)
    x = b.add(Op.RESHAPE, (x,), grid)
    if node.attr("kind") == "last":
        only = b.binary("mul", x, _last(b, lengths, batch, tokens))
        out = b.add(Op.REDUCE, (only,), (batch, 1, n), axis=1, kind="sum")
        return b.add(Op.RESHAPE, (out,), (batch, n))
    mask = b.add(Op.LENGTH_MASK, (lengths,), (batch, tokens), tokens=tokens)
    mask = b.add(Op.RESHAPE, (mask,), (batch, tokens, 1))
    if node.attr("kind") == "mean":
        total = b.add(Op.REDUCE, (b.binary("mul", x, mask),), (batch, 1, n), axis=1, kind="sum")
        count = b.add(Op.REDUCE, (mask,), (batch, 1, 1), axis=1, kind="sum")
        mean = Fn("div", (In(0), Fn("max", (In(1), Lit(1.0)))))
        out = b.elementwise(mean, (total, count), (batch, 1, n))
    else:
        far = Fn("mul", (Fn("sub", (In(1), Lit(1.0))), Lit(FAR)))
        seen = b.elementwise(Fn("add", (In(0), far)), (x, mask), grid)
        most = b.add(Op.REDUCE, (seen,), (batch, 1, n), axis=1, kind="max")
        some = b.add(Op.REDUCE, (mask,), (batch, 1, 1), axis=1, kind="max")
        out = b.binary("mul", most, some)
    assert elements(b.shape(out)) == batch * n
    return b.add(Op.RESHAPE, (out,), (batch, n))


def _last(b: MirBuilder, lengths: int, batch: int, tokens: int) -> int:
    """[batch, tokens, 1], 1 at each sequence's last token: there the mask ends."""
    mask = b.add(Op.LENGTH_MASK, (lengths,), (batch, tokens + 1), tokens=tokens + 1)
    this, after = (
        b.add(
            Op.STRIDED,
            (mask,),
            (batch, tokens, 1),
            extents=(batch, 1, 1, tokens),
            steps=(tokens + 1, 0, 0, 1),
            shift=shift,
        )
        for shift in (0, 1)
    )
    return b.binary("sub", this, after)


COMMON: dict[Op, Callable[[MirBuilder, Node, tuple[int, ...]], int]] = {
    Op.MATMUL: _matmul,
    Op.LAYER_NORM: _layer_norm,
    Op.RMS_NORM: _rms_norm,
    Op.SOFTMAX: _softmax,
    Op.ATTENTION: attention,
    Op.ACTIVATION: _activation,
    Op.GATHER: _gather,
    Op.POOL: _pool,
    Op.ROPE_CACHE: rope_cache,
    Op.CACHED_ATTENTION: cached_attention,
}
"""For each logical kernel, what to put in its place."""
