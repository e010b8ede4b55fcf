"""Fusion: which operations share a launch. Nothing here writes one."""

from __future__ import annotations

from dataclasses import dataclass

from rlx_ray.compiler.cuda.analysis import FEW_ROWS, ProgramAnalysis
from rlx_ray.compiler.cuda.constants import SHARED, Value
from rlx_ray.compiler.cuda.kernel_table import named
from rlx_ray.compiler.cuda.launches import ALIGNMENT
from rlx_ray.compiler.ir.expr import Acc, Expr, Fn, In
from rlx_ray.compiler.ir.mir import Node, Op
from rlx_ray.shape import elements
from rlx_ray.weights.formats import TILE

REREAD = 8 << 20
"""Bytes of normed rows that the blocks of a product may read, all together: each block norms for
itself, and beyond this that takes longer than a launch of the norm."""

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


def epilogue(analysis: ProgramAnalysis, node: Node) -> Epilogue | None:
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
        vectors = [i for i in rest if analysis.shape(node.inputs[2 + i]) != node.shape]
        before, after = vectors, [i for i in rest if i not in vectors]
    biases, residuals = ([node.inputs[2 + i] for i in part] for part in (before, after))
    fits = len(biases) <= 1 and len(residuals) <= 1
    fits &= all(analysis.node(i).op is Op.PARAM and len(analysis.shape(i)) == 1 for i in biases)
    fits &= all(analysis.node(i).op is not Op.PARAM for i in residuals)
    fits &= all(analysis.shape(i) == node.shape for i in residuals)
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
class GatedMatmuls:
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


def pair(analysis: ProgramAnalysis, index: int) -> GatedMatmuls | None:
    """The pair whose value a matmul has, if it is one and its kernels can read it."""
    node = analysis.node(index)
    match node.expr:
        case Fn("mul", (Acc(), Fn(act, (In(0),)))) | Fn("mul", (Fn(act, (In(0),)), Acc())):
            pass
        case _:
            return None
    if act not in ACTIVATIONS or len(node.inputs) != 3:
        return None
    x, up, gate = node.inputs
    other = analysis.node(gate)
    if other.op is not Op.MATMUL or other.expr is not None or analysis.users[gate] != (index,):
        return None
    first = other.inputs[1]
    if (
        other.inputs[0] != x
        or analysis.shape(first) != analysis.shape(up)
        or analysis.is_output(gate)
    ):
        return None
    coded = analysis.form(first) is not None and analysis.form(up) is not None
    few, whole = node.shape[0] <= FEW_ROWS, node.shape[1] % TILE == 0
    size = _neighbours(analysis, first, up) if whole or not (few or coded) else 0
    if size == 0 and (few or not coded):
        return None
    return GatedMatmuls(gate, ACTIVATIONS[act], size)


def _neighbours(analysis: ProgramAnalysis, first: int, second: int) -> int:
    """Bytes of a matrix that another one of its format directly follows; 0 if none does."""
    form = analysis.form(first)
    if second != first + 1 or form != analysis.form(second) or not analysis.is_matrix(first):
        return 0
    k, n = analysis.shape(first)
    size = n * k * analysis.t.size if form is None else form.tiled_bytes(k, n)
    return size if size % ALIGNMENT == 0 else 0


def is_gate(analysis: ProgramAnalysis, index: int) -> bool:
    """Whether a matmul is the gate of a pair, which its partner computes."""
    users = analysis.users[index]
    if len(users) != 1 or analysis.node(users[0]).op is not Op.MATMUL:
        return False
    found = pair(analysis, users[0])
    return found is not None and found.gate == index


# Norms ------------------------------------------------------------------------------------------


def matvec_constants(analysis: ProgramAnalysis, index: int, ends: Epilogue) -> dict[str, Value]:
    """The constants of a matvec without a norm."""
    node = analysis.node(index)
    k = analysis.shape(node.inputs[0])[1]
    made: dict[str, Value] = {"t": analysis.t, "rows": node.shape[0], "n": node.shape[1], "k": k}
    form = analysis.form(node.inputs[1])
    if form is not None:
        made |= {"bits": form.bits, "halves": int(form.halves), "offsets": int(form.offsets)}
    made |= {"bias": int(ends.bias is not None), "residual": int(ends.residual is not None)}
    made |= {"gated": 1} if pair(analysis, index) else {}
    return made | ({"act": ends.act} if ends.act else {})


def norm_constants(node: Node) -> dict[str, Value]:
    """Those of the norm before it."""
    eps = node.attr("eps")
    assert isinstance(eps, float)
    return {"norm": NORMS[node.op], "eps": eps}


def norm_for(analysis: ProgramAnalysis, norm: int) -> int | None:
    """The matvec that computes a norm: its first reader, if it is one, and has room and time."""
    node = analysis.node(norm)
    if node.op not in NORMS or len(node.shape) != 2 or node.shape[0] > FEW_ROWS:
        return None
    if analysis.is_output(norm) or not analysis.users[norm]:
        return None
    index = analysis.users[norm][0]
    index = analysis.users[index][0] if is_gate(analysis, index) else index
    reader = analysis.node(index)
    if reader.op is not Op.MATMUL or not analysis.is_matrix(reader.inputs[1]):
        return None
    if reader.inputs[0] != norm:
        return None
    constants = matvec_constants(analysis, index, Epilogue()) | norm_constants(node)
    how = named("matvec", **constants).launch
    reread = -(-reader.shape[1] // TILE) * elements(node.shape) * analysis.t.size
    return index if how.shared <= SHARED and reread <= REREAD else None


def takes(analysis: ProgramAnalysis, index: int, ends: Epilogue) -> bool:
    """Whether the first reader of a product does its epilogue: a norm, or attention its bias."""
    bare = ends == Epilogue()
    if bare or ends.act or analysis.is_output(index) or not analysis.users[index]:
        return False
    reader = analysis.node(analysis.users[index][0])
    if reader.inputs[0] != index:
        return False
    if reader.op in NORMS:
        return len(reader.shape) == 2 and reader.shape[0] > FEW_ROWS
    only = len(analysis.users[index]) == 1 and ends.residual is None
    return only and reader.op in (Op.ATTENTION, Op.ROPE_CACHE)
