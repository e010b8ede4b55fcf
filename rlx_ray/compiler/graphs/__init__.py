"""Graph builders: one function per family from its config to HIR."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlx_ray.compiler.graphs import bert, llama
from rlx_ray.compiler.ir.hir import Hir
from rlx_ray.errors import ConfigError, nearest
from rlx_ray.models.distribution import GRAPHS, entry_point, foreign

GraphBuilder = Callable[[Mapping[str, Any]], Hir]

BUILT_IN: dict[str, GraphBuilder] = {
    "bert": bert.build,
    "llama": llama.build,
    "roberta": bert.build,
}
"""Families of this package; no other distribution can replace one."""


def builder(family: str) -> GraphBuilder:
    """The graph builder of a family: built in, or from the entry-point group `rlx_ray.graphs`.

    Raises:
        ConfigError: no distribution on this machine offers the family, or several do.
    """
    if family in BUILT_IN:
        return BUILT_IN[family]
    point = entry_point(GRAPHS, family)
    if point is not None:
        loaded: GraphBuilder = point.load()
        return loaded
    names = sorted({*BUILT_IN, *(point.name for point in foreign(GRAPHS))})
    raise ConfigError(
        f"family {family!r} has no graph builder on this machine.",
        nearest(family, names)
        or f"Known: {names}; others come from packages with an entry point in {GRAPHS!r}.",
    )
