"""What runs variants of one target in a process: an executor's whole work, and a gateway's own.

Native code runs in threads, with the GIL released. No Ray here but to ask the coordinator.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
from ray.exceptions import RayError

from rlx_ray.config.schema import Config
from rlx_ray.engine.generation import Request
from rlx_ray.errors import ArtifactError, DeviceMemoryError, InputError, RlxError, StoreError
from rlx_ray.inference.loader import Loaded, TargetLoader, tiered
from rlx_ray.job.build_task import BuildOutcome
from rlx_ray.spec import BuildSpec
from rlx_ray.target import Target
from rlx_serve.coordinator.coordinator import build_patience
from rlx_serve.deployed import Deployed
from rlx_serve.replica.budget import Budget, budget_of, check_budget
from rlx_serve.replica.health import DeviceHealth
from rlx_serve.replica.preload import preload
from rlx_serve.replica.residency import Residency, slot_key
from rlx_serve.replica.text_engines import TextEngines
from rlx_serve.replica.variant_cache import SlotState
from rlx_serve.table import ServedVariant, Table, open_table
from rlx_serve.wire import CallResult, Handle, Held, Route, TokenBatch

_LOADERS = 32
"""Loads at once: most of them wait for a build elsewhere."""

_RUNNERS = 2
"""Forward passes at once: the thread pool runs one, the other copies its inputs meanwhile."""

_REPORT_S = 10.0

_log = logging.getLogger("ray.serve")
_Result = TypeVar("_Result")

Advertise = Callable[[str], Awaitable[object]]
"""Tells Ray that this replica holds a route."""


class ReplicaCore:
    """The variants and text engines of one target in this process.

    Args:
        config: the whole config.
        target: what it runs.
        coordinator: handle of the application's `Coordinator`.
        deployed: what is served of each model, by its name.
        advertise: told of each route that is about to be held.
    """

    def __init__(
        self,
        config: Config,
        target: Target,
        coordinator: Handle,
        deployed: Mapping[str, Deployed],
        advertise: Advertise,
    ) -> None:
        self.target = target
        self._config = config
        self._coordinator = coordinator
        self._deployed = deployed
        self._advertise = advertise
        self._loop = asyncio.get_running_loop()
        self._loaders = ThreadPoolExecutor(_LOADERS, "rlx-load")
        self._runners = ThreadPoolExecutor(_RUNNERS, "rlx-run")
        self._health = DeviceHealth()
        self._rows: Mapping[str, ServedVariant] = {}

    async def open(self, wanted: Callable[[ServedVariant], bool] = lambda row: True) -> None:
        """Open the models, map their weights, and load what the config wants loaded.

        Args:
            wanted: which of the target's variants are run here.

        Raises:
            ConfigError: this host cannot run the target, or what it must hold does not fit.
            CheckpointError, StoreError: a model or the store cannot be opened, or what was deployed
                of a model is not there any more.
        """
        limits = self._config.serve
        self._loader, table = await self._in(self._loaders, self._open)
        self._budget = await self._in(self._loaders, self._room)
        _log.info("%s: %s", self.target.name, self._budget)
        self._residency = Residency(
            limits.max_slots,
            self._budget.nbytes,
            self._loader.load,
            self._loaders,
            self._runners,
        )
        table = replace(table, rows=tuple(row for row in table.rows if wanted(row)))
        rows = table.select(self.target)
        self._rows = {row.route.route_id: row for row in rows}
        for name in sorted({row.route.model for row in rows}):
            specs = [row.spec for row in rows if row.route.model == name]
            weights = self._deployed[name].weights
            add = partial(self._loader.add_weights, table.models[name], specs, weights)
            self._residency.slots.weigh(name, await self._in(self._loaders, add))
        self._engines = TextEngines(rows, table.models, self._residency, limits.kv_cache_bytes)
        if rows:
            check = partial(check_budget, self._config, table, self.target, self._budget)
            self._eager = await preload(
                rows, limits.warm, self._residency, self._engines, self._advertise, check
            )

    def serves(self, model: str) -> bool:
        """Whether a model's variants run here."""
        return any(row.route.model == model for row in self._rows.values())

    def loaded(self, route: Route) -> bool:
        """Whether a variant is in memory."""
        return self._residency.slots.state(slot_key(route)) is SlotState.LOADED

    async def run(self, route: Route, inputs: Mapping[str, np.ndarray]) -> CallResult:
        """Run a variant, loading it first if need be.

        Args:
            route: names the variant; its digests must be this replica's own.
            inputs: as the variant's binding says.

        Raises:
            RlxError: it cannot be loaded, or its run failed.
        """
        row = self._row(route)
        await self._advertise(route.route_id)

        def work(loaded: Loaded) -> dict[str, np.ndarray]:
            return loaded.executable.run(inputs)

        try:
            return CallResult(*await self._residency.run(row, work))
        except RlxError as error:
            self._health.note(error)
            raise

    async def generate(
        self, route: Route, request: Request, *, streamed: bool
    ) -> AsyncGenerator[TokenBatch]:
        """Generate text.

        Args:
            route: of one of the model's variants; its digests must be this replica's own.
            request: what to generate.
            streamed: see `HeldEngine.generate`.

        Raises:
            RlxError: the request is refused, or ends.
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
            raise
        except RlxError as error:
            self._health.note(error)
            raise

    def check_health(self) -> None:
        """Serve asks now and then, and starts a replica anew that raises.

        Raises:
            DeviceLost: nothing works on the device any more in this process.
            EngineError: a text engine has failed.
        """
        self._health.check()
        self._engines.check()

    async def report(self, name: str) -> None:
        """Tell the coordinator what this replica holds, at each change and now and then, for ever.

        Args:
            name: the replica's.
        """
        while True:
            slots = self._residency.slots
            held = Held(
                {k.slot_id: s.value for k, s in slots.states().items()},
                {m: (state.value, nbytes) for m, (state, nbytes) in slots.engines().items()},
            )
            with contextlib.suppress(Exception):  # the board is for people; its actor may be away
                await self._coordinator.report.remote(f"{self.target.name}/{name}", held)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._residency.changed.wait(), _REPORT_S)
            self._residency.changed.clear()

    def _row(self, route: Route) -> ServedVariant:
        row = self._rows.get(route.route_id)
        if row is None:
            raise InputError(
                f"variant {route.variant} of {route.model!r} is not served for {self.target.name}.",
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

    def _open(self) -> tuple[TargetLoader, Table]:
        store, threads = tiered(self._config.store), self._config.serve.threads
        loader = TargetLoader(store, self.target, threads, self._on_miss)
        return loader, open_table(self._config, self._deployed)

    def _room(self) -> Budget:
        """What this replica may hold, by the config or by what its host has."""
        gpus = self._config.serve.placement(self.target).num_gpus
        given = budget_of(self._config, self.target)
        return given or Budget(self._loader.room(min(gpus, 1.0)), given=False)

    def _on_miss(self, spec: BuildSpec, reason: str) -> None:
        """Have a variant built; runs in a loader thread."""
        _log.info("%s of %s is built: %s", spec.component.variant, spec.model, reason)
        patience = build_patience(self._config.serve.build_timeout_s) + 30
        asked = asyncio.run_coroutine_threadsafe(self._ask(spec), self._loop)
        try:
            outcome = asked.result(patience)
        except TimeoutError:
            asked.cancel()
            raise StoreError(
                f"the builder did not answer for {spec.component.variant} of {spec.model!r} "
                f"within {patience:g} s.",
                "Check that the cluster has a free CPU.",
            ) from None
        except RayError as error:
            raise StoreError(f"the builder cannot be reached: {error}") from error
        if outcome.failure is not None:
            raise outcome.failure.error()

    async def _ask(self, spec: BuildSpec) -> BuildOutcome:
        outcome: BuildOutcome = await self._coordinator.ensure.remote(spec.dumps())
        return outcome

    async def _in(self, threads: ThreadPoolExecutor, work: Callable[[], _Result]) -> _Result:
        return await self._loop.run_in_executor(threads, work)
