"""From a MIR node to a kernel instance over packed token rows: how many there are is the span's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlx_ray.compiler.cpu.kernels import low_sizes, low_template, quantize_sizes
from rlx_ray.compiler.cpu.lir import Kernel
from rlx_ray.compiler.cpu.regions import Domain
from rlx_ray.compiler.cpu.tiled import Lowered
from rlx_ray.compiler.ir.mir import Mir, Node, Op, Shape
from rlx_ray.compiler.passes.operands import POOLS, REDUCTIONS, operand
from rlx_ray.errors import VerifyError


@dataclass(frozen=True, slots=True)
class Site:
    """Where a node runs: the axis of its region, and what its rows are."""

    axis: str
    domain: Domain


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a matmul that one call does.

    Attributes:
        n: columns of the result.
        k: terms of each sum.
        more: the sum goes on from what is in the result.
        last: the sum ends here, and the epilogue follows.
        lda: columns of a row of the left operand.
        ldc: columns of a row of the result.
        domain: what the rows are.
    """

    n: int
    k: int
    more: bool
    last: bool
    lda: int
    ldc: int
    domain: Domain


def _rows(domain: Domain) -> tuple[tuple[str, int], ...]:
    """The mark of a kernel whose rows are sequences; token rows are the rule."""
    return (("per_sequence", 1),) if domain is Domain.SEQUENCES else ()


def lower_matmul(mir: Mir, node: Node, part: Part) -> Lowered:
    """A matmul, or a part of one."""
    operands = tuple(range(2, len(node.inputs))) if part.last else ()
    views = tuple(operand(node.shape, mir.nodes[node.inputs[i]].shape) for i in operands)
    depth = mir.nodes[node.inputs[1]].shape[0]
    if node.attr("precision") is not None:
        low = (*low_sizes(node, part.n, depth, part.ldc), *_rows(part.domain))
        return Lowered(Kernel(low_template(node), low, node.expr, views), (0, 1), operands)
    constants = (
        ("n", part.n),
        ("k", part.k),
        ("depth", depth),
        ("lda", part.lda),
        ("ldc", part.ldc),
        ("more", int(part.more)),
        ("last", int(part.last)),
        *_rows(part.domain),
    )
    kernel = Kernel("gemm", constants, node.expr if part.last else None, views)
    return Lowered(kernel, (0, 1), operands)


def _attention(node: Node, shapes: tuple[Shape, ...], site: Site) -> Lowered:
    constants = (
        ("keys", node.number("keys")),
        ("heads", node.number("heads")),
        ("dim", node.number("dim")),
        ("own", int(site.axis == "sequences")),
    )
    template = "attention_heads" if site.axis == "heads" else "attention"
    return Lowered(Kernel(template, constants), (0,))


_CACHED = ("heads", "kv_heads", "dim", "size", "layers")


def _rope_cache(node: Node, shapes: tuple[Shape, ...], site: Site) -> Lowered:
    eps = node.attr("eps")
    assert isinstance(eps, float)
    sizes = tuple((name, node.number(name)) for name in _CACHED)
    constants = (*sizes, ("table", shapes[3][1]), ("positions", shapes[4][0]), ("eps", eps))
    inputs = (0, 2, 3, 4, *((5, 6) if len(shapes) == 7 else (None, None)))
    template = "rope_cache_heads" if site.axis == "heads" else "rope_cache"
    return Lowered(Kernel(template, constants), inputs)


def _cached_attention(node: Node, shapes: tuple[Shape, ...], site: Site) -> Lowered:
    sizes = tuple((name, node.number(name)) for name in (*_CACHED, "window"))
    constants = (*sizes, ("table", shapes[3][1]), ("own", int(site.axis == "sequences")))
    template = "attention_cached_heads" if site.axis == "heads" else "attention_cached"
    return Lowered(Kernel(template, constants), (0, 2, 3))


def _gather(node: Node, shapes: tuple[Shape, ...], site: Site) -> Lowered:
    rest = list(range(1, len(node.inputs)))
    ids = rest.pop(0) if node.number("ids") else None
    base = rest.pop(0) if node.number("base") else None
    rectangle = ids is not None and len(shapes[ids]) == 2
    constants = (
        ("columns", node.shape[1]),
        ("pitch", shapes[ids][1] if ids is not None and rectangle else 0),
        ("first", node.number("first")),
        ("extent", shapes[0][0]),
    )
    template = "gather_span" if shapes[0][1] == node.shape[1] else "gather_span_q8"
    return Lowered(Kernel(template, constants), (0, ids, base))


def _pool(node: Node, shapes: tuple[Shape, ...], site: Site) -> Lowered:
    constants = (("columns", node.shape[1]), ("kind", POOLS[str(node.attr("kind"))]))
    return Lowered(Kernel("pool_span", constants), (0,))


def _layer_norm(node: Node, shapes: tuple[Shape, ...], site: Site) -> Lowered:
    eps = node.attr("eps")
    assert isinstance(eps, float)
    constants = (("columns", node.shape[1]), ("eps", eps), *_rows(site.domain))
    return Lowered(Kernel("layer_norm", constants), (0, 1, 2))


def _rms_norm(node: Node, shapes: tuple[Shape, ...], site: Site) -> Lowered:
    eps = node.attr("eps")
    assert isinstance(eps, float)
    constants = (("columns", node.shape[1]), ("eps", eps), *_rows(site.domain))
    return Lowered(Kernel("rms_norm", constants), (0, 1))


def _map(node: Node, shapes: tuple[Shape, ...], site: Site) -> Lowered:
    operands = tuple(range(len(node.inputs)))
    views = tuple(operand(node.shape, s) for s in shapes)
    constants = (("columns", node.shape[1]), *_rows(site.domain))
    return Lowered(Kernel("map", constants, node.expr, views), (), operands)


def _quantize(node: Node, shapes: tuple[Shape, ...], site: Site) -> Lowered:
    return Lowered(Kernel(low_template(node), (*quantize_sizes(node), *_rows(site.domain))), (0,))


def _reduce(node: Node, shapes: tuple[Shape, ...], site: Site) -> Lowered:
    constants = (
        ("extent", shapes[0][1]),
        ("inner", 1),
        ("kind", REDUCTIONS[str(node.attr("kind"))]),
        *_rows(site.domain),
    )
    return Lowered(Kernel("reduce", constants), (0,))


_RULES: dict[Op, Callable[[Node, tuple[Shape, ...], Site], Lowered]] = {
    Op.ATTENTION: _attention,
    Op.GATHER: _gather,
    Op.POOL: _pool,
    Op.LAYER_NORM: _layer_norm,
    Op.RMS_NORM: _rms_norm,
    Op.ROPE_CACHE: _rope_cache,
    Op.CACHED_ATTENTION: _cached_attention,
    Op.ELEMENTWISE: _map,
    Op.REDUCE: _reduce,
    Op.QUANTIZE: _quantize,
}


def lower_packed(mir: Mir, node: Node, site: Site) -> Lowered:
    """The kernel instance that computes one tile of a node that is not a matmul.

    Raises:
        VerifyError: the operation has no kernel over packed rows.
    """
    rule = _RULES.get(node.op)
    if rule is None:
        raise VerifyError(f"MIR op {node.op.value!r} has no kernel over packed rows.")
    return rule(node, tuple(mir.nodes[i].shape for i in node.inputs), site)
