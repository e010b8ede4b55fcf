"""What a replica holds: its slots, the loads under way, and how room is made on a full device.

A slot is loaded by a task that all waiters share and that no cancelled client ends. No Ray here.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np

from rlx_ray.errors import ArtifactError, DeviceMemoryError, RlxError
from rlx_ray.spec import BuildSpec
from rlx_serve.host import Loaded
from rlx_serve.slots import SlotKey, Slots, Step
from rlx_serve.table import Row

_log = logging.getLogger("ray.serve")

Outputs = dict[str, np.ndarray]


class Holding:
    """The variants of one replica; used from one event loop.

    Args:
        slots: which are held.
        load: loads one; blocks.
        loaders: the threads that it runs in.
        runners: the threads that forward passes run in.
    """

    def __init__(
        self,
        slots: Slots[Loaded],
        load: Callable[[BuildSpec], Loaded],
        loaders: Executor,
        runners: Executor,
    ) -> None:
        self.slots = slots
        self.changed = asyncio.Event()
        """Set when a slot has changed."""
        self._load = load
        self._loaders = loaders
        self._runners = runners
        self._loads: dict[SlotKey, asyncio.Task[None]] = {}

    async def run(self, row: Row, run: Callable[[Loaded], Outputs]) -> tuple[Outputs, str]:
        """Run a variant in a thread, loading it first if need be; its outputs and its tier.

        Where the device is full, idle slots are evicted and it is tried once more.

        Args:
            row: the variant.
            run: what to do with it; its slot is held until that is through, whoever has left.

        Raises:
            RlxError: it cannot be loaded, or its run failed.
        """
        try:
            return await self._run(row, run)
        except DeviceMemoryError as error:
            if not await self.make_room(error):
                raise
        return await self._run(row, run)

    async def _run(self, row: Row, run: Callable[[Loaded], Outputs]) -> tuple[Outputs, str]:
        with contextlib.ExitStack() as stack:
            loaded, tier = await self.hold(row, stack)
            if loaded.digest != row.route.digest:
                raise ArtifactError(f"slot of {row.route.digest} holds {loaded.digest}.")
            loop = asyncio.get_running_loop()
            running = loop.run_in_executor(self._runners, run, loaded)
            held = stack.pop_all()
            running.add_done_callback(lambda done: _let_go(held, done))
            return await asyncio.shield(running), tier

    async def hold(self, row: Row, stack: contextlib.ExitStack) -> tuple[Loaded, str]:
        """A loaded slot, held until the stack is closed, and its tier for this request."""
        key = SlotKey(row.route.model, row.route.digest)
        step = self.slots.hold(key)
        stack.callback(self.slots.release, key)
        if step is Step.LOAD:
            task = asyncio.get_running_loop().create_task(self._fill(key, row.spec))
            self._loads[key] = task
            task.add_done_callback(lambda _: self._loads.pop(key, None))
        if step in (Step.LOAD, Step.WAIT):
            await asyncio.shield(self._loads[key])
        error = self.slots.error(key)
        if error is not None:
            raise error
        loaded = self.slots.value(key)
        return loaded, "memory" if step is Step.RUN else loaded.tier

    async def keep(self, row: Row) -> tuple[Loaded, str]:
        """A loaded slot that is held for good: an engine runs it at any time."""
        with contextlib.ExitStack() as stack:
            loaded, tier = await self.hold(row, stack)
            stack.pop_all()
            return loaded, tier

    async def make_room(self, error: DeviceMemoryError) -> bool:
        """Give back the device's memory that idle slots hold; whether there were any."""
        count = self.slots.evict_idle()
        _log.warning("%d idle slots are evicted: %s", count, error)
        _forget_frames(error)
        await asyncio.get_running_loop().run_in_executor(self._loaders, gc.collect)
        self.changed.set()
        return count > 0

    async def _fill(self, key: SlotKey, spec: BuildSpec) -> None:
        """Load a slot; never raises: a failure is kept in the slot for all who wait for it."""
        try:
            loaded = await self._loaded(spec)
        except RlxError as error:
            _log.warning("%s of %s did not load: %s", spec.component.variant, spec.model, error)
            _forget_frames(error)
            self.slots.failed(key, error)
        except Exception as error:
            _log.exception("%s of %s did not load", spec.component.variant, spec.model)
            self.slots.failed(key, RlxError(f"{type(error).__name__}: {error}"))
        else:
            self.slots.loaded(key, loaded, loaded.nbytes)
        self.changed.set()

    async def _loaded(self, spec: BuildSpec) -> Loaded:
        """Load a variant; where the device is full, once more without the idle slots."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._loaders, self._load, spec)
        except DeviceMemoryError as error:
            if not await self.make_room(error):
                raise
        return await loop.run_in_executor(self._loaders, self._load, spec)


def _let_go(held: contextlib.ExitStack, run: asyncio.Future[Outputs]) -> None:
    """Release a slot after its run, whose error is no one's business if the client has left."""
    held.close()
    if not run.cancelled():
        run.exception()


def _forget_frames(error: BaseException | None) -> None:
    """Let go of what the frames of an error and its causes hold: half a load's memory, say."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
