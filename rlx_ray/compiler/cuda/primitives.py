"""Primitives, each a launch of its own: what common lowerings are made of, and fused regions."""

from __future__ import annotations

from rlx_ray.compiler.cuda.attention import cache, tables
from rlx_ray.compiler.cuda.constants import Value
from rlx_ray.compiler.cuda.rows import unit_length
from rlx_ray.compiler.cuda.state import Lowering
from rlx_ray.compiler.passes.operands import REDUCTIONS, grid
from rlx_ray.dtype import DType
from rlx_ray.shape import elements


def elementwise(s: Lowering, index: int) -> None:
    """A fused region; the last node of a unit-length pattern is that pattern."""
    analysis, node = s.analysis, s.analysis.node(index)
    if index in analysis.inner:
        return
    if index in analysis.units:
        unit_length(s, index)
        return
    assert node.expr is not None
    operands = [(s.array(i), analysis.shape(i)) for i in node.inputs]
    s.make(index, s.result_type(index))
    s.elementwise(index, node.expr, operands, s.values[index])


def reshape(s: Lowering, index: int) -> None:
    """The same bytes under another shape."""
    s.values[index] = s.array(s.analysis.node(index).inputs[0])


def reduce(s: Lowering, index: int) -> None:
    """One axis away."""
    node = s.analysis.node(index)
    if index in s.analysis.inner:
        return
    axis, shape = node.number("axis"), s.analysis.shape(node.inputs[0])
    x = s.array(node.inputs[0])
    constants: dict[str, Value] = {"t": x.dtype, "outer": elements(shape[:axis])}
    constants |= {"extent": shape[axis], "inner": elements(shape[axis + 1 :])}
    constants |= {"reduce": REDUCTIONS[str(node.attr("kind"))], "out": s.type_of(index)}
    s.writer.call("reduce", node.origin, constants, x=x.place, y=s.make(index))


def strided(s: Lowering, index: int) -> None:
    """A view of four axes as an array of its own."""
    node = s.analysis.node(index)
    extents, steps = node.attr("extents"), node.attr("steps")
    assert isinstance(extents, tuple)
    assert isinstance(steps, tuple)
    x = s.array(node.inputs[0])
    constants: dict[str, Value] = {"t": x.dtype, "shift": node.number("shift")}
    for i in range(4):
        constants |= {f"n{i}": extents[i], f"s{i}": steps[i]}
    s.writer.call("strided", node.origin, constants, x=x.place, y=s.make(index, x.dtype))


def length_mask(s: Lowering, index: int) -> None:
    """1 where a token counts, else 0."""
    node = s.analysis.node(index)
    batch, tokens = node.shape
    constants: dict[str, Value] = {"t": s.type_of(index), "batch": batch, "tokens": tokens}
    lengths = s.place(node.inputs[0])
    s.writer.call("length_mask", node.origin, constants, lengths=lengths, y=s.make(index))


def iota(s: Lowering, index: int) -> None:
    """Positions, counted from what each sequence begins with where that is told."""
    node = s.analysis.node(index)
    constants: dict[str, Value] = {"rows": node.shape[0], "period": node.number("period")}
    constants |= {"first": node.number("first"), "base": len(node.inputs)}
    places = {"base": s.place(node.inputs[0])} if node.inputs else {}
    s.writer.call("iota", node.origin, constants, **places, y=s.make(index, DType.I32))


def causal_mask(s: Lowering, index: int) -> None:
    """1 where a new token sees a key, else 0."""
    node = s.analysis.node(index)
    batch, tokens, keys = node.shape
    constants: dict[str, Value] = {"t": s.type_of(index), "batch": batch, "tokens": tokens}
    constants |= {"keys": keys, "window": node.number("window")}
    past = s.place(node.inputs[0])
    s.writer.call("causal_mask", node.origin, constants, past=past, y=s.make(index))


def concat(s: Lowering, index: int) -> None:
    """Rows of two values side by side."""
    a, b = s.analysis.node(index).inputs
    (rows, m), (_, n) = grid(s.analysis.shape(a)), grid(s.analysis.shape(b))
    t, origin = s.type_of(index), s.analysis.node(index).origin
    constants: dict[str, Value] = {"t": t, "rows": rows, "m": m, "n": n}
    places = {"a": s.cast(a, t).place, "b": s.cast(b, t).place}
    s.writer.call("concat", origin, constants, **places, y=s.make(index))


def cache_write(s: Lowering, index: int) -> None:
    """Keys and values into the cache; the value is that of the queries, which come after it."""
    node = s.analysis.node(index)
    queries, k, v = node.inputs[:3]
    given, place = cache(s, node)
    constants: dict[str, Value] = {"t": s.t, "rows": node.shape[0], "seq": node.number("tokens")}
    places = {"k": s.place(k), "v": s.place(v), "cache": place, **tables(s, node)}
    s.writer.call("cache_write", node.origin, {**constants, **given}, **places)
    s.values[index] = s.array(queries)


def cache_read(s: Lowering, index: int) -> None:
    """The keys or values that the cache holds."""
    node = s.analysis.node(index)
    given, place = cache(s, node)
    constants: dict[str, Value] = {"t": s.t, "batch": node.shape[0], **given}
    constants["values"] = int(node.attr("part") == "values")
    places = {"cache": place, **tables(s, node)}
    s.writer.call("cache_read", node.origin, constants, **places, y=s.make(index))
