"""Products: `matvec` for few rows, the device's library for more, and what becomes of epilogues."""

from __future__ import annotations

from dataclasses import dataclass

from rlx_ray.dtype import DType
from rlx_ray.ir.cuda_kernels import named
from rlx_ray.ir.cuda_launch import Value
from rlx_ray.ir.expr import Acc, Expr, Fn, In, rewrite
from rlx_ray.ir.launches import ALIGNMENT
from rlx_ray.ir.mir import Node, Op
from rlx_ray.matrix import TILE
from rlx_ray.passes.cuda.facts import FEW_ROWS, Facts
from rlx_ray.passes.cuda.state import Array, Raw, State
from rlx_ray.passes.cuda.writer import Place, behind
from rlx_ray.shape import elements

SHARED = 99 << 10
"""Bytes of shared memory that a block has on the smallest of the architectures."""

ACTIVATIONS = {"gelu": "vgelu", "gelu_tanh": "vgelu_tanh", "silu": "vsilu", "relu": "vrelu"}
"""Scalar functions that kernels take as a constant, as kernels/cuda/math.cuh names them."""

NORMS = {Op.RMS_NORM: 1, Op.LAYER_NORM: 2}
"""The constant `norm` of `matvec`."""


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What is done to a product: act(acc + bias) + residual; nodes, or None where there is none."""

    bias: int | None = None
    act: str = ""
    residual: int | None = None


def epilogue(facts: Facts, node: Node) -> Epilogue | None:
    """The epilogue of a matmul, if kernels know it by its parts."""
    if node.expr is None:
        return Epilogue()
    outer = _terms(node.expr)
    if outer is None:
        return None
    inner, rest = outer
    act = ""
    if isinstance(inner, Fn):
        own = _terms(inner.args[0])
        if inner.name not in ACTIVATIONS or own is None or own[0] != Acc():
            return None
        act = ACTIVATIONS[inner.name]
        before, after = own[1], rest
    elif inner != Acc():
        return None
    else:
        vectors = [i for i in rest if facts.shape(node.inputs[2 + i]) != node.shape]
        before, after = vectors, [i for i in rest if i not in vectors]
    biases, residuals = ([node.inputs[2 + i] for i in part] for part in (before, after))
    fits = len(biases) <= 1 and len(residuals) <= 1
    fits &= all(facts.node(i).op is Op.PARAM and len(facts.shape(i)) == 1 for i in biases)
    fits &= all(facts.node(i).op is not Op.PARAM for i in residuals)
    fits &= all(facts.shape(i) == node.shape for i in residuals)
    return Epilogue(next(iter(biases), None), act, next(iter(residuals), None)) if fits else None


def _terms(expr: Expr) -> tuple[Expr, list[int]] | None:
    """A sum as the one term that is no operand, and its operands; None if it is no such sum."""
    terms, operands, others = [expr], [], []
    while terms:
        match terms.pop():
            case Fn("add", (a, b)):
                terms += [a, b]
            case In(index):
                operands.append(index)
            case other:
                others.append(other)
    return (others[0], operands) if len(others) == 1 else None


@dataclass(frozen=True, slots=True)
class Pair:
    """Gate and up of a gated feed-forward: act(x gate) * (x up), with one weight behind the other.

    Attributes:
        gate: the gate's matmul; that of up, which comes later, has its value.
        act: as math.cuh names it.
        bytes: of the gate's weights, where those of up are read as their continuation; 0 where
            both are quantised and made plain one by one.
    """

    gate: int
    act: str
    bytes: int


def pair(facts: Facts, index: int) -> Pair | None:
    """The pair whose value a matmul has, if it is one and its kernels can read it."""
    node = facts.node(index)
    match node.expr:
        case Fn("mul", (Acc(), Fn(act, (In(0),)))) | Fn("mul", (Fn(act, (In(0),)), Acc())):
            pass
        case _:
            return None
    if act not in ACTIVATIONS or len(node.inputs) != 3:
        return None
    x, up, gate = node.inputs
    other = facts.node(gate)
    if other.op is not Op.MATMUL or other.expr is not None or facts.users[gate] != (index,):
        return None
    first = other.inputs[1]
    if other.inputs[0] != x or facts.shape(first) != facts.shape(up) or facts.is_output(gate):
        return None
    coded = facts.form(first) is not None and facts.form(up) is not None
    few, whole = node.shape[0] <= FEW_ROWS, node.shape[1] % TILE == 0
    size = _neighbours(facts, first, up) if whole or not (few or coded) else 0
    if size == 0 and (few or not coded):
        return None
    return Pair(gate, ACTIVATIONS[act], size)


def _neighbours(facts: Facts, first: int, second: int) -> int:
    """Bytes of a matrix that another one of its format directly follows; 0 if none does."""
    form = facts.form(first)
    if second != first + 1 or form != facts.form(second) or not facts.is_matrix(first):
        return 0
    k, n = facts.shape(first)
    size = n * k * facts.t.size if form is None else form.tiled_bytes(k, n)
    return size if size % ALIGNMENT == 0 else 0


def is_gate(facts: Facts, index: int) -> bool:
    """Whether a matmul is the gate of a pair, which its partner computes."""
    users = facts.users[index]
    if len(users) != 1 or facts.node(users[0]).op is not Op.MATMUL:
        return False
    found = pair(facts, users[0])
    return found is not None and found.gate == index


def matmul(s: State, index: int) -> None:
    """Launches of a native matmul."""
    node = s.facts.node(index)
    if is_gate(s.facts, index):
        return
    if node.shape[0] <= FEW_ROWS and s.facts.is_matrix(node.inputs[1]):
        matvec(s, index)
    else:
        product(s, index)


# Few rows ---------------------------------------------------------------------------------------


def matvec(s: State, index: int) -> None:
    """One launch, with the norm before it and the epilogue behind it."""
    facts, node = s.facts, s.facts.node(index)
    two = pair(facts, index)
    x, weight = node.inputs[0], node.inputs[1]
    if two is not None:
        weight = facts.node(two.gate).inputs[1]
        s.adjacent[facts.table[weight], facts.table[node.inputs[1]], two.bytes] = None
    ends = Epilogue(act=two.act) if two else epilogue(facts, node)
    constants = _matvec(facts, index, ends or Epilogue())
    places: dict[str, Place] = {"w": s.place(weight)}
    if ends and ends.bias is not None:
        places["bias"] = s.place(ends.bias)
    if ends and ends.residual is not None:
        places["residual"] = s.array(ends.residual).place
    if x in s.late and norm_for(facts, x) == index:
        constants |= _with_norm(s, index, x, places)
    else:
        places["x"] = s.place(x)
    out = s.result_type(index)
    places["y"] = s.make(index, out)
    s.writer.call("matvec", node.origin, {**constants, "out": out}, **places)
    if ends is None:
        finish(s, index, s.values[index])


def _matvec(facts: Facts, index: int, ends: Epilogue) -> dict[str, Value]:
    """The constants of a matvec without a norm."""
    node = facts.node(index)
    k = facts.shape(node.inputs[0])[1]
    made: dict[str, Value] = {"t": facts.t, "rows": node.shape[0], "n": node.shape[1], "k": k}
    form = facts.form(node.inputs[1])
    if form is not None:
        made |= {"bits": form.bits, "halves": int(form.halves), "offsets": int(form.offsets)}
    made |= {"bias": int(ends.bias is not None), "residual": int(ends.residual is not None)}
    made |= {"gated": 1} if pair(facts, index) else {}
    return made | ({"act": ends.act} if ends.act else {})


def _with_norm(s: State, index: int, norm: int, places: dict[str, Place]) -> dict[str, Value]:
    """The constants and places of the norm before a matvec, which keeps its value for others."""
    facts, node = s.facts, s.facts.node(norm)
    places |= {k: s.place(i) for k, i in zip(("x", "gain", "shift"), node.inputs, strict=False)}
    two = pair(facts, index)
    own = {index, two.gate} if two else {index}
    s.late.pop(norm)
    keep = bool(set(facts.users[norm]) - own)
    if keep:
        places["kept"] = s.make(norm)
    return _norm_constants(node) | {"keep": int(keep)}


def _norm_constants(node: Node) -> dict[str, Value]:
    eps = node.attr("eps")
    assert isinstance(eps, float)
    return {"norm": NORMS[node.op], "eps": eps}


def norm_for(facts: Facts, norm: int) -> int | None:
    """The matvec that computes a norm: its first reader, if it is one and has the room."""
    node = facts.node(norm)
    if node.op not in NORMS or len(node.shape) != 2 or node.shape[0] > FEW_ROWS:
        return None
    if facts.is_output(norm) or not facts.users[norm]:
        return None
    index = facts.users[norm][0]
    index = facts.users[index][0] if is_gate(facts, index) else index
    reader = facts.node(index)
    if reader.op is not Op.MATMUL or not facts.is_matrix(reader.inputs[1]):
        return None
    if reader.inputs[0] != norm:
        return None
    constants = _matvec(facts, index, Epilogue()) | _norm_constants(node)
    return index if named("matvec", **constants).launch.shared <= SHARED else None


# Many rows --------------------------------------------------------------------------------------


def product(s: State, index: int) -> None:
    """A product by the library; its epilogue goes into its reader, or into one more launch."""
    facts, node = s.facts, s.facts.node(index)
    two = pair(facts, index)
    if two is not None:
        _gated(s, index, two)
        return
    x, weight = node.inputs[:2]
    ends = epilogue(facts, node)
    waits = ends is not None and node.expr is not None and takes(facts, index, ends)
    out = s.result_type(index)
    if waits:
        assert ends is not None
        place: Place = s.writer.buffer(node.origin, elements(node.shape) * s.t.size)
        s.raws[index] = Raw(place, ends.bias, ends.residual)
        s.late[index] = lambda: _settle(s, index)
    else:
        place = s.make(index, out)
    rows, n = node.shape
    w, transposed = weights(s, weight)
    multiply(s, node.origin, s.array(x), w, place, (rows, n, facts.shape(x)[1]), out, transposed)
    if node.expr is not None and not waits:
        finish(s, index, s.values[index])


def _gated(s: State, index: int, two: Pair) -> None:
    """Gate and up as one product of twice the width, and what is between them."""
    facts, node = s.facts, s.facts.node(index)
    x, up = node.inputs[:2]
    gate = facts.node(two.gate).inputs[1]
    (rows, n), k = node.shape, facts.shape(x)[1]
    both = s.writer.buffer(f"{node.origin}: both", 2 * rows * n * s.t.size)
    if two.bytes:
        s.adjacent[facts.table[gate], facts.table[up], two.bytes] = None
    w = s.array(gate)
    if facts.form(up) is not None:
        w = Array(s.writer.buffer(f"{node.origin}: weights", 2 * n * k * s.t.size), s.t)
        dequantize(s, gate, w.place, 2 * n if two.bytes else n)
        if not two.bytes:
            dequantize(s, up, behind(w.place, n * k * s.t.size), n)
    multiply(s, node.origin, s.array(x), w, both, (rows, 2 * n, k), s.t, True)
    skip, lengths = s.skipping(node.shape)
    constants: dict[str, Value] = {"t": s.t, "rows": rows, "n": n, "pitch": 2 * n, "act": two.act}
    up_half = behind(both, n * s.t.size)
    y = s.make(index)
    s.writer.call(
        "gated", node.origin, {**constants, **skip}, gate=both, up=up_half, **lengths, y=y
    )


def multiply(
    s: State,
    origin: str,
    x: Array,
    w: Array,
    y: Place,
    extents: tuple[int, int, int],
    out: DType,
    transposed: bool,
    batch: int = 1,
) -> None:
    """A product of `batch` whole matrices: x [m, k], w [k, n] or, transposed, [n, k]."""
    m, n, k = extents
    strides = {"stride_a": m * k, "stride_b": k * n, "stride_c": m * n} if batch > 1 else {}
    s.writer.gemm(
        origin,
        x.place,
        w.place,
        y,
        m=m,
        n=n,
        k=k,
        lda=k,
        ldb=k if transposed else n,
        ldc=n,
        batch=batch,
        **strides,
        transposed=transposed,
        dtype=x.dtype,
        out=out,
        tf32=s.facts.tf32 and x.dtype is DType.F32,
    )


def weights(s: State, index: int) -> tuple[Array, bool]:
    """The right operand of a library's product, and whether it holds its columns as rows."""
    facts = s.facts
    if not facts.is_matrix(index) or facts.form(index) is None:
        return s.array(index), facts.is_matrix(index)
    k, n = facts.shape(index)
    place = s.writer.buffer(f"{facts.node(index).origin}: plain", n * k * s.t.size)
    dequantize(s, index, place, n)
    return Array(place, s.t), True


