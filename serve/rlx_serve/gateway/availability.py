"""Which executors answer, as Ray Serve's controller says: for gateways, and while starting."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence

from ray import serve
from ray.serve.schema import ApplicationStatusOverview

from rlx_ray.errors import RlxError
from rlx_serve.placement import absences, failure, serves, settled

_LOOK_S = 3.0
_WANTED_LOOK_S = 0.2
"""The same while a request waits for an executor."""

_START_LOOK_S = 0.2
_PATIENCE_S = 30.0
"""How long a start waits for executors that nothing depends on: another target answers."""

LOGS = "See the replicas' logs, which a cluster that is joined (RAY_ADDRESS) keeps."
"""What to do about a start that failed; a cluster of its own takes its logs along."""

_log = logging.getLogger("ray.serve")


class Availability:
    """The targets whose executors do not answer, looked up now and then.

    A request is not sent to them: Serve would keep it until some replica starts.

    Args:
        app: the application's name.
        targets: names of those with executors.
        passed_over: why other targets have none, by name.
    """

    def __init__(self, app: str, targets: Sequence[str], passed_over: Mapping[str, str]) -> None:
        self._app = app
        self._targets = tuple(targets)
        self._passed_over = passed_over
        self._absent: Mapping[str, str] = {}
        self._looked = asyncio.Event()
        self._wanted = asyncio.Event()

    def absent(self) -> Mapping[str, str]:
        """Why a target's executor does not answer, by the target's name."""
        return {**self._passed_over, **self._absent}

    async def present(self, targets: Sequence[str]) -> tuple[str, ...]:
        """Those of some targets whose executors answer; waits until there is one."""
        while True:
            found = tuple(target for target in targets if target not in self._absent)
            if found:
                return found
            self._wanted.set()
            await self._looked.wait()

    async def watch(self) -> None:
        """Look again and again; what has changed is logged once."""
        for target, why in self._passed_over.items():
            _log.warning("%s is passed over: %s", target, why)
        while True:
            self._wanted.clear()
            try:
                status = await asyncio.to_thread(serve.status)
                self.note(absences(status.applications[self._app], self._targets))
            except Exception as error:  # the controller is away; what was seen last still holds
                _log.warning("the state of the executors is not known: %s", error)
            await asyncio.sleep(_WANTED_LOOK_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), _LOOK_S)

    def note(self, absent: Mapping[str, str]) -> None:
        """Take what a look has found: why executors do not answer, by target name."""
        for target, why in absent.items():
            if self._absent.get(target) != why:
                _log.warning("%s is passed over: %s", target, why)
        for target in self._absent.keys() - absent.keys():
            _log.info("%s answers", target)
        self._absent = absent
        self._looked.set()
        self._looked = asyncio.Event()


def wait_until_served(
    app: str, models: Mapping[str, tuple[str, ...]], executors: Sequence[str]
) -> Mapping[str, str]:
    """Wait until every model is served, and a little for executors that are still starting.

    Args:
        app: the application's name.
        models: by model that gateways do not run, the target names of its executors.
        executors: the target names of all executors.

    Returns:
        Why executors do not answer that nothing depends on, by target name.

    Raises:
        RlxError: a model has no executor that could still start.
    """
    told, until = False, time.monotonic() + _PATIENCE_S
    while True:
        found: ApplicationStatusOverview | None = serve.status().applications.get(app)
        if found is not None:
            why = failure(found, models)
            if why:
                raise RlxError(f"serving did not start: {why}", LOGS)
            absent, late = absences(found, executors), time.monotonic() > until
            if serves(found, models) and (late or settled(found, executors)):
                return absent
            if late and not told:
                _log.warning("still waiting: %s", absent)
                told = True
        time.sleep(_START_LOOK_S)
