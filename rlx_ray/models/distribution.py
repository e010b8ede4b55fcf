"""Families from other distributions: their entry points, and the digest of their sources."""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata
from pathlib import Path

from rlx_ray.digest import files_digest, json_digest
from rlx_ray.errors import ConfigError
from rlx_ray.spec import FamilySource

FAMILIES = "rlx_ray.models"
"""Entry points of families: what a checkpoint means."""

GRAPHS = "rlx_ray.graphs"
"""Entry points of their graph builders."""


def foreign(group: str, name: str | None = None) -> tuple[metadata.EntryPoint, ...]:
    """The entry points of a group, of one name or of all; families of this package have none."""
    points = metadata.entry_points(group=group)
    return tuple(point for point in points if name in (None, point.name))


def entry_point(group: str, name: str) -> metadata.EntryPoint | None:
    """The one entry point of a name in a group; None if there is none.

    Raises:
        ConfigError: several distributions have it.
    """
    points = foreign(group, name)
    owners = sorted({owner(point) for point in points})
    if len(owners) > 1:
        raise ConfigError(
            f"family {name!r} is offered by several distributions: {owners}.",
            "Uninstall all but one of them.",
        )
    return points[0] if points else None


def source(name: str) -> FamilySource | None:
    """Where a family comes from that another distribution offers; None if none does.

    The digest is over all sources of the packages (or modules) that its family and its graph
    builder are in: either may take anything from beside it.

    Raises:
        ConfigError: several distributions offer it, one offers the family and another its graph,
            or a package has no source files.
    """
    found = [entry_point(group, name) for group in (FAMILIES, GRAPHS)]
    points = [point for point in found if point is not None]
    if not points:
        return None
    owners = sorted({owner(point) for point in points})
    if len(owners) > 1:
        raise ConfigError(
            f"family {name!r} is offered by one distribution and its graph by another: {owners}.",
            "One distribution has to have both, so that one version says what they are.",
        )
    dist = points[0].dist
    assert dist is not None
    tops = sorted({point.value.partition(":")[0].partition(".")[0] for point in points})
    digest = json_digest([[top, _sources_digest(top, name)] for top in tops])
    return FamilySource(dist.name, dist.version, digest)


def owner(point: metadata.EntryPoint) -> str:
    """The normalised name of the distribution that an entry point belongs to."""
    name = point.dist.name if point.dist else ""
    return re.sub(r"[-_.]+", "-", name).lower()


def _sources_digest(top: str, family: str) -> str:
    """The digest of the sources of a top-level package or module; it is not imported."""
    spec = importlib.util.find_spec(top)
    if spec is not None and spec.submodule_search_locations:
        folders = [Path(place) for place in spec.submodule_search_locations]
        return json_digest([files_digest(folder, [""]) for folder in folders])
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise ConfigError(
            f"family {family!r}: module {top!r} has no source file to take a digest of.",
            "Install it as plain Python files.",
        )
    return files_digest(Path(spec.origin).parent, [Path(spec.origin).name])
