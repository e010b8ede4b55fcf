"""Prebuild: plan, weights, fan-out, and the report of a whole run."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from rlx_ray.config.schema import StoreSpec
from rlx_ray.inference.catalog import OpenModel, ensure_weights
from rlx_ray.job.build import BuildLimits
from rlx_ray.job.cluster import named
from rlx_ray.job.plan import BuildPlan, VariantStatus, absent, make_plan
from rlx_ray.job.toolchains import Chain, refusals
from rlx_ray.matrix.expand import BuildCell
from rlx_ray.store import Store, open_store
from rlx_ray.store.base import Lookup


@dataclass(frozen=True, slots=True)
class Report:
    """How a run went.

    Attributes:
        rows: one for each cell, in the matrix's order.
        seconds: wall time of the run.
        host: the class of the machine that drove it.
        interrupted: whether it was stopped before its end; what it had not reached is `skipped`.
        weights: (class, message) of each failure to pack or publish weights.
        refused: why the builders could not build for a target that lacks something, by its name.
    """

    rows: tuple[VariantStatus, ...]
    seconds: float
    host: str
    interrupted: bool = False
    weights: tuple[tuple[str, str], ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def count(self, status: str) -> int:
        """How many rows have a status."""
        return sum(r.status == status for r in self.rows)

    @property
    def failed(self) -> int:
        """Rows that failed, and weights that could not be published."""
        return self.count("failed") + len(self.weights)

    def to_json(self) -> dict[str, object]:
        """The JSON record."""
        return {
            "total": len(self.rows),
            "present": self.count("present"),
            "compiled": self.count("compiled"),
            "failed": self.failed,
            "skipped": self.count("skipped") + self.count("unsupported"),
            "seconds": round(self.seconds, 3),
            "interrupted": self.interrupted,
            "host": self.host,
            "errors": [{"class": c, "message": m} for c, m in self.weights],
            "refused": dict(self.refused),
            "rows": [r.to_json() for r in self.rows],
        }


def look_up(cells: Sequence[BuildCell], store: Store) -> dict[tuple[str, str], Lookup]:
    """What a store has of the supported cells, by (model, digest): one listing a model.

    Raises:
        StoreError: the store cannot be reached.
    """
    found: dict[tuple[str, str], Lookup] = {}
    for model in dict.fromkeys(c.spec.model for c in cells):
        specs = [c.spec for c in cells if c.spec.model == model and not c.unsupported]
        for digest, lookup in store.present(specs).items():
            found[(model, digest)] = lookup
    return found


def prebuild(
    cells: Sequence[BuildCell],
    models: Sequence[OpenModel],
    store: StoreSpec,
    limits: BuildLimits,
    address: str | None,
    on_plan: Callable[[BuildPlan], None],
    on_row: Callable[[VariantStatus], None],
) -> Report:
    """Build what is missing and publish the weights; never raises for a variant that fails.

    Args:
        cells: the selected part of the matrix.
        models: the models that they belong to.
        store: where to look and to publish.
        limits: of each build.
        address: of a Ray cluster; None for that of `RAY_ADDRESS`, or else this machine.
        on_plan: told once what there is to do.
        on_row: told of each variant as it is done.

    Raises:
        StoreError: the store cannot be reached.
        ClusterError: the cluster does not start, or cannot be joined.
        ConfigError: the address has no known form, or the store does not suit the cluster.
    """
    from rlx_ray.job.fanout import build_all

    begun = time.monotonic()
    address = named(address)
    opened = open_store(store.url, store.storage_options)
    lookups = look_up(cells, opened)
    chains = tuple(absent(cells, lookups).items())
    done: dict[tuple[str, str], VariantStatus] = {}

    def finish(row: VariantStatus) -> None:
        done[(row.model, row.digest)] = row
        on_row(row)

    with ExitStack() as connection:
        plan = make_plan(cells, lookups, _refusals(chains, address, connection))
        on_plan(plan)
        interrupted = False
        with _packing(cells, models, opened) as failures:
            try:
                build_all(plan.todo, store, limits, address, finish)
            except KeyboardInterrupt:
                interrupted = True
    rows = _ended(plan.rows, done, interrupted=interrupted)
    host = f"{platform.machine()} {platform.system()}"
    seconds = time.monotonic() - begun
    return Report(rows, seconds, host, interrupted, tuple(failures), plan.refused)


def _refusals(
    chains: Sequence[Chain], address: str | None, connection: ExitStack
) -> dict[str, str]:
    """What the builders say; a cluster stays connected as long as `connection` is open."""
    if address is None or not chains:
        return refusals(chains)
    from rlx_ray.job.fanout import ask_builders, cluster

    connection.enter_context(cluster(address))
    return ask_builders(chains, address)


def _ended(
    planned: Sequence[VariantStatus],
    done: Mapping[tuple[str, str], VariantStatus],
    *,
    interrupted: bool,
) -> tuple[VariantStatus, ...]:
    """The rows of a plan as they ended, by what was done of each (model, digest)."""
    rows = tuple(
        replace(built, cache_key=r.cache_key) if (built := done.get((r.model, r.digest))) else r
        for r in planned
    )
    if not interrupted:
        return rows
    return tuple(
        replace(r, status="skipped", reason="interrupted")
        if r.status in ("missing", "quarantined")
        else r
        for r in rows
    )


@contextmanager
def _packing(
    cells: Sequence[BuildCell], models: Sequence[OpenModel], store: Store
) -> Iterator[list[tuple[str, str]]]:
    """Packs and publishes weights in a thread beside the block; all failures are known after it."""
    by_name = {m.spec.name: m for m in models}
    wanted = {(c.spec.model, c.spec.weights_family): c.spec for c in cells if not c.unsupported}
    failures: list[tuple[str, str]] = []

    def work() -> None:
        for spec in wanted.values():
            try:
                ensure_weights(store, by_name[spec.model], spec)
            except Exception as error:
                failures.append((type(error).__name__, str(error)))

    thread = threading.Thread(target=work, name="rlx-weights")
    thread.start()
    try:
        yield failures
    finally:
        thread.join()
