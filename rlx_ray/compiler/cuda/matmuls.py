"""Products: `matvec` for few rows, the device's library for more, and what becomes of epilogues."""

from __future__ import annotations

from dataclasses import dataclass

from rlx_ray.compiler.cuda.analysis import FEW_ROWS
from rlx_ray.compiler.cuda.constants import Value
from rlx_ray.compiler.cuda.fusion import (
    Epilogue,
    GatedMatmuls,
    epilogue,
    is_gate,
    matvec_constants,
    norm_constants,
    norm_for,
    pair,
    takes,
)
from rlx_ray.compiler.cuda.state import Array, Lowering, Raw
from rlx_ray.compiler.cuda.writer import Place, behind
from rlx_ray.compiler.ir.expr import Acc, Expr, In, rewrite
from rlx_ray.dtype import DType
from rlx_ray.shape import elements


def matmul(s: Lowering, index: int) -> None:
    """Launches of a native matmul."""
    node = s.analysis.node(index)
    if is_gate(s.analysis, index):
        return
    if node.shape[0] <= FEW_ROWS and s.analysis.is_matrix(node.inputs[1]):
        matvec(s, index)
    else:
        product(s, index)


# Few rows ---------------------------------------------------------------------------------------


def matvec(s: Lowering, index: int) -> None:
    """One launch, with the norm before it and the epilogue behind it."""
    analysis, node = s.analysis, s.analysis.node(index)
    two = pair(analysis, index)
    x, weight = node.inputs[0], node.inputs[1]
    if two is not None:
        weight = analysis.node(two.gate).inputs[1]
        s.adjacent[analysis.table[weight], analysis.table[node.inputs[1]], two.bytes] = None
        s.note(index, "gate and up are one product", "their weights are neighbours")
    ends = Epilogue(act=two.act) if two else epilogue(analysis, node)
    constants = matvec_constants(analysis, index, ends or Epilogue())
    places: dict[str, Place] = {"w": s.place(weight)}
    if ends and ends.bias is not None:
        places["bias"] = s.place(ends.bias)
    if ends and ends.residual is not None:
        places["residual"] = s.place(ends.residual)
    if x in s.late and norm_for(analysis, x) == index:
        constants |= _with_norm(s, index, x, places)
    else:
        places["x"] = s.place(x)
    out = s.result_type(index)
    places["y"] = s.make(index, out)
    s.writer.call("matvec", node.origin, {**constants, "out": out}, **places)
    if ends is None:
        finish(s, index, s.values[index])


def _with_norm(s: Lowering, index: int, norm: int, places: dict[str, Place]) -> dict[str, Value]:
    """The constants and places of the norm before a matvec, which keeps its value for others."""
    analysis, node = s.analysis, s.analysis.node(norm)
    places |= {k: s.place(i) for k, i in zip(("x", "gain", "shift"), node.inputs, strict=False)}
    two = pair(analysis, index)
    own = {index, two.gate} if two else {index}
    s.late.pop(norm)
    keep = bool(set(analysis.users[norm]) - own)
    s.note(norm, f"in {analysis.node(index).origin}", "its first reader is a product of few rows")
    if keep:
        places["kept"] = s.make(norm)
    return norm_constants(node) | {"keep": int(keep)}


# Many rows --------------------------------------------------------------------------------------


def product(s: Lowering, index: int) -> None:
    """A product by the library; its epilogue goes into its reader, or into one more launch."""
    analysis, node = s.analysis, s.analysis.node(index)
    two = pair(analysis, index)
    if two is not None:
        _gated(s, index, two)
        return
    x, weight = node.inputs[:2]
    ends = epilogue(analysis, node)
    waits = ends is not None and takes(analysis, index, ends)
    if waits:
        assert ends is not None
        y = Array(s.writer.buffer(node.origin, elements(node.shape) * s.t.size), s.t)
        s.raws[index] = Raw(y.place, ends.bias, ends.residual)
        s.late[index] = lambda: _settle(s, index)
        reader = analysis.node(analysis.users[index][0]).origin
        s.note(index, f"epilogue in {reader}", "that reads it first")
    else:
        s.make(index, s.result_type(index))
        y = s.values[index]
    rows, n = node.shape
    multiply(s, node.origin, s.read(x), right(s, weight), y, (rows, n, analysis.shape(x)[1]))
    if node.expr is not None and not waits:
        finish(s, index, y)


