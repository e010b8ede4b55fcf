"""A replica's slots while they load and run: room on a full device, and typed errors."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlx_ray.errors import ArtifactError, DeviceError, DeviceLost, DeviceMemoryError
from rlx_serve.http.problems import problem
from rlx_serve.replica.residency import Residency
from rlx_serve.replica.variant_cache import SlotKey, SlotState
from rlx_serve.wire import Route


class Memory:
    """Something whose end can be seen."""


@dataclass
class Variant:
    digest: str
    memory: Memory
    weights: str = "w"
    tier: str = "store"
    nbytes: int = 1


class Device:
    """Room for two variants, and a fault for the next run."""

    def __init__(self) -> None:
        self.held: weakref.WeakSet[Memory] = weakref.WeakSet()
        self.loads: list[str] = []
        self.fault: Exception | None = None
        self.together: threading.Barrier | None = None

    def load(self, spec: Any) -> Variant:
        self.loads.append(spec.digest)
        if self.together is not None and self.loads.count(spec.digest) == 1:
            self.together.wait(10)
        mine = Memory()
        self.held.add(mine)
        full = len(self.held) > 2
        if self.together is not None and self.loads.count(spec.digest) == 1:
            self.together.wait(10)
        if full:
            raise DeviceMemoryError("no room.", "Load fewer.")
        return Variant(spec.digest, mine)

    def run(self, loaded: Variant) -> dict[str, np.ndarray]:
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        return {"y": np.array([int(loaded.digest)])}


def row(digest: str) -> Any:
    spec = SimpleNamespace(digest=digest, model="m", component=SimpleNamespace(variant=digest))
    return SimpleNamespace(route=Route("m", "v", "k", digest, "w"), spec=spec)


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as found:
        yield found


def residency(device: Device, threads: ThreadPoolExecutor) -> Residency:
    return Residency(8, 1 << 30, device.load, threads, threads)


async def ask(held: Residency, device: Device, digest: str) -> int:
    outputs, _ = await held.run(row(digest), device.run)
    return int(outputs["y"][0])


def test_a_load_on_a_full_device_evicts_idle_slots_once(device, threads) -> None:
    async def story() -> None:
        held = residency(device, threads)
        for digest in ("1", "2", "3", "3"):
            assert await ask(held, device, digest) == int(digest)
        assert device.loads == ["1", "2", "3", "3"]
        assert [key.digest for key in held.slots.states()] == ["3"]
        assert held.slots.evictions == 2
        gc.collect()
        assert len(device.held) == 1

    asyncio.run(story())


def test_loads_on_a_full_device_share_the_room_that_is_made(device, threads) -> None:
    async def story() -> None:
        held = residency(device, threads)
        for digest in ("1", "2"):
            await ask(held, device, digest)
        device.together = threading.Barrier(2)
        assert await asyncio.gather(*(ask(held, device, d) for d in ("3", "4"))) == [3, 4]
        assert sorted(device.loads) == ["1", "2", "3", "3", "4", "4"]
        assert held.slots.evictions == 2

    asyncio.run(story())


def test_a_full_device_sheds_loads_and_serves_what_it_holds(device, threads) -> None:
    async def story() -> None:
        held = residency(device, threads)
        for digest in ("1", "2"):
            await held.hold(row(digest), contextlib.ExitStack())
        with pytest.raises(DeviceMemoryError) as caught:
            await ask(held, device, "3")
        answer = problem(caught.value)
        assert (answer.status, answer.code) == (503, "out_of_device_memory")
        assert answer.headers == {"retry-after": "1"}
        assert await ask(held, device, "1") == 1
        gc.collect()
        assert len(device.held) == 2, "the failed load's memory is kept by nothing"

    asyncio.run(story())


def test_a_run_without_room_is_retried_without_idle_slots(device, threads) -> None:
    async def story() -> None:
        held = residency(device, threads)
        for digest in ("1", "2"):
            await ask(held, device, digest)
        device.fault = DeviceMemoryError("no room for a graph.")
        assert await ask(held, device, "2") == 2
        assert device.loads == ["1", "2", "2"]

    asyncio.run(story())


def test_waiters_of_one_failed_load_each_get_the_error(device, threads) -> None:
    async def story() -> None:
        held = residency(device, threads)
        for digest in ("1", "2"):
            await held.hold(row(digest), contextlib.ExitStack())
        answers = await asyncio.gather(
            *(ask(held, device, "3") for _ in range(5)), return_exceptions=True
        )
        assert [type(a) for a in answers] == [DeviceMemoryError] * 5
        assert {str(a) for a in answers} == {"no room. Load fewer."}
        assert len(device.loads) == 3
        kept = held.slots.error(SlotKey("m", "3", "w"))
        assert kept is not None
        assert kept.__traceback__ is None, "it would hold what each of them asked for"

    asyncio.run(story())


def test_other_faults_of_a_device_are_not_tried_again(device, threads) -> None:
    async def story() -> None:
        held = residency(device, threads)
        for fault in (DeviceError("refused."), DeviceLost("gone.")):
            device.fault = fault
            with pytest.raises(type(fault)) as caught:
                await ask(held, device, "1")
            answer = problem(caught.value)
            assert (answer.status, answer.code, answer.retry_after) == (503, "device_error", 5)
        assert await ask(held, device, "1") == 1
        assert device.loads == ["1"]

    asyncio.run(story())


def test_a_slot_of_another_artifact_is_never_run(device, threads) -> None:
    async def story() -> None:
        held = residency(device, threads)
        wrong = row("1")
        wrong.spec.digest = "2"
        with pytest.raises(ArtifactError, match=r"slot of \('1', 'w'\) holds \('2', 'w'\)"):
            await held.run(wrong, device.run)

    asyncio.run(story())


def test_a_slot_of_other_weights_is_never_run(device, threads) -> None:
    async def story() -> None:
        held = residency(device, threads)
        wrong = row("1")
        wrong.route = replace(wrong.route, weights="other")
        with pytest.raises(ArtifactError, match=r"slot of \('1', 'other'\) holds \('1', 'w'\)"):
            await held.run(wrong, device.run)

    asyncio.run(story())


def test_a_slot_that_is_loaded_anew_at_once_has_its_own_load(device, threads) -> None:
    async def story() -> None:
        held = residency(device, threads)
        with contextlib.ExitStack() as left:
            first = asyncio.create_task(held.hold(row("1"), left))
            await asyncio.sleep(0)
            first.cancel()
        held.changed.clear()
        await held.changed.wait()  # loaded, in this very turn of the loop
        assert held.slots.evict_idle() == 1
        late = asyncio.create_task(ask(held, device, "1"))
        assert await ask(held, device, "1") == await late == 1
        assert device.loads == ["1", "1"]

    asyncio.run(story())


def test_a_load_is_told_when_it_begins_and_when_it_is_through(device, threads) -> None:
    async def story() -> None:
        held = residency(device, threads)
        asked = asyncio.create_task(ask(held, device, "1"))
        for state in (SlotState.LOADING, SlotState.LOADED):
            await held.changed.wait()
            held.changed.clear()
            assert list(held.slots.states().values()) == [state]
        await asked

    asyncio.run(story())


def test_a_client_that_leaves_ends_no_load(device, threads) -> None:
    async def story() -> None:
        held = residency(device, threads)
        first = asyncio.create_task(ask(held, device, "1"))
        await asyncio.sleep(0)
        second = asyncio.create_task(ask(held, device, "1"))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == 1
        assert device.loads == ["1"]

    asyncio.run(story())
