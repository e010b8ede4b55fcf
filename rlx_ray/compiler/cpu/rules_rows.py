"""The CPU rules of norms, softmax, gathers and pooling (kernels/c/norm.h, gather.h, pooling.h)."""

from __future__ import annotations

from rlx_ray.compiler.cpu.op_rule import (
    Domain,
    Lowered,
    OpRule,
    Partition,
    Site,
    own_rows,
    sequence_rows,
)
from rlx_ray.compiler.cpu.templates import Template
from rlx_ray.compiler.ir.mir import Mir, Node, Op

_LAYER_NORM = Template("layer_norm", "layer_norm($rows, $columns, $eps, a, b, c, y)", "norm.h")
_RMS_NORM = Template("rms_norm", "rms_norm($rows, $columns, $eps, a, b, y)", "decoder.h")
_SOFTMAX = Template("softmax", "softmax($rows, $columns, a, y)", "norm.h")
_GATHER = Template(
    "gather",
    "gather($rows, $columns, a, b, $period, $first + tile * $rows % $period, $extent, c, y)",
    "gather.h",
)
_GATHER_SPAN = Template(
    "gather_span", "gather_span(s, $columns, $pitch, a, b, $first, $extent, c, y)", "gather.h"
)
_GATHER_SPAN_Q8 = Template(
    "gather_span_q8", "gather_span_q8(s, $columns, $pitch, a, b, $first, $extent, c, y)", "gather.h"
)
_POOL_ROWS = Template(
    "pool_rows", "pool_rows($sequences, $tokens, $columns, $kind, a, b, y)", "pooling.h"
)
_POOL_SPAN = Template("pool_span", "pool_span(s, $columns, $kind, a, y)", "pooling.h")


def _layer_norm(site: Site) -> Lowered:
    kernel = _LAYER_NORM(rows=site.rows, columns=site.shape[-1], eps=site.real("eps"))
    return Lowered(kernel, (0, 1, 2))


def _rms_norm(site: Site) -> Lowered:
    kernel = _RMS_NORM(rows=site.rows, columns=site.shape[-1], eps=site.real("eps"))
    return Lowered(kernel, (0, 1))


def _softmax(site: Site) -> Lowered:
    return Lowered(_SOFTMAX(rows=site.rows, columns=site.shape[-1]), (0,))


def _gathered(node: Node) -> tuple[int | None, int | None]:
    """Which of a gather's inputs are its ids and what it adds to; None where it has none."""
    rest = list(range(1, len(node.inputs)))
    ids = rest.pop(0) if node.number("ids") else None
    return ids, rest.pop(0) if node.number("base") else None


def _gather(site: Site) -> Lowered:
    ids, base = _gathered(site.node)
    kernel = _GATHER(
        rows=site.rows,
        columns=site.shape[1],
        extent=site.inputs[0][0],
        **site.numbers("period", "first"),
    )
    return Lowered(kernel, (0, ids, base))


def _gather_span(site: Site) -> Lowered:
    ids, base = _gathered(site.node)
    (extent, width), columns = site.inputs[0], site.shape[1]
    rectangle = ids is not None and len(site.inputs[ids]) == 2
    template = _GATHER_SPAN if width == columns else _GATHER_SPAN_Q8
    kernel = template(
        columns=columns,
        pitch=site.inputs[ids][1] if ids is not None and rectangle else 0,
        extent=extent,
        **site.numbers("first"),
    )
    return Lowered(kernel, (0, ids, base))


def _gather_rows(mir: Mir, node: Node, sources: set[Domain]) -> Domain | None:
    """Token rows, if the ids that there are, if any, are an input as it came."""
    plain = not node.number("ids") or mir.nodes[node.inputs[1]].op is Op.INPUT
    return Domain.TOKENS if plain else None


def _kind(site: Site) -> str:
    return f"POOL_{str(site.node.attr('kind')).upper()}"


def _pool(site: Site) -> Lowered:
    sequences, columns = site.shape
    tokens = site.node.number("tokens")
    kernel = _POOL_ROWS(sequences=sequences, tokens=tokens, columns=columns, kind=_kind(site))
    return Lowered(kernel, (0, 1))


def _pool_span(site: Site) -> Lowered:
    return Lowered(_POOL_SPAN(columns=site.shape[1], kind=_kind(site)), (0,))


_NORM = Partition(own_rows, cheap=True, token_rows=True)

LAYER_NORM = OpRule((_LAYER_NORM,), _layer_norm, _layer_norm, _NORM)
RMS_NORM = OpRule((_RMS_NORM,), _rms_norm, _rms_norm, _NORM)
SOFTMAX = OpRule((_SOFTMAX,), _softmax)
GATHER = OpRule(
    (_GATHER, _GATHER_SPAN, _GATHER_SPAN_Q8),
    _gather,
    _gather_span,
    Partition(_gather_rows, token_rows=True),
)
POOL = OpRule(
    (_POOL_ROWS, _POOL_SPAN), _pool, _pool_span, Partition(sequence_rows, tokens="tokens")
)
