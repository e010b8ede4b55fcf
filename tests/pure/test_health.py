"""When Serve is to start a replica anew: its device is lost, or a text engine has failed."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from rlx_ray.errors import DeviceError, DeviceLost, EngineError
from rlx_serve.executor import Executor
from rlx_serve.holding import Holding
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
        with ThreadPoolExecutor() as threads:
            holding = Holding(8, 1 << 30, lambda spec: None, threads, threads)
            speakers = Speakers((), {}, holding, 1)
            stack = contextlib.ExitStack()

            async def engine(closed: str) -> tuple[SimpleNamespace, int]:
                return SimpleNamespace(closed=closed), 1

            async def refused() -> tuple[SimpleNamespace, int]:
                raise DeviceError("no room.")

            await holding.hold_engine("open", 1, lambda: engine(""), stack)
            with pytest.raises(DeviceError, match="no room"):
                await holding.hold_engine("absent", 1, refused, stack)
            speakers.check()
            await holding.hold_engine("failed", 1, lambda: engine("the engine has failed."), stack)
            with pytest.raises(EngineError, match="the engine has failed"):
                speakers.check()

    asyncio.run(story())
