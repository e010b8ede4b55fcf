"""The fan-out over Ray: one task a variant, a bounded window, small records back.

The store is the checkpoint: a task publishes its artifact itself, and a run that is repeated builds
what is still missing. With nothing to build, Ray is not even imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from rlx_ray.config.schema import StoreSpec
from rlx_ray.errors import ClusterError
from rlx_ray.job.build import BuildLimits
from rlx_ray.job.build_task import BuildOutcome, build_and_publish
from rlx_ray.job.cluster import RayConnection, connected
from rlx_ray.job.plan import VariantStatus, row_of
from rlx_ray.job.toolchains import Chain, refusals
from rlx_ray.matrix.expand import BuildCell
from rlx_ray.store import check_shared

_RETRIES = 2
_CALLS = 64  # builds of one Ray worker before it is replaced
_WAIT_SECONDS = 0.5
_CANCEL_SECONDS = 3.0
_OBJECT_STORE = 100 << 20

Progress = Callable[[VariantStatus], None]
"""Called in the driver for each row as it is done."""


def build_all(
    cells: Sequence[BuildCell],
    store: StoreSpec,
    limits: BuildLimits,
    address: str | None,
    progress: Progress,
) -> None:
    """Build cells on a Ray cluster, reporting each as it ends; one that fails fails no other.

    Args:
        cells: what to build.
        store: where to publish.
        limits: of each build.
        address: of a running cluster; None starts one on this machine.
        progress: takes the rows.

    Raises:
        ClusterError: the cluster does not start, or cannot be joined.
        ConfigError: the store is local and the cluster has several nodes.
        KeyboardInterrupt: interrupted; running tasks have been cancelled, what was published stays.
    """
    if not cells:
        return
    with cluster(address) as found:
        ray = found.ray
        check_shared(store, found.nodes())
        cpus = int(ray.cluster_resources().get("CPU", 1))
        task = ray.remote(
            num_cpus=1,
            max_retries=_RETRIES,
            max_calls=_CALLS,
            scheduling_strategy="SPREAD",
        )(build_and_publish)
        waiting = list(reversed(cells))
        running: dict[Any, BuildCell] = {}
        try:
            while waiting or running:
                while waiting and len(running) < max(2, 4 * cpus):
                    cell = waiting.pop()
                    running[task.remote(cell.spec.dumps(), store, limits)] = cell
                done, _ = ray.wait(list(running), num_returns=1, timeout=_WAIT_SECONDS)
                for ref in done:
                    progress(_row(ray, ref, running.pop(ref)))
        except BaseException:
            _cancel(ray, list(running))
            raise


def _cancel(ray: Any, refs: list[Any]) -> None:
    """Interrupt tasks, so that they clean up behind them; then end what still runs."""
    for ref in refs:
        ray.cancel(ref)
    _, left = ray.wait(refs, num_returns=len(refs), timeout=_CANCEL_SECONDS) if refs else ([], [])
    for ref in left:
        ray.cancel(ref, force=True)


def _row(ray: Any, ref: Any, cell: BuildCell) -> VariantStatus:
    try:
        outcome: BuildOutcome = ray.get(ref)
    except ray.exceptions.RayError as error:
        return _failed(cell, type(error).__name__, str(error).strip().splitlines()[0])
    if outcome.failure is not None:
        return _failed(cell, outcome.failure.kind, str(outcome.failure.error()))
    if outcome.status == "present":  # another run was faster
        return replace(row_of(cell, "present"), bytes=outcome.nbytes)
    return replace(row_of(cell, "compiled"), seconds=outcome.seconds, bytes=outcome.nbytes)


def _failed(cell: BuildCell, kind: str, message: str) -> VariantStatus:
    return replace(row_of(cell, "failed", message), error=(kind, message))


def ask_builders(chains: Sequence[Chain], address: str) -> dict[str, str]:
    """What `toolchains.refusals` says on a node of a cluster, whose nodes count as alike.

    Raises:
        ClusterError: the cluster cannot be joined, or does not run the task.
    """
    with cluster(address) as found:
        ray = found.ray
        task = ray.remote(num_cpus=1, max_retries=_RETRIES)(refusals)
        try:
            said: dict[str, str] = ray.get(task.remote(chains))
        except ray.exceptions.RayError as error:
            first = str(error).strip().splitlines()[0]
            raise ClusterError(
                f"the Ray cluster at {address} cannot ask its builders: {first}",
                "See the logs of its workers.",
            ) from error
        return said


def cluster(address: str | None) -> AbstractContextManager[RayConnection]:
    """Ray for builds: a running cluster, or all processors that this process may use."""
    cpus = len(os.sched_getaffinity(0))
    return connected(address, num_cpus=cpus, object_store_memory=_OBJECT_STORE)
