"""The CPU rules of primitives: elementwise regions and the loops of kernels/c/prim.h."""

from __future__ import annotations

from rlx_ray.compiler.cpu.op_rule import (
    Domain,
    Lowered,
    OpRule,
    Partition,
    Site,
    own_rows,
    source_rows,
)
from rlx_ray.compiler.cpu.templates import Template
from rlx_ray.compiler.ir.mir import Mir, Node
from rlx_ray.compiler.passes.operands import grid, operand
from rlx_ray.shape import elements

_PRIM = "prim.h"
_MAP = Template("map", "map($rows, $columns, y, $function, x)", "map.h")
_DOT_PANELS = Template("dot_panels", "dot_panels($rows, $n, $k, a, b, y)", _PRIM)
_DOT_BATCHED = Template("dot_batched", "dot_batched($batch, $rows, $n, $k, a, b, y)", _PRIM)
_TAKE = Template("take", "take($rows, $columns, $extent, a, b, y)", _PRIM)
_IOTA = Template("iota", "iota($rows, $period, $first, a, (int *)y)", _PRIM)
_LENGTH_MASK = Template("length_mask", "length_mask($sequences, $tokens, a, y)", _PRIM)
_CAUSAL_MASK = Template(
    "causal_mask", "causal_mask($sequences, $tokens, $keys, $window, a, y)", _PRIM
)
_CONCAT = Template("concat", "concat($rows, $m, $n, a, b, y)", _PRIM)
_STRIDED = Template(
    "strided",
    "strided($n0, $n1, $n2, $n3, $s0, $s1, $s2, $s3, (const float *)a + $shift, y)",
    _PRIM,
)
_REDUCE = Template("reduce", "reduce($rows, $extent, $inner, $kind, a, y)", _PRIM)


def _map(site: Site) -> Lowered:
    shape = site.shape
    if all(s == shape or elements(s) == 1 for s in site.inputs):
        shape = (1, elements(shape))
    rows, columns = grid(shape)
    views = tuple(operand(shape, shape if s == site.shape else s) for s in site.inputs)
    kernel = _MAP(site.node.expr, views, rows=rows, columns=columns)
    return Lowered(kernel, (), tuple(range(len(site.inputs))))


def _map_rows(site: Site) -> Lowered:
    views = tuple(operand(site.shape, s) for s in site.inputs)
    kernel = _MAP(site.node.expr, views, rows=site.rows, columns=site.shape[1])
    return Lowered(kernel, (), tuple(range(len(site.inputs))))


def _dot(site: Site) -> Lowered:
    a, b = site.inputs
    if len(b) == 2:
        return Lowered(_DOT_PANELS(rows=elements(a[:-1]), n=b[1], k=b[0]), (0, 1))
    kernel = _DOT_BATCHED(batch=elements(a[:-2]), rows=a[-2], n=b[-1], k=a[-1])
    return Lowered(kernel, (0, 1))


def _take(site: Site) -> Lowered:
    kernel = _TAKE(rows=site.rows, columns=site.shape[-1], extent=site.inputs[0][0])
    return Lowered(kernel, (0, 1))


def _iota(site: Site) -> Lowered:
    kernel = _IOTA(rows=site.shape[0], **site.numbers("period", "first"))
    return Lowered(kernel, tuple(range(len(site.inputs))))


def _length_mask(site: Site) -> Lowered:
    sequences, tokens = site.shape
    return Lowered(_LENGTH_MASK(sequences=sequences, tokens=tokens), (0,))


def _causal_mask(site: Site) -> Lowered:
    sequences, tokens, keys = site.shape
    kernel = _CAUSAL_MASK(
        sequences=sequences, tokens=tokens, keys=keys, window=site.node.number("window")
    )
    return Lowered(kernel, (0,))


def _concat(site: Site) -> Lowered:
    (rows, m), (_, n) = grid(site.inputs[0]), grid(site.inputs[1])
    return Lowered(_CONCAT(rows=rows, m=m, n=n), (0, 1))


def _strided(site: Site) -> Lowered:
    extents, steps = site.node.attr("extents"), site.node.attr("steps")
    assert isinstance(extents, tuple)
    assert isinstance(steps, tuple)
    own = (extents[0] // site.tiles, *extents[1:])
    kernel = _STRIDED(
        **{f"n{i}": extent for i, extent in enumerate(own)},
        **{f"s{i}": step for i, step in enumerate(steps)},
        **site.numbers("shift"),
    )
    return Lowered(kernel, (0,))


def _kind(site: Site) -> str:
    return f"REDUCE_{str(site.node.attr('kind')).upper()}"


def _reduce(site: Site) -> Lowered:
    axis, shape = site.node.number("axis"), site.inputs[0]
    kernel = _REDUCE(
        rows=elements(shape[:axis]),
        extent=shape[axis],
        inner=elements(shape[axis + 1 :]),
        kind=_kind(site),
    )
    return Lowered(kernel, (0,))


def _reduce_rows(site: Site) -> Lowered:
    extent = site.inputs[0][1]
    return Lowered(_REDUCE(rows=site.rows, extent=extent, inner=1, kind=_kind(site)), (0,))


def _reduced(mir: Mir, node: Node, sources: set[Domain]) -> Domain | None:
    return source_rows(mir, node, sources) if node.number("axis") else None


ELEMENTWISE = OpRule((_MAP,), _map, _map_rows, Partition(own_rows))
DOT = OpRule((_DOT_PANELS, _DOT_BATCHED), _dot)
TAKE = OpRule((_TAKE,), _take, partition=Partition(token_rows=True))
IOTA = OpRule((_IOTA,), _iota, partition=Partition(batch=True))
LENGTH_MASK = OpRule((_LENGTH_MASK,), _length_mask)
CAUSAL_MASK = OpRule((_CAUSAL_MASK,), _causal_mask)
CONCAT = OpRule((_CONCAT,), _concat)
STRIDED = OpRule((_STRIDED,), _strided)
REDUCE = OpRule((_REDUCE,), _reduce, _reduce_rows, Partition(_reduced))
