"""When Serve is to start a replica anew: its device is lost, or a text engine has failed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from rlx_ray.errors import DeviceError, DeviceLost, EngineError
from rlx_serve.executor import Executor
from rlx_serve.problems import Failure
from rlx_serve.speaking import Speakers


def test_a_lost_device_fails_the_health_check_and_a_refused_call_does_not() -> None:
    replica = Executor.__new__(Executor)
    replica._lost = None
    replica._speakers = SimpleNamespace(check=lambda: None)
    assert replica._failure(DeviceError("refused.")) == Failure("DeviceError", "refused.", "")
    replica.check_health()
    assert replica._failure(DeviceLost("gone.")) == Failure("DeviceLost", "gone.", "")
    with pytest.raises(DeviceLost, match="gone"):
        replica.check_health()


def test_a_failed_engine_fails_the_health_check_and_an_open_one_does_not() -> None:
    async def story() -> None:
        async def opened(closed: str) -> SimpleNamespace:
            return SimpleNamespace(closed=closed)

        async def refused() -> SimpleNamespace:
            raise DeviceError("no room.")

        loop = asyncio.get_running_loop()
        speakers = Speakers((), {}, lambda row: refused(), loop, 1)
        tasks = {
            "open": opened(""),
            "absent": refused(),
            "failed": opened("the engine has failed."),
        }
        speakers._engines = {name: loop.create_task(work) for name, work in tasks.items()}
        speakers.check()  # none is there yet
        await asyncio.wait(list(speakers._engines.values()))
        with pytest.raises(EngineError, match="the engine has failed"):
            speakers.check()
        del speakers._engines["failed"]
        speakers.check()

    asyncio.run(story())
