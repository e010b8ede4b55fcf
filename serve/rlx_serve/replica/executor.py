"""The executor: one Serve deployment per target, a thin shell around a residency and a loader.

Ray's multiplexing is used for routing alone. Its own loads run one at a time under a lock, so the
multiplexed function only makes a marker. Native code runs in threads, with the GIL released.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
from ray import serve
from ray.exceptions import RayError

from rlx_ray.config.schema import Config
from rlx_ray.engine.generation import Request
from rlx_ray.errors import (
    ArtifactError,
    DeviceMemoryError,
    Failure,
    InputError,
    RlxError,
    StoreError,
)
from rlx_ray.inference.loader import TargetLoader, tiered
from rlx_ray.job.build_task import BuildOutcome
from rlx_ray.spec import BuildSpec
from rlx_ray.target import Target
from rlx_serve.coordinator.coordinator import build_patience
from rlx_serve.deployed import Deployed
from rlx_serve.replica.budget import Budget, budget_of, check_budget
from rlx_serve.replica.health import DeviceHealth
from rlx_serve.replica.preload import preload
from rlx_serve.replica.residency import Residency
from rlx_serve.replica.text_engines import TextEngines
from rlx_serve.table import ServedVariant, Table, open_table
from rlx_serve.wire import CallResult, Handle, Held, Route, TokenBatch

_LOADERS = 32
"""Loads at once: most of them wait for a build elsewhere."""

_RUNNERS = 2
"""Forward passes at once: the thread pool runs one, the other copies its inputs meanwhile."""

_REPORT_S = 10.0

_log = logging.getLogger("ray.serve")
_Result = TypeVar("_Result")


class Executor:
    """Runs variants for one target.

    Args:
        config: the whole config.
        target: what this executor's replicas run.
        builds: handle of the cluster's `Coordinator`.
        deployed: what is served of each model, by its name.

    Raises:
        ConfigError: this host cannot run the target, or what it must hold does not fit.
        CheckpointError, StoreError: a model or the store cannot be opened, or what was deployed
            of a model is not there any more.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: Config, target: Target, coordinator: Handle, deployed: Mapping[str, Deployed]
    ) -> None:
        self._config = config
        self._target = target
        self._coordinator = coordinator
        self._loop = asyncio.get_running_loop()
        self._loaders = ThreadPoolExecutor(_LOADERS, "rlx-load")
        self._runners = ThreadPoolExecutor(_RUNNERS, "rlx-run")
        self._health = DeviceHealth()
        limits = config.serve
        self._advertise = serve.multiplexed(max_num_models_per_replica=limits.max_slots)(_marker)
        opening = partial(self._open, config, target, deployed)
        self._loader, table = await self._in(self._loaders, opening)
        self._budget = await self._in(self._loaders, self._room)
        _log.info("%s: %s", target.name, self._budget)
        self._residency = Residency(
            limits.max_slots,
            self._budget.nbytes,
            self._loader.load,
            self._loaders,
            self._runners,
        )
        self._rows = {row.route.route_id: row for row in table.select(target)}
        for name in sorted({row.route.model for row in self._rows.values()}):
            specs = [row.spec for row in self._rows.values() if row.route.model == name]
            wanted = deployed[name].weights
            add = partial(self._loader.add_weights, table.models[name], specs, wanted)
            self._residency.slots.weigh(name, await self._in(self._loaders, add))
        rows = tuple(self._rows.values())
        self._engines = TextEngines(rows, table.models, self._residency, limits.kv_cache_bytes)
        if rows:
            check = partial(check_budget, config, table, target, self._budget)
            self._eager = await preload(
                rows, limits.warm, self._residency, self._engines, self._advertise, check
            )
        self._reporter = self._loop.create_task(self._report())

    async def run(self, route: Route, inputs: Mapping[str, np.ndarray]) -> CallResult | Failure:
        """Run a variant, loading it first if need be; an error comes back as a value.

        Args:
            route: names the variant; its digests must be this executor's own.
            inputs: as the variant's binding says.
        """
        try:
            row = self._row(route)
            await self._advertise(route.route_id)
            return CallResult(
                *await self._residency.run(row, lambda loaded: loaded.executable.run(inputs))
            )
        except RlxError as error:
            return self._health.failure(error)

    async def generate(
        self, route: Route, request: Request, *, streamed: bool
    ) -> AsyncGenerator[TokenBatch | Failure]:
        """Generate text; an error comes as a value, and ends the stream.

        Args:
            route: of one of the model's variants; its digests must be this executor's own.
            request: what to generate.
            streamed: see `HeldEngine.generate`.
        """
        try:
            self._row(route)
            with contextlib.ExitStack() as stack:
                engine = await self._engines.hold(route.model, stack)
                await self._advertise(route.route_id)  # not where there was no room
                batches = engine.generate(request, streamed=streamed)
                async with contextlib.aclosing(batches):
                    async for batch in batches:
                        yield batch
        except DeviceMemoryError as error:
            await self._residency.make_room(error)  # for the client's next try
            yield Failure.of(error)
        except RlxError as error:
            yield self._health.failure(error)

    async def ready(self, model: str) -> bool:
        """Whether this replica serves a model; its being asked means that it has started."""
        return any(row.route.model == model for row in self._rows.values())

    def check_health(self) -> None:
        """Serve asks now and then, and starts a replica anew that raises.

        Raises:
            DeviceLost: nothing works on the device any more in this process.
            EngineError: a text engine has failed.
        """
        self._health.check()
        self._engines.check()

    def _row(self, route: Route) -> ServedVariant:
        row = self._rows.get(route.route_id)
        if row is None:
            raise InputError(
                f"variant {route.variant} of {route.model!r} is not served for "
                f"{self._target.name}.",
                "See /variants.",
            )
        for what in ("digest", "weights"):
            here, wanted = getattr(row.route, what), getattr(route, what)
            if here != wanted:
                raise ArtifactError(
                    f"the {what} of variant {route.variant} of {route.model!r} is {here[:16]} "
                    f"here, the request wants {wanted[:16]}.",
                    "A new version is being rolled out: try again.",
                )
        return row

    def _open(
        self, config: Config, target: Target, deployed: Mapping[str, Deployed]
    ) -> tuple[TargetLoader, Table]:
        store, threads = tiered(config.store), config.serve.threads
        return TargetLoader(store, target, threads, self._on_miss), open_table(config, deployed)

    def _room(self) -> Budget:
        """What this replica may hold, by the config or by what its host has."""
        gpus = self._config.serve.placement(self._target).num_gpus
        given = budget_of(self._config, self._target)
        return given or Budget(self._loader.room(min(gpus, 1.0)), given=False)

    def _on_miss(self, spec: BuildSpec, reason: str) -> None:
        """Have a variant built; runs in a loader thread."""
        _log.info("%s of %s is built: %s", spec.component.variant, spec.model, reason)
        patience = build_patience(self._config.serve.build_timeout_s) + 30
        asked = asyncio.run_coroutine_threadsafe(self._ask(spec), self._loop)
        try:
            record = asked.result(patience)
        except TimeoutError:
            asked.cancel()
            raise StoreError(
                f"the builder did not answer for {spec.component.variant} of {spec.model!r} "
                f"within {patience:g} s.",
                "Check that the cluster has a free CPU.",
            ) from None
        except RayError as error:
            raise StoreError(f"the builder cannot be reached: {error}") from error
        if record.failure is not None:
            raise record.failure.error()

    async def _ask(self, spec: BuildSpec) -> BuildOutcome:
        record: BuildOutcome = await self._coordinator.ensure.remote(spec.dumps())
        return record

    async def _report(self) -> None:
        """Tell the coordinator what this replica holds, at each change and now and then."""
        name = serve.get_replica_context().replica_id.unique_id
        while True:
            slots = self._residency.slots
            held = Held(
                {k.slot_id: s.value for k, s in slots.states().items()},
                {m: (state.value, nbytes) for m, (state, nbytes) in slots.engines().items()},
            )
            with contextlib.suppress(Exception):  # the board is for people; its actor may be away
                await self._coordinator.report.remote(f"{self._target.name}/{name}", held)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._residency.changed.wait(), _REPORT_S)
            self._residency.changed.clear()

    async def _in(self, threads: ThreadPoolExecutor, work: Callable[[], _Result]) -> _Result:
        return await self._loop.run_in_executor(threads, work)


async def _marker(route_id: str) -> str:
    """What Ray caches and advertises for a route; awaits nothing, so that its lock is free."""
    return route_id
