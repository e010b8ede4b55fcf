"""What a MIR program means, in float64 NumPy: the oracle of the passes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rlx_ray.ir.expr import Acc, Expr, Fn, In, Lit
from rlx_ray.ir.mir import SCALAR_FUNCTIONS, Mir, Node, Op


def evaluate(mir: Mir, tensors: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of a program; `tensors` holds its inputs and parameters by name."""
    values: list[np.ndarray] = []
    for node in mir.nodes:
        inputs = [values[i] for i in node.inputs]
        value = _node(node, inputs, tensors)
        assert value.shape == node.shape, (node, value.shape)
        values.append(value)
    return [values[i] for i in mir.outputs]


def expression(expr: Expr, operands: list[np.ndarray], acc: np.ndarray | None) -> np.ndarray:
    """An expression over broadcast operands."""
    match expr:
        case In(index):
            return operands[index]
        case Acc():
            assert acc is not None
            return acc
        case Lit(value):
            return np.float64(value)
        case Fn(name, args):
            oracle = np.vectorize(SCALAR_FUNCTIONS[name].oracle, otypes=[np.float64])
            return oracle(*(expression(a, operands, acc) for a in args))


def _node(node: Node, x: list[np.ndarray], tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    match node.op:
        case Op.INPUT | Op.PARAM:
            return tensors[str(node.attr("name"))].astype(
                np.float64 if node.dtype.text == "f32" else np.int64
            )
        case Op.ELEMENTWISE:
            assert node.expr is not None
            return np.broadcast_to(expression(node.expr, x, None), node.shape)
        case Op.MATMUL:
            acc = x[0] @ x[1]
            return acc if node.expr is None else expression(node.expr, x[2:], acc)
        case Op.DOT:
            return x[0] @ x[1]
        case Op.LAYER_NORM:
            d = x[0] - x[0].mean(-1, keepdims=True)
            return d / np.sqrt((d * d).mean(-1, keepdims=True) + node.attr("eps")) * x[1] + x[2]
        case Op.SOFTMAX:
            e = np.exp(x[0] - x[0].max(-1, keepdims=True))
            return e / e.sum(-1, keepdims=True)
        case Op.ATTENTION:
            return _attention(node, *x)
        case Op.GATHER:
            return _gather(node, x)
        case Op.POOL:
            return _pool(node, *x)
        case Op.TAKE:
            return x[0][x[1]]
        case Op.IOTA:
            return np.arange(node.shape[0]) % node.number("period") + node.number("first")
        case Op.LENGTH_MASK:
            return (np.arange(node.number("tokens")) < x[0][:, None]).astype(np.float64)
        case Op.RESHAPE:
            return x[0].reshape(node.shape)
        case Op.STRIDED:
            return _strided(node, x[0])
        case Op.REDUCE:
            f = np.max if node.attr("kind") == "max" else np.sum
            return f(x[0], axis=node.number("axis"), keepdims=True)
        case Op.ACTIVATION:
            expr = Fn(str(node.attr("function")), (In(0),))
            return expression(expr, x, None)
    raise AssertionError(node.op)


def _attention(node: Node, qkv: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    heads, dim, keys = node.number("heads"), node.number("dim"), node.number("keys")
    q, k, v = (
        part.reshape(len(lengths), keys, heads, dim).transpose(0, 2, 1, 3)
        for part in np.split(qkv, 3, axis=1)
    )
    out = np.zeros((len(lengths), keys, heads, dim))
    for b, length in enumerate(lengths):
        if not length:
            continue
        scores = q[b] @ k[b, :, :length].transpose(0, 2, 1) / np.sqrt(dim)
        e = np.exp(scores - scores.max(-1, keepdims=True))
        weights = e / e.sum(-1, keepdims=True)
        out[b] = (weights @ v[b, :, :length]).transpose(1, 0, 2)
    return out.reshape(node.shape)


def _gather(node: Node, x: list[np.ndarray]) -> np.ndarray:
    rest = x[1:]
    if node.number("ids"):
        ids = rest.pop(0).reshape(-1)
    else:
        ids = np.arange(node.shape[0]) % node.number("period") + node.number("first")
    return x[0][ids] + (rest[0] if rest else 0)


def _pool(node: Node, x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    rows = x.reshape(len(lengths), node.number("tokens"), -1)
    out = np.zeros(node.shape)
    for b, length in enumerate(lengths):
        if length:
            part = rows[b, :length]
            kind = node.attr("kind")
            out[b] = part[0] if kind == "cls" else getattr(part, str(kind))(0)
    return out


def _strided(node: Node, x: np.ndarray) -> np.ndarray:
    extents, steps = node.attr("extents"), node.attr("steps")
    assert isinstance(extents, tuple)
    assert isinstance(steps, tuple)
    grid = np.ogrid[tuple(slice(n) for n in extents)]
    index = node.number("shift") + sum(g * s for g, s in zip(grid, steps, strict=True))
    return x.reshape(-1)[index].reshape(node.shape)
