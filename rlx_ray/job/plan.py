"""The plan: the matrix minus what the store has, as rows. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from rlx_ray.component import ModelVariant
from rlx_ray.errors import ConfigError, nearest
from rlx_ray.matrix.expand import BuildCell
from rlx_ray.store import Hit, Miss
from rlx_ray.store.base import Lookup
from rlx_ray.target import Target, Toolchain

DEFAULT_SECONDS = 1.5
"""Estimate for a variant of a model that has no artifact to learn from."""


@dataclass(frozen=True, slots=True)
class VariantStatus:
    """One variant of one model for one target, as plan, prebuild and `/variants` tell it.

    Attributes:
        status: present, missing, quarantined or unsupported (plan); compiled, failed or skipped
            (prebuild).
        reason: why it is so; empty for what is as it should be.
        seconds: of its build; None if it was not built.
        bytes: of its blobs; None if there are none.
        error: class and message of a failure.
    """

    model: str
    target: str
    variant: str
    cache_key: str
    digest: str
    status: str
    reason: str = ""
    seconds: float | None = None
    bytes: int | None = None
    error: tuple[str, str] | None = None

    def to_json(self) -> dict[str, object]:
        """All fields as a JSON object."""
        value: dict[str, object] = {name: getattr(self, name) for name in self.__slots__}
        if self.error is not None:
            value["error"] = {"class": self.error[0], "message": self.error[1]}
        return value


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """Rows in the matrix's order, the cells that want building, and what that may take.

    Attributes:
        rows: one for each cell.
        todo: cells that are missing or quarantined, one for each (model, digest): two modes of one
            variant share an artifact.
        estimate: seconds of one processor for all of `todo`.
        refused: why the builders have no compiler for a target that has such cells, by its name;
            their rows are unsupported.
    """

    rows: tuple[VariantStatus, ...]
    todo: tuple[BuildCell, ...]
    estimate: float
    refused: Mapping[str, str] = field(default_factory=dict)

    def count(self, status: str) -> int:
        """How many rows have a status."""
        return sum(r.status == status for r in self.rows)


def row_of(cell: BuildCell, status: str, reason: str = "") -> VariantStatus:
    """A row that says nothing of a build."""
    spec = cell.spec
    return VariantStatus(
        spec.model,
        spec.target.name,
        str(spec.component.variant),
        spec.component.cache_key_hex,
        spec.digest,
        status,
        reason,
    )


def make_plan(
    cells: Sequence[BuildCell],
    lookups: Mapping[tuple[str, str], Lookup],
    refusals: Mapping[str, str] = MappingProxyType({}),
) -> BuildPlan:
    """Compare a matrix with what a store said, and with what the builders can build.

    Args:
        cells: the matrix.
        lookups: for (model, digest) of each supported cell what the store said.
        refusals: why nothing can be built for a target, by its name; what is present stays so.
    """
    rows: list[VariantStatus] = []
    todo: dict[tuple[str, str], BuildCell] = {}
    refused: dict[str, str] = {}
    for cell in cells:
        if cell.unsupported:
            rows.append(row_of(cell, "unsupported", cell.unsupported))
            continue
        key = (cell.spec.model, cell.spec.digest)
        found, target = lookups[key], cell.spec.target.name
        if isinstance(found, Miss) and target in refusals:
            refused[target] = refusals[target]
            rows.append(row_of(cell, "unsupported", refusals[target]))
            continue
        rows.append(_row(cell, found))
        if isinstance(found, Miss):
            todo.setdefault(key, cell)
    return BuildPlan(tuple(rows), tuple(todo.values()), _estimate(rows, todo.values()), refused)


def absent(
    cells: Iterable[BuildCell], lookups: Mapping[tuple[str, str], Lookup]
) -> dict[Target, Toolchain]:
    """The targets that a store lacks something for, with the toolchains that would build it."""
    return {
        cell.spec.target: cell.spec.toolchain
        for cell in cells
        if isinstance(lookups.get((cell.spec.model, cell.spec.digest)), Miss)
    }


def _row(cell: BuildCell, found: Lookup) -> VariantStatus:
    if isinstance(found, Miss):
        kind = "missing" if found.kind == "absent" else "quarantined"
        return row_of(cell, kind, found.other if kind == "missing" else found.reason)
    return present_row(cell, found)


def present_row(cell: BuildCell, found: Hit) -> VariantStatus:
    """The row of an artifact that is there."""
    row = row_of(cell, "present")
    seconds, size = found.manifest.build.seconds, found.manifest.size
    return VariantStatus(
        row.model, row.target, row.variant, row.cache_key, row.digest, "present", "", seconds, size
    )


def _estimate(rows: Iterable[VariantStatus], todo: Iterable[BuildCell]) -> float:
    known: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row.status == "present" and row.seconds is not None:
            known.setdefault((row.model, row.target), []).append(row.seconds)
    return sum(
        statistics.mean(known.get((c.spec.model, c.spec.target.name), [DEFAULT_SECONDS]))
        for c in todo
    )


def select(
    cells: Sequence[BuildCell],
    model: str | None = None,
    target: str | None = None,
    variant: str | None = None,
    limit: int | None = None,
) -> tuple[BuildCell, ...]:
    """The cells that options name, in order.

    Raises:
        ConfigError: an option names nothing that the matrix has.
    """
    names = {
        "--model": (model, [c.spec.model for c in cells]),
        "--target": (target, [c.spec.target.name for c in cells]),
        "--variant": (
            str(ModelVariant.parse(variant)) if variant else None,
            [str(c.spec.component.variant) for c in cells],
        ),
    }
    for option, (wanted, known) in names.items():
        if wanted is not None and wanted not in known:
            some = list(dict.fromkeys(known))
            raise ConfigError(
                f"{option} {wanted!r} is not in the matrix.",
                nearest(wanted, some) or f"It has {', '.join(some[:8])}.",
            )
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit is {limit}.", "Use at least 1.")
    kept = [
        cell
        for i, cell in enumerate(cells)
        if all(wanted in (None, known[i]) for wanted, known in names.values())
    ]
    return tuple(kept[:limit])
