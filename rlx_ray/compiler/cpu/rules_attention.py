"""The CPU rules of attention, rotary positions and the cache (kernels/c/attention.h, decoder.h)."""

from __future__ import annotations

from collections.abc import Mapping

from rlx_ray.compiler.cpu.op_rule import Lowered, OpRule, Partition, Site, token_rows
from rlx_ray.compiler.cpu.templates import Argument, Template
from rlx_ray.compiler.ir.mir import Mir, Node, Op
from rlx_ray.shape import PAGE, elements
from rlx_ray.target import Target


def _flops(sizes: Mapping[str, int], rows: int, sequences: int) -> int:
    keys = min(sizes["keys"], rows // sequences)
    return 4 * rows * keys * sizes["heads"] * sizes["dim"]


def _cached_flops(sizes: Mapping[str, int], rows: int, sequences: int) -> int:
    return 4 * rows * sizes["table"] * PAGE * sizes["heads"] * sizes["dim"]


# Where a tile is whole sequences the queries have moved with it; the kernel counts from row 0.
_ATTENTION = Template(
    "attention",
    "attention(s, 0, $heads, $keys, $heads, $dim, $scale, "
    "(const float *)a - $moved * s->row * 3 * $heads * $dim, y, t)",
    "attention.h",
    flops=_flops,
)
_ATTENTION_HEADS = Template(
    "attention_heads",
    "attention(s, tile, 1, $keys, $heads, $dim, $scale, a, y, t)",
    "attention.h",
    flops=_flops,
)
_ATTENTION_PADDED = Template(
    "attention_padded",
    "attention_padded($sequences, $keys, $heads, $dim, $scale, a, b, y, t)",
    "attention.h",
)

_PAGES = "$heads, $kv_heads, $dim, $size, $layers, layer, $table"
_ROPE_CACHE, _ROPE_CACHE_HEADS = (
    Template(
        name,
        f"rope_cache(s, {one}, {_PAGES}, $positions, $eps, a, b, c, d, e, g, cache, y)",
        "decoder.h",
        6,
        True,
    )
    for name, one in (("rope_cache", "-1"), ("rope_cache_heads", "tile"))
)
_ROPE_CACHE_PADDED = Template(
    "rope_cache_padded",
    f"rope_cache_padded($sequences, $tokens, {_PAGES}, $positions, $eps, a, b, c, d, e, g, h, "
    "cache, y)",
    "decoder.h",
    7,
    True,
)
_SCALED = "$heads, $kv_heads, $dim, $size, $scale, $layers, layer, $table, $window"
_CACHED = Template(
    "attention_cached",
    f"attention_cached(s, -1, {_SCALED}, "
    "(const float *)a - $moved * s->row * $heads * $dim, b, c, cache, y, t)",
    "decoder.h",
    cache=True,
    flops=_cached_flops,
)
_CACHED_HEADS = Template(
    "attention_cached_heads",
    f"attention_cached(s, tile, {_SCALED}, a, b, c, cache, y, t)",
    "decoder.h",
    cache=True,
    flops=_cached_flops,
)
_CACHED_PADDED = Template(
    "attention_cached_padded",
    f"attention_cached_padded($sequences, $tokens, {_SCALED}, a, b, c, d, cache, y, t)",
    "decoder.h",
    4,
    True,
)
_CACHE_WRITE = Template(
    "cache_write",
    f"cache_write($sequences, $tokens, {_PAGES}, a, b, c, d, e, g, cache, y)",
    "cache.h",
    6,
    True,
)
_CACHE_READ = Template(
    "cache_read",
    "cache_read($sequences, $kv_heads, $dim, $size, $layers, layer, $table, $values, "
    "a, b, c, cache, y)",
    "cache.h",
    cache=True,
)


def _scale(node: Node) -> float:
    return float(node.number("dim") ** -0.5)


def _moved(site: Site) -> int:
    return int(site.axis == "sequences")


def _attention(site: Site) -> Lowered:
    sizes: dict[str, Argument] = {
        **site.numbers("keys", "heads", "dim"),
        "scale": _scale(site.node),
    }
    if site.axis == "heads":
        return Lowered(_ATTENTION_HEADS(**sizes), (0,))
    return Lowered(_ATTENTION(**sizes, moved=_moved(site)), (0,))


def _attention_padded(site: Site) -> Lowered:
    sizes = site.numbers("keys", "heads", "dim")
    sequences = site.shape[0] // sizes["keys"]
    return Lowered(_ATTENTION_PADDED(sequences=sequences, **sizes, scale=_scale(site.node)), (0, 1))


def _panels(n: int, target: Target) -> int:
    return -(-n // target.panel)


def _attention_scratch(mir: Mir, node: Node, target: Target) -> int:
    """Panels of K^T and of V, and one micro tile of scores and of results."""
    keys, dim = node.number("keys"), node.number("dim")
    key_panels, dim_panels = _panels(keys, target), _panels(dim, target)
    numbers = dim * key_panels + keys * dim_panels + target.tile_rows * (key_panels + dim_panels)
    return 4 * target.panel * numbers


def _copied(node: Node) -> int:
    """Bytes of keys and values."""
    return 2 * elements(node.shape) * node.dtype.size


ATTENTION = OpRule(
    (_ATTENTION, _ATTENTION_HEADS, _ATTENTION_PADDED),
    _attention_padded,
    _attention,
    Partition(
        token_rows,
        "heads",
        heads=lambda node, sequences: node.number("heads"),
        attends=True,
        tokens="keys",
    ),
    scratch=_attention_scratch,
    copied=_copied,
)


def _pages(site: Site, table: int, *names: str) -> dict[str, Argument]:
    """The fields of every kernel that uses the cache; input `table` is the page table."""
    sizes = site.numbers(*names, "kv_heads", "dim", "size", "layers")
    return {**sizes, "table": site.inputs[table][1]}


def _rotated(site: Site) -> tuple[dict[str, Argument], tuple[int | None, ...]]:
    """The fields of rotary positions, and which inputs are gains of queries and keys."""
    fields = _pages(site, 3, "heads") | {"positions": site.inputs[4][0], "eps": site.real("eps")}
    return fields, (5, 6) if len(site.inputs) == 7 else (None, None)


def _rope_cache(site: Site) -> Lowered:
    fields, gains = _rotated(site)
    template = _ROPE_CACHE_HEADS if site.axis == "heads" else _ROPE_CACHE
    return Lowered(template(**fields), (0, 2, 3, 4, *gains))


def _rope_cache_padded(site: Site) -> Lowered:
    fields, gains = _rotated(site)
    sequences, tokens = site.inputs[3][0], site.node.number("tokens")
    kernel = _ROPE_CACHE_PADDED(sequences=sequences, tokens=tokens, **fields)
    return Lowered(kernel, (0, 1, 2, 3, 4, *gains))


def _cached_heads(node: Node, sequences: int) -> int:
    return node.number("kv_heads") * sequences


ROPE_CACHE = OpRule(
    (_ROPE_CACHE, _ROPE_CACHE_HEADS, _ROPE_CACHE_PADDED),
    _rope_cache_padded,
    _rope_cache,
    Partition(token_rows, "heads", heads=_cached_heads),
)


def _attended(site: Site) -> dict[str, Argument]:
    return _pages(site, 3, "heads") | {
        "scale": _scale(site.node),
        "window": site.node.number("window"),
    }


def _cached_attention(site: Site) -> Lowered:
    fields = _attended(site)
    if site.axis == "heads":
        return Lowered(_CACHED_HEADS(**fields), (0, 2, 3))
    return Lowered(_CACHED(**fields, moved=_moved(site)), (0, 2, 3))


def _cached_attention_padded(site: Site) -> Lowered:
    sequences, tokens = site.inputs[3][0], site.node.number("tokens")
    kernel = _CACHED_PADDED(sequences=sequences, tokens=tokens, **_attended(site))
    return Lowered(kernel, (0, 1, 2, 3))


def _cached_scratch(mir: Mir, node: Node, target: Target) -> int:
    """One micro tile of scores, as many as the page table holds tokens, and of results."""
    bound = mir.nodes[node.inputs[3]].shape[1] * PAGE
    width = target.panel * _panels(node.number("dim"), target)
    return 4 * target.tile_rows * (bound + width)


CACHED_ATTENTION = OpRule(
    (_CACHED, _CACHED_HEADS, _CACHED_PADDED),
    _cached_attention_padded,
    _cached_attention,
    Partition(
        token_rows,
        "heads",
        heads=_cached_heads,
        attends=True,
        follows=(Op.ROPE_CACHE,),
        tokens="tokens",
    ),
    scratch=_cached_scratch,
)


def _cache_write(site: Site) -> Lowered:
    sequences, tokens = site.inputs[5][0], site.node.number("tokens")
    kernel = _CACHE_WRITE(sequences=sequences, tokens=tokens, **_pages(site, 5, "heads"))
    return Lowered(kernel, tuple(range(6)))


def _cache_read(site: Site) -> Lowered:
    values = int(site.node.attr("part") == "values")
    kernel = _CACHE_READ(sequences=site.inputs[3][0], values=values, **_pages(site, 3))
    return Lowered(kernel, (1, 2, 3))


CACHE_WRITE = OpRule((_CACHE_WRITE,), _cache_write)
CACHE_READ = OpRule((_CACHE_READ,), _cache_read)
