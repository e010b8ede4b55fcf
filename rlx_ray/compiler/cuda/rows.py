"""Operations on rows: norms, embeddings, pooling, rows to unit length, softmax."""

from __future__ import annotations

from rlx_ray.compiler.cuda.analysis import ProgramAnalysis
from rlx_ray.compiler.cuda.constants import Value
from rlx_ray.compiler.cuda.fusion import norm_for
from rlx_ray.compiler.cuda.state import Array, Lowering, Ragged
from rlx_ray.compiler.cuda.writer import Place
from rlx_ray.compiler.ir.mir import Node, Op
from rlx_ray.compiler.passes.operands import POOLS, grid
from rlx_ray.dtype import DType

_TOKENS = {Op.ATTENTION: "keys", Op.GATHER: "period", Op.POOL: "tokens"}
"""Attributes that say how many tokens a sequence has at most."""


def find_starts(s: Lowering) -> None:
    """Where the sequences of a ragged program begin, from the lengths of each run."""
    analysis, size = s.analysis, DType.I32.size
    made = Ragged(
        s.writer.buffer("starts", (analysis.batch + 1) * size),
        s.writer.buffer("rows", size),
        s.writer.buffer("places", analysis.rows * size),
    )
    longest = max(n.number(_TOKENS[n.op]) for n in analysis.mir.nodes if n.op in _TOKENS)
    constants: dict[str, Value] = {"batch": analysis.batch, "seq": longest, "rows": analysis.rows}
    places = {"lengths": s.lengths, "starts": made.starts, "rows": made.rows, "places": made.places}
    s.writer.call("starts", "starts", constants, **places)
    s.ragged = made


def norm(s: Lowering, index: int) -> None:
    """A layer norm or RMS norm; it waits where a `matvec` can compute it."""
    if norm_for(s.analysis, index) is None:
        _norm(s, index)
    else:
        s.late[index] = lambda: _norm(s, index)


def _norm(s: Lowering, index: int) -> None:
    """The launch, of a value or of a product that waits for its bias and residual."""
    node = s.analysis.node(index)
    x, *gains = node.inputs
    rows, n = grid(node.shape)
    eps = node.attr("eps")
    assert isinstance(eps, float)
    skip, places = s.skipping(index)
    constants: dict[str, Value] = {"t": s.t, "rows": rows, "n": n, "eps": eps, **skip}
    raw = s.take(x)
    if raw.bias is not None:
        constants["bias"], places["bias"] = 1, s.place(raw.bias)
    if raw.residual is not None:
        constants["residual"], places["residual"] = 1, s.place(raw.residual)
    if x not in s.values and s.analysis.users[x] != (index,):
        s.values[x] = Array(raw.place, s.t)
        constants["sum"], places["sum"] = 1, raw.place
    places |= {k: s.place(i) for k, i in zip(("gain", "shift"), gains, strict=False)}
    places |= {"x": raw.place, "y": s.make(index)}
    s.writer.call(node.op.value, node.origin, constants, **places)


def gather(s: Lowering, index: int) -> None:
    """Rows of embedding tables; what is summed is read in one launch."""
    if index in s.analysis.inner:
        return
    analysis, node, chain = s.analysis, s.analysis.node(index), s.analysis.gathers[index]
    rows, n = node.shape
    skip, places = s.skipping(index)
    constants: dict[str, Value] = {"t": s.t, "rows": rows, "n": n, **skip}
    named = _words(analysis, [i for i in chain if analysis.node(i).number("ids")])
    for (table, ids, extent), one in zip(_ROLES, named, strict=False):
        own, which, *_ = analysis.node(one).inputs
        constants[extent] = analysis.shape(own)[0]
        places |= {table: s.place(own), ids: s.place(which)}
        constants |= {"q8": 1} if analysis.is_coded(own) else {}
    for one in chain:
        if not analysis.node(one).number("ids"):
            constants |= _positions(analysis, analysis.node(one))
            places |= {"position": s.place(analysis.node(one).inputs[0]), "lengths": s.lengths}
            places |= {"places": s.ragged.places} if s.ragged else {}
    if analysis.node(chain[-1]).number("base"):
        constants["base"], places["base"] = 1, s.place(analysis.node(chain[-1]).inputs[-1])
    places["y"] = s.make(index)
    if "position" in places:
        s.zero_padding(index)
    s.writer.call("embed", node.origin, constants, **places)


