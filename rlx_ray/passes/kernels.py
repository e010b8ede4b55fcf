"""From a MIR node to a kernel instance: template, compile-time constants, operands, for a tile.

A tile is one of `tiles` equal pieces of the leading axis of every batched value: some whole padded
sequences. Programs over packed rows have `packed.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlx_ray.errors import VerifyError
from rlx_ray.ir.lir import Kernel, Operand
from rlx_ray.ir.mir import Mir, Node, Op, Shape
from rlx_ray.matrix import FORMATS
from rlx_ray.shape import PAGE, elements

POOLS = {"mean": 0, "max": 1, "cls": 2, "last": 3}
REDUCTIONS = {"sum": 0, "max": 1}


@dataclass(frozen=True, slots=True)
class Tiled:
    """A node with the shapes that it and its inputs have in one tile.

    Attributes:
        node: the node.
        shape: its output's shape in the tile.
        inputs: the inputs' shapes in the tile.
        tiles: how many tiles there are.
    """

    node: Node
    shape: Shape
    inputs: tuple[Shape, ...]
    tiles: int


@dataclass(frozen=True, slots=True)
class Lowered:
    """A kernel and which of the node's inputs are its inputs (None: absent) and its operands."""

    kernel: Kernel
    inputs: tuple[int | None, ...]
    operands: tuple[int, ...] = ()


def operand(out: Shape, shape: Shape) -> Operand:
    """How an operand of `shape` is read at each element of `out`, aligned at the last axis."""
    padded = (1,) * (len(out) - len(shape)) + shape
    columns = out[-1]
    steps: list[int] = []
    stride = 1
    for axis in range(len(out) - 1, -1, -1):
        steps.insert(0, stride if padded[axis] != 1 else 0)
        stride *= padded[axis]
    terms: list[tuple[int, int, int]] = []
    div = 1
    for axis in range(len(out) - 2, -1, -1):
        extent, step = out[axis], steps[axis]
        if extent > 1:
            terms.append((div, extent, step))
        div *= extent
    return Operand(_merge_terms(terms), int(columns > 1 and padded[-1] == columns))


def _merge_terms(terms: Sequence[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    """Inner to outer (div, extent, step), with neighbours that walk on in one stride joined."""
    merged: list[tuple[int, int, int]] = []
    for div, extent, step in terms:
        if merged:
            low_div, low_extent, low_step = merged[-1]
            if step == low_step * low_extent and low_div * low_extent == div:
                merged[-1] = (low_div, low_extent * extent, low_step)
                continue
        merged.append((div, extent, step))
    if merged:
        div, _, step = merged[-1]
        merged[-1] = (div, 0, step)  # the outermost axis needs no modulo
    return tuple(t for t in merged if t[2])


def _grid(shape: Shape) -> tuple[int, int]:
    return elements(shape[:-1]), shape[-1]


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


def _map(t: Tiled) -> Lowered:
    operands = tuple(range(len(t.inputs)))
    shape = t.shape
    if all(s == shape or elements(s) == 1 for s in t.inputs):
        shape = (1, elements(shape))
    inputs = tuple(shape if s == t.shape else s for s in t.inputs)
    rows, columns = _grid(shape)
    views = tuple(operand(shape, s) for s in inputs)
    constants = (("rows", rows), ("columns", columns))
    return Lowered(Kernel("map", constants, t.node.expr, views), (), operands)


def _layer_norm(t: Tiled) -> Lowered:
    rows, columns = _grid(t.shape)
    eps = t.node.attr("eps")
    assert isinstance(eps, float)
    constants = (("rows", rows), ("columns", columns), ("eps", eps))
    return Lowered(Kernel("layer_norm", constants), (0, 1, 2))


def _rms_norm(t: Tiled) -> Lowered:
    rows, columns = _grid(t.shape)
    eps = t.node.attr("eps")
    assert isinstance(eps, float)
    constants = (("rows", rows), ("columns", columns), ("eps", eps))
    return Lowered(Kernel("rms_norm", constants), (0, 1))


def _softmax(t: Tiled) -> Lowered:
    rows, columns = _grid(t.shape)
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


def _dot(t: Tiled) -> Lowered:
    a, b = t.inputs
    if len(b) == 2:
        panels = (("m", elements(a[:-1])), ("n", b[1]), ("k", b[0]))
        return Lowered(Kernel("dot_panels", panels), (0, 1))
    constants = (("batch", elements(a[:-2])), ("m", a[-2]), ("n", b[-1]), ("k", a[-1]))
    return Lowered(Kernel("dot_batched", constants), (0, 1))


def _take(t: Tiled) -> Lowered:
    rows, columns = _grid(t.shape)
    constants = (("rows", rows), ("columns", columns), ("extent", t.inputs[0][0]))
    return Lowered(Kernel("take", constants), (0, 1))


def _iota(t: Tiled) -> Lowered:
    constants = (
        ("rows", t.shape[0]),
        ("period", t.node.number("period")),
        ("first", t.node.number("first")),
    )
    return Lowered(Kernel("iota", constants), ())


def _length_mask(t: Tiled) -> Lowered:
    constants = (("sequences", t.shape[0]), ("tokens", t.shape[1]))
    return Lowered(Kernel("length_mask", constants), (0,))


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


_RULES: dict[Op, Callable[[Tiled], Lowered]] = {
    Op.MATMUL: _gemm,
    Op.ELEMENTWISE: _map,
    Op.LAYER_NORM: _layer_norm,
    Op.RMS_NORM: _rms_norm,
    Op.SOFTMAX: _softmax,
    Op.ATTENTION: _attention,
    Op.GATHER: _gather,
    Op.POOL: _pool,
    Op.DOT: _dot,
    Op.TAKE: _take,
    Op.IOTA: _iota,
    Op.LENGTH_MASK: _length_mask,
    Op.STRIDED: _strided,
    Op.REDUCE: _reduce,
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
