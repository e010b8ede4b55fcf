"""Cluster single flight: one actor that has every variant built once, and knows who holds what.

It is a Serve deployment of exactly one replica: the application owns it, restarts it and ends it.
Losing it loses nothing: what was built is in the store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import ray

from rlx_ray.config.schema import StoreSpec
from rlx_ray.errors import BuildLimitError, CompileError, Failure, RlxError
from rlx_ray.job.build import BuildLimits
from rlx_ray.job.build_task import BuildOutcome, build_and_publish
from rlx_ray.spec import BuildSpec
from rlx_serve.wire import Held

_REMEMBER_FAILURE_S = 3.0
_FORGET_REPLICA_S = 30.0


Run = Callable[[bytes], Awaitable[BuildOutcome]]
"""Builds the spec whose JSON it is given."""


def ray_run(store: StoreSpec, limits: BuildLimits) -> Run:
    """Builds as a Ray task on any node that has a processor free."""
    task = ray.remote(num_cpus=1, max_retries=2)(build_and_publish)
    patience = build_patience(limits.seconds)

    async def run(spec_json: bytes) -> BuildOutcome:
        ref = task.remote(spec_json, store, limits)
        try:
            record: BuildOutcome = await asyncio.wait_for(asyncio.shield(ref), patience)
            return record
        except TimeoutError:
            ray.cancel(ref, force=True)
            raise BuildLimitError(
                f"no node had a processor for a build within {patience:g} s.",
                "Give the cluster more CPUs, or prebuild the variants.",
            ) from None
        except ray.exceptions.RayError as error:
            raise CompileError(f"the build task ended: {error}") from error

    return run


def build_patience(seconds: float) -> float:
    """How long a build may take with its wait for a processor, given its own limit."""
    return 2 * seconds + 60


class Coordinator:
    """The cluster's single flight, and a board of which replica holds which variant.

    Args:
        store: where builds are published.
        limits: of one build.
        run: builds a spec; None for a Ray task.
        clock: seconds, from any start.
    """

    def __init__(
        self,
        store: StoreSpec,
        limits: BuildLimits,
        run: Run | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run or ray_run(store, limits)
        self._clock = clock
        self._running: dict[tuple[str, str], asyncio.Task[BuildOutcome]] = {}
        self._failed: dict[tuple[str, str], tuple[float, BuildOutcome]] = {}
        self._count = 0
        self._board: dict[str, tuple[float, Held]] = {}

    async def ensure(self, spec_json: bytes) -> BuildOutcome:
        """Have a variant built unless the store has it; all who ask meanwhile share one build.

        A failure is the answer for a few seconds, then the build is tried again.
        """
        spec = BuildSpec.loads(spec_json)
        key = (spec.model, spec.digest)  # the store keeps a manifest for each model
        ended, record = self._failed.get(key, (0.0, None))
        if record is not None and self._clock() - ended < _REMEMBER_FAILURE_S:
            return record
        task = self._running.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._one(key, spec_json))
            self._running[key] = task
        return await asyncio.shield(task)

    async def builds(self) -> int:
        """How many builds ran since this actor started."""
        return self._count

    async def report(self, replica: str, held: Held) -> None:
        """Note what a replica holds."""
        self._board[replica] = (self._clock(), held)

    async def board(self) -> dict[str, Held]:
        """What each replica holds that has reported lately."""
        now = self._clock()
        self._board = {
            name: (seen, held)
            for name, (seen, held) in self._board.items()
            if now - seen < _FORGET_REPLICA_S
        }
        return {name: held for name, (_, held) in self._board.items()}

    async def _one(self, key: tuple[str, str], spec_json: bytes) -> BuildOutcome:
        try:
            record = await self._run(spec_json)
        except RlxError as error:
            record = BuildOutcome(key[1], "failed", 0.0, failure=Failure.of(error))
        finally:
            del self._running[key]
        self._count += record.status != "present"
        self._failed.pop(key, None)
        if record.status == "failed":
            self._failed[key] = (self._clock(), record)
        return record
