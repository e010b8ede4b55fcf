"""From a MIR node to a kernel instance: template, compile-time constants, operands, for a tile."""

from __future__ import annotations

from collections.abc import Callable

from rlx_ray.compiler.cpu.lir import Kernel
from rlx_ray.compiler.cpu.primitives import PRIMITIVES
from rlx_ray.compiler.cpu.tiled import Lowered, Tiled
from rlx_ray.compiler.ir.mir import Mir, Node, Op
from rlx_ray.compiler.passes.operands import POOLS, grid, operand
from rlx_ray.errors import VerifyError
from rlx_ray.shape import PAGE
from rlx_ray.weights.formats import FORMATS


def _gemm(t: Tiled) -> Lowered:
    (m, k), n = t.inputs[0], t.shape[1]
    operands = tuple(range(2, len(t.inputs)))
    views = tuple(operand(t.shape, t.inputs[i]) for i in operands)
    if t.node.attr("precision") is not None:
        low = (("m", m), *low_sizes(t.node, n, t.inputs[1][0], n))
        return Lowered(Kernel(low_template(t.node), low, t.node.expr, views), (0, 1), operands)
    sizes = (("m", m), ("n", n), ("k", k), ("depth", k), ("lda", k), ("ldc", n))
    constants = (*sizes, ("more", 0), ("last", 1))
    return Lowered(Kernel("gemm", constants, t.node.expr, views), (0, 1), operands)


def low_template(node: Node) -> str:
    """The template of a matmul of low precision or of a `quantize`."""
    precision = str(node.attr("precision"))
    return FORMATS[precision].kernel if node.op is Op.MATMUL else f"quantize_{precision}"


def low_sizes(node: Node, n: int, k: int, ldc: int) -> tuple[tuple[str, int], ...]:
    """The constants of such a matmul."""
    sizes = (("n", n), ("k", k), ("pitch", node.number("pitch")), ("ldc", ldc))
    return sizes + FORMATS[str(node.attr("precision"))].constants


def _quantize(t: Tiled) -> Lowered:
    constants = (("rows", t.shape[0]), *quantize_sizes(t.node))
    return Lowered(Kernel(low_template(t.node), constants), (0,))


def quantize_sizes(node: Node) -> tuple[tuple[str, int], ...]:
    """The constants of a `quantize`, but for the rows."""
    return (("k", node.number("k")), ("pitch", node.shape[1] * node.dtype.size))


def _layer_norm(t: Tiled) -> Lowered:
    rows, columns = grid(t.shape)
    eps = t.node.attr("eps")
    assert isinstance(eps, float)
    constants = (("rows", rows), ("columns", columns), ("eps", eps))
    return Lowered(Kernel("layer_norm", constants), (0, 1, 2))


def _rms_norm(t: Tiled) -> Lowered:
    rows, columns = grid(t.shape)
    eps = t.node.attr("eps")
    assert isinstance(eps, float)
    constants = (("rows", rows), ("columns", columns), ("eps", eps))
    return Lowered(Kernel("rms_norm", constants), (0, 1))


def _softmax(t: Tiled) -> Lowered:
    rows, columns = grid(t.shape)
    return Lowered(Kernel("softmax", (("rows", rows), ("columns", columns))), (0,))


def _attention(t: Tiled) -> Lowered:
    keys = t.node.number("keys")
    sizes = (("keys", keys), ("heads", t.node.number("heads")), ("dim", t.node.number("dim")))
    whole = Kernel("attention_padded", (("sequences", t.shape[0] // keys), *sizes))
    return Lowered(whole, (0, 1))


def _gather(t: Tiled) -> Lowered:
    rest = list(range(1, len(t.inputs)))
    ids = rest.pop(0) if t.node.number("ids") else None
    base = rest.pop(0) if t.node.number("base") else None
    constants = (
        ("rows", t.shape[0]),
        ("columns", t.shape[1]),
        ("period", t.node.number("period")),
        ("first", t.node.number("first")),
        ("extent", t.inputs[0][0]),
    )
    return Lowered(Kernel("gather", constants), (0, ids, base))


def _pool(t: Tiled) -> Lowered:
    constants = (
        ("sequences", t.shape[0]),
        ("tokens", t.node.number("tokens")),
        ("columns", t.shape[1]),
        ("kind", POOLS[str(t.node.attr("kind"))]),
    )
    return Lowered(Kernel("pool_rows", constants), (0, 1))


_CACHED = ("tokens", "heads", "kv_heads", "dim", "size", "layers")


def _rope_cache(t: Tiled) -> Lowered:
    sequences, table = t.inputs[3]
    eps = t.node.attr("eps")
    assert isinstance(eps, float)
    sizes = tuple((name, t.node.number(name)) for name in _CACHED)
    constants = (
        ("sequences", sequences),
        *sizes,
        ("table", table),
        ("positions", t.inputs[4][0]),
        ("eps", eps),
    )
    gains = (5, 6) if len(t.inputs) == 7 else (None, None)
    return Lowered(Kernel("rope_cache_padded", constants), (0, 1, 2, 3, 4, *gains))


def _cached_attention(t: Tiled) -> Lowered:
    sequences, table = t.inputs[3]
    sizes = tuple((name, t.node.number(name)) for name in (*_CACHED, "window"))
    constants = (("sequences", sequences), *sizes, ("table", table))
    return Lowered(Kernel("attention_cached_padded", constants), (0, 1, 2, 3))


_RULES: dict[Op, Callable[[Tiled], Lowered]] = {
    **PRIMITIVES,
    Op.MATMUL: _gemm,
    Op.LAYER_NORM: _layer_norm,
    Op.RMS_NORM: _rms_norm,
    Op.SOFTMAX: _softmax,
    Op.ATTENTION: _attention,
    Op.GATHER: _gather,
    Op.POOL: _pool,
    Op.ROPE_CACHE: _rope_cache,
    Op.CACHED_ATTENTION: _cached_attention,
    Op.QUANTIZE: _quantize,
}


def lower_node(tiled: Tiled) -> Lowered:
    """The kernel instance that computes one tile of a node.

    Raises:
        VerifyError: the operation has no kernel.
    """
    rule = _RULES.get(tiled.node.op)
    if rule is None:
        raise VerifyError(f"MIR op {tiled.node.op.value!r} has no kernel.")
    return rule(tiled)


def scratch_bytes(mir: Mir, node: Node, panel: int, tile_rows: int) -> int:
    """Scratch that a node's kernel wants for itself (bytes); mirrors ATT_SCRATCH in attention.h."""

    def panels(n: int) -> int:
        return (n + panel - 1) // panel

    if node.op is Op.CACHED_ATTENTION:
        bound = mir.nodes[node.inputs[3]].shape[1] * PAGE
        return 4 * tile_rows * (bound + panel * panels(node.number("dim")))
    if node.op is not Op.ATTENTION:
        return 0
    keys, dim = node.number("keys"), node.number("dim")

    scores = tile_rows * (panels(keys) + panels(dim))
    return 4 * panel * (dim * panels(keys) + keys * panels(dim) + scores)
