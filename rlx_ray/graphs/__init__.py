"""Graph builders: one function per family from its config to HIR."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from rlx_ray.errors import ConfigError, nearest
from rlx_ray.graphs import bert, llama
from rlx_ray.ir.hir import Hir

GraphBuilder = Callable[[Mapping[str, Any]], Hir]

GROUP = "rlx_ray.graphs"
_BUILT_IN: dict[str, GraphBuilder] = {
    "bert": bert.build,
    "llama": llama.build,
    "roberta": bert.build,
}


def builder(family: str) -> GraphBuilder:
    """The graph builder of a family: built in, or from the entry-point group `rlx_ray.graphs`.

    Raises:
        ConfigError: no distribution on this machine offers the family.
    """
    if family in _BUILT_IN:
        return _BUILT_IN[family]
    found = {point.name: point for point in entry_points(group=GROUP)}
    if family in found:
        loaded: GraphBuilder = found[family].load()
        return loaded
    names = sorted({*_BUILT_IN, *found})
    raise ConfigError(
        f"family {family!r} has no graph builder on this machine.",
        nearest(family, names)
        or f"Known: {names}; others come from packages with an entry point in the group {GROUP!r}.",
    )
