"""What a replica holds: its slots, loads and endings under way, and how room is made when it lacks.

A slot is loaded by a task that all waiters share and that no cancelled client ends. No Ray here.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from copy import copy
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from rlx_ray.errors import ArtifactError, Busy, DeviceMemoryError, EngineError, RlxError
from rlx_ray.inference.loader import Loaded
from rlx_ray.spec import BuildSpec
from rlx_serve.replica.variant_cache import NextStep, SlotKey, SlotState, VariantCache, engine_key
from rlx_serve.table import ServedVariant
from rlx_serve.wire import Route

_log = logging.getLogger("ray.serve")

Outputs = dict[str, np.ndarray]

_PATIENCE_S = 1.0
"""How long a model's first stream waits for room that others use, before it is refused."""

_LOOK_S = 0.02


class Closing(Protocol):
    """What has to be ended before its memory is free."""

    def close(self) -> None:
        """End it and free its memory; blocks."""
        ...


_Value = TypeVar("_Value")
_Engine = TypeVar("_Engine", bound=Closing)


class Residency:
    """The variants and text engines of one replica; used from one event loop.

    Args:
        max_slots: see `VariantCache`.
        max_bytes: see `VariantCache`.
        load: loads a variant; blocks.
        loaders: the threads that it runs in.
        runners: the threads that forward passes run in.
    """

    def __init__(
        self,
        max_slots: int,
        max_bytes: int,
        load: Callable[[BuildSpec], Loaded],
        loaders: Executor,
        runners: Executor,
    ) -> None:
        # A slot's value is what its own load gave: a Loaded, or an engine.
        self.slots: VariantCache[Any] = VariantCache(
            max_slots, max_bytes, time.monotonic, self._end
        )
        self.changed = asyncio.Event()
        """Set when a slot has changed."""
        self._load = load
        self._loaders = loaders
        self._runners = runners
        self._loads: dict[SlotKey, asyncio.Task[None]] = {}
        self._ends: dict[SlotKey, asyncio.Task[None]] = {}

    async def run(
        self, row: ServedVariant, run: Callable[[Loaded], Outputs]
    ) -> tuple[Outputs, str]:
        """Run a variant in a thread, loading it first if need be; its outputs and its tier.

        Where the device is full, what is idle is evicted and it is tried once more.

        Args:
            row: the variant.
            run: what to do with it; its slot is held until that is through, whoever has left.

        Raises:
            RlxError: it cannot be loaded, or its run failed.
        """
        return await self._with_room(partial(self._run, row, run))

    async def _run(
        self, row: ServedVariant, run: Callable[[Loaded], Outputs]
    ) -> tuple[Outputs, str]:
        with contextlib.ExitStack() as stack:
            loaded, tier = await self.hold(row, stack)
            held, wanted = (loaded.digest, loaded.weights), (row.route.digest, row.route.weights)
            if held != wanted:
                raise ArtifactError(f"slot of {wanted} holds {held} (artifact, weights).")
            loop = asyncio.get_running_loop()
            running = loop.run_in_executor(self._runners, run, loaded)
            holds = stack.pop_all()
            running.add_done_callback(lambda done: _let_go(holds, done))
            return await asyncio.shield(running), tier

    async def hold(self, row: ServedVariant, stack: contextlib.ExitStack) -> tuple[Loaded, str]:
        """A loaded variant, held until the stack is closed, and its tier for this request."""
        key = slot_key(row.route)
        step = self._ask(key, 0, partial(self._variant, row.spec), stack)
        loaded: Loaded = await self._value(key, step)
        return loaded, "memory" if step is NextStep.RUN else loaded.tier

    async def keep(self, row: ServedVariant) -> tuple[Loaded, str]:
        """A loaded variant that stays as long as its model's engine, which runs it at any time."""
        with contextlib.ExitStack() as stack:
            found = await self.hold(row, stack)
            self.slots.keep(slot_key(row.route))
            return found

    async def hold_engine(
        self,
        model: str,
        nbytes: int,
        make: Callable[[], Awaitable[tuple[_Engine, int]]],
        stack: contextlib.ExitStack,
    ) -> _Engine:
        """A model's engine, held until the stack is closed; made by whoever comes first.

        Idle variants and engines are evicted for it, the least recently used ones first.

        Args:
            model: its name.
            nbytes: most bytes of its cache.
            make: makes the engine; gives it with the bytes of its cache.
            stack: what holds it.

        Raises:
            Busy: what others use leaves no room for it.
            RlxError: it cannot be made.
        """
        await self._admit(model, nbytes)
        key = engine_key(model)
        step = self._ask(key, nbytes, partial(self._engine, make), stack)
        engine: _Engine = await self._value(key, step)
        return engine

    async def _admit(self, model: str, nbytes: int) -> None:
        """Wait until a model's engine is there, or there is room for it.

        Raises:
            Busy: there is none for a while.
        """
        key, until = engine_key(model), time.monotonic() + _PATIENCE_S
        while True:
            while key in self._ends:
                await asyncio.shield(self._ends[key])
            there = self.slots.state(key) in (SlotState.LOADING, SlotState.LOADED)
            if there or self.slots.fits(model, nbytes):
                return
            if time.monotonic() >= until:
                raise Busy(
                    f"this replica may hold {self.slots.max_bytes} bytes (serve.max_slot_bytes), "
                    f"and what others use leaves no room for model {model!r} and a cache of "
                    f"{nbytes}.",
                    "Try again when they have ended, or raise it.",
                )
            await asyncio.sleep(_LOOK_S)  # what is short ends in a moment

    def hold_open(self, model: str, stack: contextlib.ExitStack) -> None:
        """Hold an engine that is there, while it asks for something itself.

        Raises:
            EngineError: it is ending.
        """
        key = engine_key(model)
        if self.slots.state(key) is not SlotState.LOADED:
            raise EngineError(f"the engine of {model!r} is ending.", "Send the request again.")
        self.slots.hold(key)
        stack.callback(self.slots.release, key)

    def open_engines(self) -> list[Any]:
        """The engines that are there."""
        states = self.slots.engines().items()
        loaded = [model for model, (state, _) in states if state is SlotState.LOADED]
        return [self.slots.value(engine_key(model)) for model in loaded]

    async def in_loader(self, work: Callable[[], _Value]) -> _Value:
        """Do in a loader's thread what takes memory; where the device is full, make room once.

        Raises:
            DeviceMemoryError: it stays full.
            RlxError: as the work does.
        """
        loop = asyncio.get_running_loop()
        return await self._with_room(lambda: loop.run_in_executor(self._loaders, work))

    async def make_room(self, error: DeviceMemoryError) -> None:
        """Give back the device's memory that idle slots and engines hold."""
        count = self.slots.evict_idle()
        _log.warning("%d idle slots are evicted: %s", count, error)
        _forget_frames(error)
        await self._ended()
        await asyncio.get_running_loop().run_in_executor(self._loaders, gc.collect)
        self.changed.set()

    async def _with_room(self, work: Callable[[], Awaitable[_Value]]) -> _Value:
        before = self._freed
        try:
            return await work()
        except DeviceMemoryError as error:
            await self.make_room(error)
            if self._freed == before:
                raise
        return await work()

    @property
    def _freed(self) -> int:
        """How many slots' memory is free again, whoever had them evicted."""
        return self.slots.evictions - len(self._ends)

    def _ask(
        self,
        key: SlotKey,
        nbytes: int,
        load: Callable[[], Awaitable[tuple[Any, int]]],
        stack: contextlib.ExitStack,
    ) -> NextStep:
        """Hold a slot until the stack is closed, and have it loaded if nobody does yet."""
        step = self.slots.hold(key, nbytes)
        stack.callback(self.slots.release, key)
        if step is NextStep.LOAD:
            task = asyncio.get_running_loop().create_task(self._fill(key, load))
            self._loads[key] = task
            self.changed.set()
        return step

    async def _value(self, key: SlotKey, step: NextStep) -> Any:
        """What a slot that is held holds, once it is loaded."""
        if step in (NextStep.LOAD, NextStep.WAIT):
            await asyncio.shield(self._loads[key])
        error = self.slots.error(key)
        if error is not None:
            raise copy(error)  # one of its own for each: a raised one holds its waiters' frames
        return self.slots.value(key)

    async def _fill(self, key: SlotKey, load: Callable[[], Awaitable[tuple[Any, int]]]) -> None:
        """Load a slot; never raises: a failure is kept in the slot for all who wait for it."""
        try:
            value, nbytes = await load()
        except RlxError as error:
            _log.warning("%s of %s did not load: %s", key.digest[:16], key.model, error)
            _forget_frames(error)
            self.slots.failed(key, error)
        except Exception as error:
            _log.exception("%s of %s did not load", key.digest[:16], key.model)
            self.slots.failed(key, RlxError(f"{type(error).__name__}: {error}"))
        else:
            self.slots.loaded(key, value, nbytes)
        del self._loads[key]  # with its slot's state: who comes next may load it anew
        self.changed.set()

    async def _variant(self, spec: BuildSpec) -> tuple[Loaded, int]:
        loaded = await self.in_loader(partial(self._load, spec))
        return loaded, loaded.nbytes

    async def _engine(
        self, make: Callable[[], Awaitable[tuple[_Engine, int]]]
    ) -> tuple[_Engine, int]:
        await self._ended()  # their memory is what this one is to have
        return await make()

    def _end(self, key: SlotKey, engine: Closing) -> None:
        self._ends[key] = asyncio.get_running_loop().create_task(self._ending(key, engine))
        self.changed.set()

    async def _ending(self, key: SlotKey, engine: Closing) -> None:
        """End an engine, which runs at most one step more."""
        try:
            await asyncio.to_thread(engine.close)
        finally:
            del self._ends[key]
            self.slots.ended(key)
            self.changed.set()

    async def _ended(self) -> None:
        """Wait until no engine is ending."""
        while self._ends:
            await asyncio.wait(self._ends.values())


def slot_key(route: Route) -> SlotKey:
    """The slot that runs a route."""
    return SlotKey(route.model, route.digest, route.weights)


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
