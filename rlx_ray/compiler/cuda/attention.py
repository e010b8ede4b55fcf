"""Attention, of encoders and over the paged key-value cache."""

from __future__ import annotations

from rlx_ray.artifact.launch_plan import Address
from rlx_ray.compiler.cuda.analysis import ProgramAnalysis
from rlx_ray.compiler.cuda.constants import Value
from rlx_ray.compiler.cuda.kernel_table import named
from rlx_ray.compiler.cuda.state import Lowering
from rlx_ray.compiler.cuda.writer import Place
from rlx_ray.compiler.ir.mir import Node, Note, Op
from rlx_ray.shape import PAGE, elements

_FEW_TILES = 66
"""Tiles of rows that leave most of a device idle, so that keys are split too."""

_LONG_TABLE = 8
"""Pages from which on that is worth a second launch."""

_QUERIES = 16
"""Rows of queries of a tile in decode.cuh."""


def attention(s: Lowering, index: int) -> None:
    """Attention within sequences of whole rows."""
    node = s.analysis.node(index)
    heads = node.number("heads")
    raw = s.take(node.inputs[0])
    ragged, lengths = s.spans
    constants: dict[str, Value] = {"t": s.t, "batch": s.analysis.batch, "seq": node.number("keys")}
    constants |= {"heads": heads, "kv_heads": heads, "dim": node.number("dim"), **ragged}
    constants["bias"] = int(raw.bias is not None)
    places = {"qkv": raw.place, "bias": s.place(raw.bias), **lengths}
    out = s.make(index)
    s.zero_padding(index)
    s.writer.call("attention", node.origin, constants, **places, out=out)


def page_bytes(analysis: ProgramAnalysis) -> int:
    """Bytes of a page of the cache; 0 for a program without one."""
    for node in analysis.mir.nodes:
        if node.op in (Op.ROPE_CACHE, Op.CACHE_WRITE):
            return node.number("layers") * layer_elements(node) * analysis.t.size
    return 0


def layer_elements(node: Node) -> int:
    """Numbers of a page that are one layer's: keys and values of its heads."""
    return node.number("kv_heads") * 2 * PAGE * node.number("dim")


def cache(s: Lowering, node: Node) -> tuple[dict[str, Value], Place]:
    """The constants of a layer's part of the cache, and where it begins in page 0."""
    own = layer_elements(node)
    table = s.analysis.shape(_tables(node)[2])[1]
    constants: dict[str, Value] = {"kv_heads": node.number("kv_heads"), "dim": node.number("dim")}
    constants |= {"table": table, "page_stride": node.number("layers") * own}
    return constants, Address("cache", node.number("layer") * own * s.t.size)


def _tables(node: Node) -> tuple[int, ...]:
    """Lengths, past and pages among the inputs of an operation on the cache."""
    return node.inputs[3:6] if node.op is Op.CACHE_WRITE else node.inputs[1:4]


def tables(s: Lowering, node: Node) -> dict[str, Place]:
    """The arguments that say where in the cache a sequence's tokens are."""
    return {
        name: s.place(i)
        for name, i in zip(("lengths", "past", "pages"), _tables(node), strict=True)
    }


def rope_cache(s: Lowering, index: int) -> None:
    """Queries turned, keys and values into the cache; the step of one token does it by itself."""
    if _step_of(s.analysis, index) is not None:
        return
    node = s.analysis.node(index)
    constants, places = _cos_sin(s, node)
    rows, seq = node.shape[0], node.number("tokens")
    given: dict[str, Value] = {"t": s.t, "rows": rows, "seq": seq, **constants}
    q = s.make(index)
    s.zero_padding(index)
    s.writer.call("rope", node.origin, given, **places, q=q)


def _step_of(analysis: ProgramAnalysis, index: int) -> int | None:
    """The attention that is one launch with a `rope_cache`: of one token, its only reader."""
    node, users = analysis.node(index), analysis.users[index]
    if node.number("tokens") != 1 or len(users) != 1 or analysis.is_output(index):
        return None
    return users[0] if analysis.node(users[0]).op is Op.CACHED_ATTENTION else None


