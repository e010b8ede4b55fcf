"""From a Serve handle to the callable that `dispatch` wants."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from rlx_ray.errors import Busy, Failure
from rlx_ray.target import Target
from rlx_serve.gateway.embedding import Call, Lane
from rlx_serve.table import Table
from rlx_serve.wire import CallResult, Handle, Route


def lanes(table: Table, model: str, handles: Mapping[str, Handle]) -> tuple[Lane, ...]:
    """The executors of a model in serving order; handles are found by target name."""
    return tuple(
        Lane(target.name, handle_call(handles[target.name], target), routes)
        for target in table.targets(model)
        if target.name in handles and (routes := table.routes(model, target))
    )


def handle_call(handle: Handle, target: Target) -> Call:
    """A callable that runs a variant on some replica, preferably one that holds it.

    A forward pass changes nothing, so one that a replica's death cut short is tried once more.
    """

    async def call(route: Route, inputs: Mapping[str, np.ndarray]) -> CallResult:
        chosen = handle.options(multiplexed_model_id=route.route_id)
        with unavailable_is_busy(target):
            try:
                reply: CallResult | Failure = await chosen.run.remote(route, inputs)
            except RayActorError:
                reply = await chosen.run.remote(route, inputs)
        if isinstance(reply, Failure):
            raise reply.error()
        return reply

    return call


@contextlib.contextmanager
def unavailable_is_busy(target: Target) -> Iterator[None]:
    """What Serve raises where no replica takes a request, or the one that took it died, as Busy.

    Raises:
        Busy: no replica of the executor for the target answers now.
    """
    try:
        yield
    except (BackPressureError, DeploymentUnavailableError) as error:
        raise Busy(
            f"the executor for {target.name} takes no more requests: {error}",
            "Try again in a second.",
        ) from error
    except RayActorError as error:
        raise Busy(
            f"the replica of the executor for {target.name} died: {error}",
            "Try again in a second.",
        ) from error