def dequantize(s: State, index: int, to: Place, n: int) -> None:
    """Launch the unpacking of n outputs of quantised weights."""
    form, k = s.facts.form(index), s.facts.shape(index)[0]
    assert form is not None
    constants: dict[str, Value] = {"t": s.t, "n": n, "k": k, "bits": form.bits}
    constants |= {"halves": int(form.halves), "offsets": int(form.offsets)}
    s.writer.call("dequantize", s.facts.node(index).origin, constants, w=s.place(index), y=to)


def takes(facts: Facts, index: int, ends: Epilogue) -> bool:
    """Whether the first reader of a product does its epilogue: a norm, or attention its bias."""
    if ends.act or facts.is_output(index) or not facts.users[index]:
        return False
    reader = facts.node(facts.users[index][0])
    if reader.inputs[0] != index:
        return False
    if reader.op in NORMS:
        return len(reader.shape) == 2 and reader.shape[0] > FEW_ROWS
    only = len(facts.users[index]) == 1 and ends.residual is None
    return only and reader.op in (Op.ATTENTION, Op.ROPE_CACHE)


def _settle(s: State, index: int) -> None:
    """Do the epilogue of a product whose reader turned out to need its value."""
    raw = s.raws.pop(index)
    s.values[index] = Array(raw.place, s.t)
    finish(s, index, s.values[index])


def finish(s: State, index: int, made: Array) -> None:
    """The whole epilogue of a product in a launch of its own, in place."""
    node = s.facts.node(index)
    assert node.expr is not None
    inputs = node.inputs[2:]
    operands = [(made, node.shape), *((s.array(i), s.facts.shape(i)) for i in inputs)]
    s.elementwise(node.origin, _over_operands(node.expr), operands, node.shape, made)


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


def dot(s: State, index: int) -> None:
    """A common product, of matrices or of a batch of them."""
    facts, node = s.facts, s.facts.node(index)
    a, b = node.inputs
    k, n = facts.shape(a)[-1], node.shape[-1]
    flat = len(facts.shape(b)) == 2
    batch = 1 if flat else elements(node.shape[:-2])
    rows = elements(node.shape) // n // batch
    w, transposed = weights(s, b)
    out = s.result_type(index)
    x, y = s.array(a), s.make(index, out)
    multiply(s, node.origin, x, w, y, (rows, n, k), out, transposed, batch)