def _cos_sin(s: Lowering, node: Node) -> tuple[dict[str, Value], dict[str, Place]]:
    """Constants and arguments that turning heads and keeping keys takes."""
    cos_sin, *gains = node.inputs[4:]
    raw = s.take(node.inputs[0])
    eps = node.attr("eps")
    assert isinstance(eps, float)
    constants, place = cache(s, node)
    constants |= {"heads": node.number("heads"), "positions": s.analysis.shape(cos_sin)[0]}
    constants |= {"bias": int(raw.bias is not None), "gains": int(bool(gains))}
    constants |= {"eps": eps} if gains else {}
    places = {"qkv": raw.place, "bias": s.place(raw.bias), "cos_sin": s.place(cos_sin)}
    places |= {name: s.place(i) for name, i in zip(("q_gain", "k_gain"), gains, strict=False)}
    return constants, {**places, **tables(s, node), "cache": place}


def cached_attention(s: Lowering, index: int) -> None:
    """Attention over the cache: of one token, of few that share out the keys, or of many."""
    analysis, node = s.analysis, s.analysis.node(index)
    rope = node.inputs[0]
    if analysis.node(rope).op is Op.ROPE_CACHE and _step_of(analysis, rope) == index:
        _step(s, index, analysis.node(rope))
        return
    constants, place = cache(s, node)
    given: dict[str, Value] = {"t": s.t, "batch": analysis.batch, "seq": node.number("tokens")}
    given |= {"heads": node.number("heads"), "window": node.number("window"), **constants}
    places = {"q": s.place(rope), "cache": place, **tables(s, node)}
    out = s.make(index)
    s.zero_padding(index)
    tiles = -(-node.number("tokens") * _group(node) // _QUERIES)
    tiles *= node.number("kv_heads") * analysis.batch
    if tiles > _FEW_TILES or analysis.shape(_tables(node)[2])[1] < _LONG_TABLE:
        s.writer.call("attention_cached", node.origin, given, **places, out=out)
        return
    _split(s, node, given, places, out)


def _group(node: Node) -> int:
    return node.number("heads") // node.number("kv_heads")


def _split(
    s: Lowering, node: Node, given: dict[str, Value], places: dict[str, Place], out: Place
) -> None:
    """Attention of few tokens, each over parts of its keys, and the parts put together."""
    heads, dim = node.number("heads"), node.number("dim")
    splits = named("attention_decode", **given).launch.grid[0]
    parts = _parts(s, node, elements(node.shape) // dim, splits)
    s.writer.call("attention_decode", node.origin, given, **places, **parts, out=out)
    if splits > 1:
        many = f"{given['table']} pages, and too few tokens to fill a device"
        s.notes.append(Note("launches", f"{node.origin}: keys in {splits} parts", many))
        sizes: dict[str, Value] = {name: given[name] for name in ("t", "batch", "seq")}
        sizes |= {"heads": heads, "dim": dim, "splits": splits}
        lengths = {"lengths": places["lengths"]}
        s.writer.call("attention_combine", node.origin, sizes, **parts, **lengths, out=out)


def _parts(s: Lowering, node: Node, rows: int, splits: int) -> dict[str, Place]:
    """Room for the parts of each row and head; none where there is but one."""
    if splits == 1:
        return {}
    size = 4 * rows * splits
    return {
        "partial": s.writer.buffer(f"{node.origin}: partial", size * node.number("dim")),
        "stats": s.writer.buffer(f"{node.origin}: stats", size * 2),
    }


def _step(s: Lowering, index: int, rope: Node) -> None:
    """One new token of each sequence, from its product to its result."""
    node, batch = s.analysis.node(index), s.analysis.batch
    constants, places = _cos_sin(s, rope)
    given: dict[str, Value] = {"t": s.t, "batch": batch, "window": node.number("window")}
    given |= constants
    splits = named("attention_step", **given).launch.grid[0]
    places |= _parts(s, node, batch * node.number("heads"), splits)
    if splits > 1:
        blocks = batch * node.number("kv_heads") * -(-_group(node) // _QUERIES)
        places["tickets"] = _tickets(s, 4 * blocks)
    out = s.make(index)
    s.zero_padding(index)
    s.writer.call("attention_step", node.origin, given, **places, out=out)


def _tickets(s: Lowering, nbytes: int) -> Place:
    """Counters that all layers share: each launch leaves them as it found them, zero."""
    if "tickets" not in s.zeroed:
        s.zeroed["tickets"] = (s.writer.buffer("tickets", nbytes), nbytes)
        s.writer.keep(s.zeroed["tickets"][0], from_start=True)
    place, known = s.zeroed["tickets"]
    assert known == nbytes, (known, nbytes)
    return place
