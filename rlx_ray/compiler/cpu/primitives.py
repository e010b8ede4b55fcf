"""From a primitive to a kernel instance: the loops of kernels/c/prim.h, and elementwise regions."""

from __future__ import annotations

from collections.abc import Callable

from rlx_ray.compiler.cpu.lir import Kernel
from rlx_ray.compiler.cpu.tiled import Lowered, Tiled
from rlx_ray.compiler.ir.mir import Op
from rlx_ray.compiler.passes.operands import REDUCTIONS, grid, operand
from rlx_ray.shape import elements


def _map(t: Tiled) -> Lowered:
    operands = tuple(range(len(t.inputs)))
    shape = t.shape
    if all(s == shape or elements(s) == 1 for s in t.inputs):
        shape = (1, elements(shape))
    inputs = tuple(shape if s == t.shape else s for s in t.inputs)
    rows, columns = grid(shape)
    views = tuple(operand(shape, s) for s in inputs)
    constants = (("rows", rows), ("columns", columns))
    return Lowered(Kernel("map", constants, t.node.expr, views), (), operands)


def _dot(t: Tiled) -> Lowered:
    a, b = t.inputs
    if len(b) == 2:
        panels = (("m", elements(a[:-1])), ("n", b[1]), ("k", b[0]))
        return Lowered(Kernel("dot_panels", panels), (0, 1))
    constants = (("batch", elements(a[:-2])), ("m", a[-2]), ("n", b[-1]), ("k", a[-1]))
    return Lowered(Kernel("dot_batched", constants), (0, 1))


def _take(t: Tiled) -> Lowered:
    rows, columns = grid(t.shape)
    constants = (("rows", rows), ("columns", columns), ("extent", t.inputs[0][0]))
    return Lowered(Kernel("take", constants), (0, 1))


def _iota(t: Tiled) -> Lowered:
    constants = (
        ("rows", t.shape[0]),
        ("period", t.node.number("period")),
        ("first", t.node.number("first")),
    )
    return Lowered(Kernel("iota", constants), tuple(range(len(t.inputs))))


def _length_mask(t: Tiled) -> Lowered:
    constants = (("sequences", t.shape[0]), ("tokens", t.shape[1]))
    return Lowered(Kernel("length_mask", constants), (0,))


def _causal_mask(t: Tiled) -> Lowered:
    sequences, tokens, keys = t.shape
    sizes = (("sequences", sequences), ("tokens", tokens), ("keys", keys))
    return Lowered(Kernel("causal_mask", (*sizes, ("window", t.node.number("window")))), (0,))


def _concat(t: Tiled) -> Lowered:
    (rows, m), (_, n) = grid(t.inputs[0]), grid(t.inputs[1])
    return Lowered(Kernel("concat", (("rows", rows), ("m", m), ("n", n))), (0, 1))


def _strided(t: Tiled) -> Lowered:
    extents, steps = t.node.attr("extents"), t.node.attr("steps")
    assert isinstance(extents, tuple)
    assert isinstance(steps, tuple)
    lead = extents[0] // t.tiles
    constants = (
        ("n0", lead),
        *((f"n{i}", extents[i]) for i in (1, 2, 3)),
        *((f"s{i}", steps[i]) for i in range(4)),
        ("shift", t.node.number("shift")),
    )
    return Lowered(Kernel("strided", constants), (0,))


def _reduce(t: Tiled) -> Lowered:
    axis = t.node.number("axis")
    shape = t.inputs[0]
    constants = (
        ("outer", elements(shape[:axis])),
        ("extent", shape[axis]),
        ("inner", elements(shape[axis + 1 :])),
        ("kind", REDUCTIONS[str(t.node.attr("kind"))]),
    )
    return Lowered(Kernel("reduce", constants), (0,))


_CACHED = ("kv_heads", "dim", "size", "layers")


def _cache_write(t: Tiled) -> Lowered:
    sequences, table = t.inputs[5]
    sizes = tuple((name, t.node.number(name)) for name in ("tokens", "heads", *_CACHED))
    constants = (("sequences", sequences), *sizes, ("table", table))
    return Lowered(Kernel("cache_write", constants), tuple(range(6)))


def _cache_read(t: Tiled) -> Lowered:
    sequences, table = t.inputs[3]
    sizes = tuple((name, t.node.number(name)) for name in _CACHED)
    values = int(t.node.attr("part") == "values")
    constants = (("sequences", sequences), *sizes, ("table", table), ("values", values))
    return Lowered(Kernel("cache_read", constants), (1, 2, 3))


PRIMITIVES: dict[Op, Callable[[Tiled], Lowered]] = {
    Op.ELEMENTWISE: _map,
    Op.DOT: _dot,
    Op.TAKE: _take,
    Op.IOTA: _iota,
    Op.LENGTH_MASK: _length_mask,
    Op.STRIDED: _strided,
    Op.REDUCE: _reduce,
    Op.CAUSAL_MASK: _causal_mask,
    Op.CONCAT: _concat,
    Op.CACHE_WRITE: _cache_write,
    Op.CACHE_READ: _cache_read,
}
"""For each primitive, its kernel instance on a tile."""
