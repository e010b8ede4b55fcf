"""What runs a model for each of its targets: this process, or an executor by its Serve handle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from rlx_ray.errors import Busy, Failure
from rlx_ray.target import Target
from rlx_serve.gateway.embedding import Call, Lane
from rlx_serve.replica.core import ReplicaCore
from rlx_serve.table import Table
from rlx_serve.wire import CallResult, Handle, Route

_CALLS = 8
"""Calls of a pass at once: enough for every replica to work, too few to crowd others out."""

_PASSES = 2
"""Passes of a replica at once: while one runs, the next one is on its way."""


@dataclass(frozen=True, slots=True)
class Executors:
    """The executors of a target.

    Attributes:
        handle: reaches one of them.
        replicas: how many there may be.
    """

    handle: Handle
    replicas: int


def lanes(
    table: Table, model: str, cores: Mapping[str, ReplicaCore], executors: Mapping[str, Executors]
) -> tuple[Lane, ...]:
    """What runs a model, in serving order.

    Args:
        table: what is served.
        model: the model's name.
        cores: what this process runs, by target name.
        executors: what others run.
    """
    found = []
    for target in table.targets(model):
        routes = table.routes(model, target)
        if routes and target.name in cores:
            core = cores[target.name]
            found.append(Lane(target.name, core.run, routes, core.loaded))
        elif routes and target.name in executors:
            there = executors[target.name]
            passes = _PASSES * there.replicas
            call = handle_call(there.handle, target)
            found.append(Lane(target.name, call, routes, passes=passes, calls=_CALLS))
    return tuple(found)


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