_ROLES = (("word", "ids", "vocab"), ("kind", "types", "types"))
"""Arguments and constants of `embed` for a first and a second table that is read by ids."""


def _words(analysis: ProgramAnalysis, chain: list[int]) -> list[int]:
    """Gathers by ids in their order, but one of a table of 8 bits first: only `word` may be one."""
    return sorted(chain, key=lambda i: (not analysis.is_coded(analysis.node(i).inputs[0]), i))


def _positions(analysis: ProgramAnalysis, node: Node) -> dict[str, Value]:
    extent = analysis.shape(node.inputs[0])[0]
    ragged = analysis.rows if analysis.ragged else 0
    seq = ragged or node.number("period")
    return {"seq": seq, "ragged": ragged, "positions": extent, "first": node.number("first")}


def take(s: Lowering, index: int) -> None:
    """Rows of a table, of the common lowering."""
    table, ids = s.analysis.node(index).inputs
    rows, n = grid(s.analysis.shape(index))
    coded = s.analysis.is_coded(table)
    t = s.t if coded else s.array(table).dtype
    constants: dict[str, Value] = {
        "t": t,
        "rows": rows,
        "n": n,
        "vocab": s.analysis.shape(table)[0],
    }
    constants["q8"] = int(coded)
    places: dict[str, Place] = {"word": s.place(table), "ids": s.place(ids)}
    s.writer.call("embed", s.analysis.node(index).origin, constants, **places, y=s.make(index, t))


def pool(s: Lowering, index: int) -> None:
    """Token rows to one row a sequence; what only brings it to unit length does it too."""
    if not _ends_in_unit(s.analysis, index):
        _pool(s, index, index)


def unit_length(s: Lowering, index: int) -> None:
    """Rows to unit length, together with the pooling before it."""
    analysis, x = s.analysis, s.analysis.units[index]
    if analysis.node(x).op is Op.POOL and _ends_in_unit(analysis, x):
        _pool(s, x, index)
        return
    rows, n = grid(analysis.shape(index))
    own, out = s.array(x), s.result_type(index)
    constants: dict[str, Value] = {"t": own.dtype, "rows": rows, "n": n, "out": out}
    s.writer.call("l2", analysis.node(index).origin, constants, x=own.place, y=s.make(index, out))


def _ends_in_unit(analysis: ProgramAnalysis, index: int) -> bool:
    """Whether nothing but a unit-length pattern reads a value."""
    last = next((last for last, x in analysis.units.items() if x == index), None)
    own = analysis.inner | {last}
    return last is not None and set(analysis.users[index]) <= own and not analysis.is_output(index)


def _pool(s: Lowering, index: int, last: int) -> None:
    """Pooling at one node; the value is that of another one where it has unit length."""
    node = s.analysis.node(index)
    batch, n = node.shape
    out = s.result_type(last)
    ragged, lengths = s.spans
    constants: dict[str, Value] = {"t": s.t, "batch": batch, "seq": node.number("tokens"), "n": n}
    constants |= ragged
    constants |= {"pool": POOLS[str(node.attr("kind"))], "l2": int(last != index), "out": out}
    origin = s.analysis.node(last).origin
    places = {"x": s.place(node.inputs[0]), **lengths}
    s.writer.call("pool", origin, constants, **places, y=s.make(last, out))


def softmax(s: Lowering, index: int) -> None:
    """Softmax of rows."""
    node = s.analysis.node(index)
    (rows, n), x = grid(node.shape), s.array(node.inputs[0])
    constants: dict[str, Value] = {"t": x.dtype, "rows": rows, "n": n, "out": s.type_of(index)}
    s.writer.call("softmax", node.origin, constants, x=x.place, y=s.make(index))
