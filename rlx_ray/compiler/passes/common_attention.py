"""Common lowerings of attention, and of rotary positions and attention over the paged cache.

Rows are rectangles of batch * tokens. Programs with these are not packed.
"""

from __future__ import annotations

import math

from rlx_ray.compiler.ir.expr import Expr, Fn, In, Lit
from rlx_ray.compiler.ir.mir import Node, Op, Shape
from rlx_ray.compiler.passes.lower import MirBuilder
from rlx_ray.dtype import DType
from rlx_ray.shape import PAGE

FAR = 1e30
"""Subtracted from masked scores: exp of it is 0, and it stays finite."""


def attention(b: MirBuilder, node: Node, inputs: tuple[int, ...]) -> int:
    """Attention within sequences, keys masked by length."""
    qkv, lengths = inputs
    heads, dim, keys = node.number("heads"), node.number("dim"), node.number("keys")
    batch, width = b.shape(lengths)[0], heads * dim
    row = 3 * width

    def head_view(shift: int, transposed: bool) -> int:
        extents = (batch, heads, dim, keys) if transposed else (batch, heads, keys, dim)
        steps = (keys * row, dim, 1, row) if transposed else (keys * row, dim, row, 1)
        shape = (batch * heads, *extents[2:])
        return b.add(Op.STRIDED, (qkv,), shape, extents=extents, steps=steps, shift=shift)

    mask = b.add(Op.LENGTH_MASK, (lengths,), (batch, keys), tokens=keys)
    mask = b.add(Op.RESHAPE, (mask,), (batch, 1, 1, keys))
    views = (head_view(0, False), head_view(width, True), head_view(2 * width, False))
    return _attend(b, views, mask, (batch, heads, keys, keys))


def rope_cache(b: MirBuilder, node: Node, inputs: tuple[int, ...]) -> int:
    """Queries and keys turned by their positions, keys and values put into the cache."""
    qkv, lengths, past, pages, cos_sin, *gains = inputs
    heads, kv_heads, dim = (node.number(name) for name in ("heads", "kv_heads", "dim"))
    tokens = node.number("tokens")
    rows, width = b.shape(past)[0] * tokens, b.shape(qkv)[1]
    at = b.add(Op.IOTA, (past,), (rows,), DType.I32, period=tokens, first=0)
    angles = b.add(Op.TAKE, (cos_sin, at), (rows, dim))
    turned = []
    for i, (first, count) in enumerate(((0, heads), (heads, kv_heads))):
        x = _columns(b, qkv, first * dim, (rows, count, dim))
        if gains:
            x = b.add(Op.RMS_NORM, (x, gains[i]), b.shape(x), eps=node.attr("eps"))
        turned.append(b.add(Op.RESHAPE, (_turned(b, x, angles),), (rows, count * dim)))
    values = _columns(b, qkv, width - kv_heads * dim, (rows, kv_heads * dim))
    return b.add(
        Op.CACHE_WRITE,
        (*turned, values, lengths, past, pages),
        node.shape,
        DType.F32,
        heads=heads,
        tokens=tokens,
        **_cached(node),
    )