def _gated(s: Lowering, index: int, two: GatedMatmuls) -> None:
    """Gate and up as one product of twice the width, and what is between them."""
    analysis, node = s.analysis, s.analysis.node(index)
    x, up = node.inputs[:2]
    gate = analysis.node(two.gate).inputs[1]
    (rows, n), k = node.shape, analysis.shape(x)[1]
    why = "neighbours" if two.bytes else "made plain side by side"
    s.note(index, "gate and up are one product", f"their weights are {why}")
    both = Array(s.writer.buffer(f"{node.origin}: both", 2 * rows * n * s.t.size), s.t)
    if two.bytes:
        s.adjacent[analysis.table[gate], analysis.table[up], two.bytes] = None
    w = s.array(gate)
    if analysis.form(up) is not None:
        w = Array(s.writer.buffer(f"{node.origin}: weights", 2 * n * k * s.t.size), s.t)
        dequantize(s, gate, w.place, 2 * n if two.bytes else n)
        if not two.bytes:
            dequantize(s, up, behind(w.place, n * k * s.t.size), n)
    multiply(s, node.origin, s.read(x), Right(w, True), both, (rows, 2 * n, k))
    skip, lengths = s.skipping(index)
    constants: dict[str, Value] = {"t": s.t, "rows": rows, "n": n, "pitch": 2 * n, "act": two.act}
    places = {"gate": both.place, "up": behind(both.place, n * s.t.size), **lengths}
    s.writer.call("gated", node.origin, {**constants, **skip}, **places, y=s.make(index))


@dataclass(frozen=True, slots=True)
class Right:
    """The right factor of a product: [k, n], or transposed, its columns as rows, [n, k]."""

    array: Array
    transposed: bool


def multiply(
    s: Lowering,
    origin: str,
    x: Array,
    w: Right,
    y: Array,
    extents: tuple[int, int, int],
    batch: int = 1,
) -> None:
    """Y [m, n] = x [m, k] w of whole matrices, or of `batch` of each; extents are (m, n, k)."""
    m, n, k = extents
    strides = {"stride_a": m * k, "stride_b": k * n, "stride_c": m * n} if batch > 1 else {}
    s.writer.gemm(
        origin,
        x.place,
        w.array.place,
        y.place,
        m=m,
        n=n,
        k=k,
        lda=k,
        ldb=k if w.transposed else n,
        ldc=n,
        batch=batch,
        **strides,
        transposed=w.transposed,
        dtype=x.dtype,
        out=y.dtype,
        tf32=s.analysis.tf32 and x.dtype is DType.F32,
    )


def right(s: Lowering, index: int) -> Right:
    """A node as the right factor; quantised weights are made plain."""
    analysis = s.analysis
    if not analysis.is_matrix(index) or analysis.form(index) is None:
        return Right(s.read(index), analysis.is_matrix(index))
    k, n = analysis.shape(index)
    place = s.writer.buffer(f"{analysis.node(index).origin}: plain", n * k * s.t.size)
    dequantize(s, index, place, n)
    return Right(Array(place, s.t), True)


def dequantize(s: Lowering, index: int, to: Place, n: int) -> None:
    """Launch the unpacking of n outputs of quantised weights."""
    form, k = s.analysis.form(index), s.analysis.shape(index)[0]
    assert form is not None
    constants: dict[str, Value] = {"t": s.t, "n": n, "k": k, "bits": form.bits}
    constants |= {"halves": int(form.halves), "offsets": int(form.offsets)}
    s.writer.call("dequantize", s.analysis.node(index).origin, constants, w=s.place(index), y=to)


def _settle(s: Lowering, index: int) -> None:
    """Do the epilogue of a product whose reader turned out to need its value."""
    raw = s.raws.pop(index)
    s.values[index] = Array(raw.place, s.t)
    finish(s, index, s.values[index])


def finish(s: Lowering, index: int, made: Array) -> None:
    """The whole epilogue of a product in a launch of its own, in place."""
    node = s.analysis.node(index)
    assert node.expr is not None
    inputs = node.inputs[2:]
    operands = [(made, node.shape), *((s.array(i), s.analysis.shape(i)) for i in inputs)]
    s.elementwise(index, _over_operands(node.expr), operands, made)


def _over_operands(expr: Expr) -> Expr:
    """An epilogue with the product as its first operand."""

    def leaf(one: Expr) -> Expr:
        match one:
            case Acc():
                return In(0)
            case In(index):
                return In(index + 1)
            case _:
                return one

    return rewrite(expr, leaf)


def dot(s: Lowering, index: int) -> None:
    """A common product, of matrices or of a batch of them."""
    analysis, node = s.analysis, s.analysis.node(index)
    a, b = node.inputs
    k, n = analysis.shape(a)[-1], node.shape[-1]
    flat = len(analysis.shape(b)) == 2
    batch = 1 if flat else elements(node.shape[:-2])
    rows = elements(node.shape) // n // batch
    x, w = s.read(a), right(s, b)
    s.make(index, s.result_type(index))
    multiply(s, node.origin, x, w, s.values[index], (rows, n, k), batch)
