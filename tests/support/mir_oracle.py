"""What a MIR program means, in float64 NumPy: the oracle of the passes.

A decoder's cache is tensors["cache"], [pages, layers, 2, heads, PAGE, dim] (keys, then values); it
is written in place.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rlx_ray.compiler.ir.expr import Acc, Expr, Fn, In, Lit
from rlx_ray.compiler.ir.mir import SCALAR_FUNCTIONS, Mir, Node, Op
from rlx_ray.shape import PAGE


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
        case Op.RMS_NORM:
            return x[0] / np.sqrt((x[0] ** 2).mean(-1, keepdims=True) + node.attr("eps")) * x[1]
        case Op.ROPE_CACHE:
            return _rope_cache(node, x, tensors["cache"])
        case Op.CACHED_ATTENTION:
            return _cached_attention(node, x, tensors["cache"])
        case Op.CACHE_WRITE:
            _write(node, x[1], x[2], x[3:], tensors["cache"])
            return x[0]
        case Op.CACHE_READ:
            return _read(node, x, tensors["cache"])
        case Op.CAUSAL_MASK:
            return _sees(node, x[0], node.number("keys")).astype(np.float64)
        case Op.CONCAT:
            return np.concatenate(x, axis=-1)
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
            counted = np.arange(node.shape[0]) % node.number("period") + node.number("first")
            return counted + (np.repeat(x[0], node.number("period")) if x else 0)
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


def _rope_cache(node: Node, x: list[np.ndarray], cache: np.ndarray) -> np.ndarray:
    qkv, _, past, _, cos_sin, *gains = x
    heads, kv_heads, dim = (node.number(n) for n in ("heads", "kv_heads", "dim"))
    at = (past[:, None] + np.arange(node.number("tokens"))).reshape(-1)
    cos, sin = np.split(cos_sin[np.where(at < len(cos_sin), at, 0)][:, None], 2, axis=-1)
    parts = np.split(qkv.reshape(len(qkv), -1, dim), (heads, heads + kv_heads), axis=1)
    for i, gain in enumerate(gains):
        mean = (parts[i] ** 2).mean(-1, keepdims=True)
        parts[i] = parts[i] / np.sqrt(mean + node.attr("eps")) * gain
    for i in range(2):
        a, b = np.split(parts[i], 2, axis=-1)
        parts[i] = np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)
    _write(node, parts[1], parts[2], x[1:4], cache)
    return parts[0].reshape(node.shape)


def _write(
    node: Node, keys: np.ndarray, values: np.ndarray, tables: list[np.ndarray], cache: np.ndarray
) -> None:
    lengths, past, pages = tables
    grid = (len(lengths), node.number("tokens"), node.number("kv_heads"), node.number("dim"))
    for part, rows in enumerate((keys.reshape(grid), values.reshape(grid))):
        for b, length in enumerate(lengths):
            for i in range(length):
                page, slot = divmod(past[b] + i, PAGE)
                cache[pages[b, page], node.number("layer"), part, :, slot] = rows[b, i]


def _read(node: Node, x: list[np.ndarray], cache: np.ndarray) -> np.ndarray:
    _, lengths, past, pages = x
    out = np.zeros(node.shape)
    for b, held in enumerate(past + lengths):
        for t in range(held):
            page = cache[pages[b, t // PAGE], node.number("layer")]
            out[b, :, t] = page[int(node.attr("part") == "values"), :, t % PAGE]
    return out


def _sees(node: Node, past: np.ndarray, keys: int) -> np.ndarray:
    at = past[:, None, None] + np.arange(node.number("tokens"))[:, None]
    distance = at - np.arange(keys)
    return (distance >= 0) & (distance < (node.number("window") or keys + at.max() + 1))


def _cached_attention(node: Node, x: list[np.ndarray], cache: np.ndarray) -> np.ndarray:
    queries, lengths, past, pages = x
    heads, kv_heads, dim = (node.number(n) for n in ("heads", "kv_heads", "dim"))
    q = queries.reshape(len(past), -1, heads, dim)
    out = np.zeros_like(q)
    sees = _sees(node, past, pages.shape[1] * PAGE)
    for b, length in enumerate(lengths):
        for i in range(length):
            seen = np.flatnonzero(sees[b, i])
            held = cache[pages[b, seen // PAGE], node.number("layer")][
                np.arange(len(seen)), :, :, seen % PAGE
            ]
            for h in range(heads):
                keys, values = held[:, :, h // (heads // kv_heads)].swapaxes(0, 1)
                e = np.exp(keys @ q[b, i, h] / np.sqrt(dim))
                out[b, i, h] = e @ values / e.sum()
    return out.reshape(queries.shape)


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
            part, kind = rows[b, :length], str(node.attr("kind"))
            ends = {"cls": 0, "last": -1}
            out[b] = part[ends[kind]] if kind in ends else getattr(part, kind)(0)
    return out


def _strided(node: Node, x: np.ndarray) -> np.ndarray:
    extents, steps = node.attr("extents"), node.attr("steps")
    assert isinstance(extents, tuple)
    assert isinstance(steps, tuple)
    grid = np.ogrid[tuple(slice(n) for n in extents)]
    index = node.number("shift") + sum(g * s for g, s in zip(grid, steps, strict=True))
    return x.reshape(-1)[index].reshape(node.shape)