def cached_attention(b: MirBuilder, node: Node, inputs: tuple[int, ...]) -> int:
    """Causal attention over what the cache holds; heads that share keys lie side by side."""
    queries, _, past, pages = inputs
    heads, kv_heads, dim = (node.number(name) for name in ("heads", "kv_heads", "dim"))
    tokens, (batch, table) = node.number("tokens"), b.shape(pages)
    keys, groups = table * PAGE, batch * kv_heads

    def read(part: str) -> int:
        shape = (batch, kv_heads, keys, dim)
        return b.add(Op.CACHE_READ, inputs, shape, DType.F32, part=part, **_cached(node))

    q = b.add(
        Op.STRIDED,
        (queries,),
        (groups, heads // kv_heads * tokens, dim),
        extents=(batch, heads, tokens, dim),
        steps=(tokens * heads * dim, dim, heads * dim, 1),
        shift=0,
    )
    k = b.add(
        Op.STRIDED,
        (read("keys"),),
        (groups, dim, keys),
        extents=(batch, kv_heads, dim, keys),
        steps=(kv_heads * keys * dim, keys * dim, 1, dim),
        shift=0,
    )
    v = b.add(Op.RESHAPE, (read("values"),), (groups, keys, dim))
    window = node.number("window")
    mask = b.add(
        Op.CAUSAL_MASK, (past,), (batch, tokens, keys), tokens=tokens, keys=keys, window=window
    )
    mask = b.add(Op.RESHAPE, (mask,), (batch, 1, tokens, keys))
    return _attend(b, (q, k, v), mask, (batch, heads, tokens, keys))


def _attend(b: MirBuilder, views: tuple[int, int, int], mask: int, grid: Shape) -> int:
    """Rows [batch * tokens, heads * dim] of softmax(q k / sqrt(dim), where the mask is 1) v.

    Args:
        b: the program.
        views: q [groups, rows, dim], k [groups, dim, keys], v [groups, keys, dim].
        mask: of 0 and 1, broadcast to the grid.
        grid: (batch, heads, tokens, keys), the scores.
    """
    q, k, v = views
    batch, heads, tokens, keys = grid
    dim = b.shape(q)[2]
    scores = b.add(Op.DOT, (q, k), (*b.shape(q)[:2], keys))
    scaled = Fn("mul", (In(0), Lit(1 / math.sqrt(dim))))
    hidden = Fn("mul", (Fn("sub", (In(1), Lit(1.0))), Lit(FAR)))
    masked = b.elementwise(
        Fn("add", (scaled, hidden)), (b.add(Op.RESHAPE, (scores,), grid), mask), grid
    )
    weights = b.add(Op.RESHAPE, (b.add(Op.SOFTMAX, (masked,), grid),), b.shape(scores))
    return b.add(
        Op.STRIDED,
        (b.add(Op.DOT, (weights, v), b.shape(q)),),
        (batch * tokens, heads * dim),
        extents=(batch, tokens, heads, dim),
        steps=(heads * tokens * dim, dim, tokens * dim, 1),
        shift=0,
    )


def _turned(b: MirBuilder, x: int, angles: int) -> int:
    """Heads [rows, count, dim] turned by the cosines and sines [rows, dim] of their rows."""
    rows, count, dim = b.shape(x)
    half = (rows, count, dim // 2)
    halves = tuple(
        b.add(
            Op.STRIDED,
            (x,),
            half,
            extents=(rows, count, 1, dim // 2),
            steps=(count * dim, dim, 0, 1),
            shift=shift,
        )
        for shift in (0, dim // 2)
    )
    parts = tuple(_columns(b, angles, s, (rows, 1, dim // 2)) for s in (0, dim // 2))

    def terms(name: str, one: int, other: int) -> Expr:
        return Fn(name, (Fn("mul", (In(one), In(2))), Fn("mul", (In(other), In(3)))))

    low = b.elementwise(terms("sub", 0, 1), (*halves, *parts), half)
    high = b.elementwise(terms("add", 1, 0), (*halves, *parts), half)
    return b.add(Op.CONCAT, (low, high), (rows, count, dim))


def _columns(b: MirBuilder, x: int, first: int, shape: Shape) -> int:
    """Columns of x [rows, width] from `first` on, as [rows, ...]."""
    rows, width = b.shape(x)
    extents, steps = (rows, 1, 1, math.prod(shape[1:])), (width, 0, 0, 1)
    return b.add(Op.STRIDED, (x,), shape, extents=extents, steps=steps, shift=first)


def _cached(node: Node) -> dict[str, int]:
    """Where in a page a layer's keys and values lie."""
    return {name: node.number(name) for name in ("kv_heads", "dim", "size", "layers", "layer")}
