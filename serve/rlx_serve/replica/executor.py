"""The executor: one Serve deployment for a target that gateways do not run themselves.

Ray's multiplexing is used for routing alone. Its own loads run one at a time under a lock, so the
multiplexed function only makes a marker.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping

import numpy as np
from ray import serve

from rlx_ray.config.schema import Config
from rlx_ray.engine.generation import Request
from rlx_ray.errors import Failure, RlxError
from rlx_ray.inference.text_engine import PHASES
from rlx_ray.target import Target
from rlx_serve.deployed import Deployed
from rlx_serve.replica.core import ReplicaCore
from rlx_serve.wire import CallResult, Handle, Route, TokenBatch


class Executor:
    """Runs variants for one target, for gateways; errors go back as values.

    Args:
        config: the whole config.
        target: what this executor's replicas run.
        coordinator: handle of the application's `Coordinator`.
        deployed: what is served of each model, by its name.
        text_alone: whether gateways run the target's encoders themselves.

    Raises:
        RlxError: as `ReplicaCore.open` does.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        config: Config,
        target: Target,
        coordinator: Handle,
        deployed: Mapping[str, Deployed],
        text_alone: bool = False,
    ) -> None:
        advertise = serve.multiplexed(max_num_models_per_replica=config.serve.max_slots)(_marker)
        self._core = ReplicaCore(config, target, coordinator, deployed, advertise)
        await self._core.open(lambda row: not text_alone or row.variant.phase in PHASES)
        name = serve.get_replica_context().replica_id.unique_id
        self._reporter = asyncio.get_running_loop().create_task(self._core.report(name))

    async def run(self, route: Route, inputs: Mapping[str, np.ndarray]) -> CallResult | Failure:
        """Run a variant; see `ReplicaCore.run`."""
        try:
            return await self._core.run(route, inputs)
        except RlxError as error:
            return Failure.of(error)

    async def generate(
        self, route: Route, request: Request, *, streamed: bool
    ) -> AsyncGenerator[TokenBatch | Failure]:
        """Generate text; see `ReplicaCore.generate`. An error ends the stream."""
        try:
            batches = self._core.generate(route, request, streamed=streamed)
            async with contextlib.aclosing(batches):
                async for batch in batches:
                    yield batch
        except RlxError as error:
            yield Failure.of(error)

    async def ready(self, model: str) -> bool:
        """Whether this replica serves a model; its being asked means that it has started."""
        return self._core.serves(model)

    def check_health(self) -> None:
        """See `ReplicaCore.check_health`."""
        self._core.check_health()


async def _marker(route_id: str) -> str:
    """What Ray caches and advertises for a route; awaits nothing, so that its lock is free."""
    return route_id
