"""When Serve is to start a replica anew: its device is lost, or a text engine has failed."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from rlx_ray.errors import DeviceError, DeviceLost, EngineError
from rlx_serve.replica.health import DeviceHealth
from rlx_serve.replica.residency import Residency
from rlx_serve.replica.text_engines import TextEngines


def test_only_a_lost_device_fails_the_health_check() -> None:
    health = DeviceHealth()
    health.note(DeviceError("refused."))
    health.check()
    health.note(DeviceLost("gone."))
    with pytest.raises(DeviceLost, match="gone"):
        health.check()


def test_only_a_failed_engine_fails_the_health_check() -> None:
    async def story() -> None:
        with ThreadPoolExecutor() as threads:
            residency = Residency(8, 1 << 30, lambda spec: None, threads, threads)
            engines = TextEngines((), {}, residency, 1)
            stack = contextlib.ExitStack()

            async def engine(closed: str) -> tuple[SimpleNamespace, int]:
                return SimpleNamespace(closed=closed), 1

            async def refused() -> tuple[SimpleNamespace, int]:
                raise DeviceError("no room.")

            await residency.hold_engine("open", 1, lambda: engine(""), stack)
            with pytest.raises(DeviceError, match="no room"):
                await residency.hold_engine("absent", 1, refused, stack)
            engines.check()
            await residency.hold_engine(
                "failed", 1, lambda: engine("the engine has failed."), stack
            )
            with pytest.raises(EngineError, match="the engine has failed"):
                engines.check()

    asyncio.run(story())
