"""The HTTP deployment: a gateway with its routes, and what its own processor runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from ray import serve
from starlette.types import ASGIApp

from rlx_ray.config.schema import Config
from rlx_ray.inference.text_engine import PHASES
from rlx_ray.store import open_store
from rlx_ray.target import Target
from rlx_serve.deployed import Deployed
from rlx_serve.gateway.availability import Availability
from rlx_serve.gateway.lanes import Executors, lanes
from rlx_serve.gateway.served import served
from rlx_serve.gateway.service import Service
from rlx_serve.gateway.text_models import text_models
from rlx_serve.http.routes import make_app
from rlx_serve.replica.core import ReplicaCore
from rlx_serve.table import ServedVariant, Table, open_table
from rlx_serve.wire import Handle, Held


class Gateway:
    """One replica of the HTTP deployment.

    Args:
        config: the whole config.
        local: the targets that gateways run themselves.
        executors: those that executors run, by target name; they may be the same, for text.
        coordinator: handle of the application's `Coordinator`.
        passed_over: why nothing runs the config's other targets, by name.
        deployed: what is served of each model, by its name.

    Raises:
        RlxError: as `ReplicaCore.open` does.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        config: Config,
        local: Sequence[Target],
        executors: Mapping[str, Executors],
        coordinator: Handle,
        passed_over: Mapping[str, str],
        deployed: Mapping[str, Deployed],
    ) -> None:
        replica = serve.get_replica_context()
        loop = asyncio.get_running_loop()
        self._cores = {
            target.name: ReplicaCore(config, target, coordinator, deployed, _nothing)
            for target in local
        }
        for name, core in self._cores.items():
            await core.open(_no_text if name in executors else _all)
        reports = [core.report(replica.replica_id.unique_id) for core in self._cores.values()]
        self._reporters = [loop.create_task(report) for report in reports]
        self._availability = Availability(replica.app_name, list(executors), passed_over)
        table = await asyncio.to_thread(open_table, config, deployed)
        self._service = self._made(config, table, executors, coordinator)
        self._watch = loop.create_task(self._availability.watch())

    def _made(
        self, config: Config, table: Table, executors: Mapping[str, Executors], coordinator: Handle
    ) -> Service:
        models = {
            name: served(table, name, found)
            for name in table.models
            if (found := lanes(table, name, self._cores, executors))
        }

        async def board() -> Mapping[str, Held]:
            found: Mapping[str, Held] = await coordinator.board.remote()
            return found

        async def ready(target: str, model: str) -> bool:
            if target in self._cores and self._cores[target].serves(model):
                return True
            return bool(await executors[target].handle.ready.remote(model))

        store = open_store(config.store.url, config.store.storage_options)
        texts = text_models(table, self._cores, executors, self._availability)
        replicas = len(self._cores) + sum(there.replicas for there in executors.values())
        return Service(
            config, table, models, store, board, ready, texts, self._availability, replicas
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The routes; Serve calls it in the replica's loop once the constructor is through."""
        return make_app(self._service)

    def check_health(self) -> None:
        """See `ReplicaCore.check_health`."""
        for core in self._cores.values():
            core.check_health()


async def _nothing(route_id: str) -> None:
    """Ray routes nothing to a gateway by what it holds."""


def _all(row: ServedVariant) -> bool:
    return True


def _no_text(row: ServedVariant) -> bool:
    return row.variant.phase not in PHASES
