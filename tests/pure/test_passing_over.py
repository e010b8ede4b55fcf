"""Executors that do not answer, or cannot do it: the next target's is asked. No Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from rlx_ray.engine.generator import Request
from rlx_ray.errors import ArtifactError, Busy, DeviceMemoryError, ToolchainMissing, VariantMissing
from rlx_serve.gateway.availability import Availability
from rlx_serve.gateway.text_models import ServedTextModel, Stream
from tests.support.site import Site


@pytest.fixture
def pair(tmp_path: Path) -> Site:
    """A model with executors for two targets."""
    return Site(tmp_path, targets=["cpu-aarch64", "cpu-x86_64-v3"])


def asked(site: Site) -> dict[str, int]:
    return {name: len(backend.inputs) for name, backend in site.backends.items()}


def test_a_silent_executor_is_passed_over_with_its_reason(pair: Site) -> None:
    assert pair.embed("fox").status_code == 200
    assert asked(pair) == {"cpu-aarch64": 1, "cpu-x86_64-v3": 0}
    absent = {"cpu-aarch64": "its executor has no replica yet: no node"}
    pair.availability.note(absent)
    pair.backends["cpu-aarch64"].seconds = 60  # what Serve does with a request for it
    assert pair.embed("fox").status_code == 200
    assert asked(pair) == {"cpu-aarch64": 1, "cpu-x86_64-v3": 1}
    rows = pair("GET", "/variants").json()["rows"]
    assert {(r["target"], r["passed_over"]) for r in rows} == {
        *absent.items(),
        ("cpu-x86_64-v3", ""),
    }
    assert "no node" in pair("GET", "/").text


def test_where_none_answers_a_request_waits_for_one_that_comes(pair: Site) -> None:
    starting = dict.fromkeys(pair.backends, "its executor is starting")

    async def come() -> tuple[str, ...]:
        pair.availability.note(starting)
        waiting = asyncio.ensure_future(pair.availability.present(list(pair.backends)))
        for _ in range(3):
            pair.availability.note(starting)
            await asyncio.sleep(0)
            assert not waiting.done()
        pair.availability.note({"cpu-aarch64": "its executor is starting"})
        return await waiting

    assert asyncio.run(come()) == ("cpu-x86_64-v3",)
    pair.availability.note(starting)
    assert pair("GET", "/v2/health/ready").status_code == 503
    pair.hurry()
    assert pair.embed("fox").status_code == 504
    assert asked(pair) == {"cpu-aarch64": 0, "cpu-x86_64-v3": 0}


@pytest.mark.parametrize(
    "error",
    [
        Busy("full"),
        VariantMissing("not built"),
        ArtifactError("the device refuses the code"),
        ToolchainMissing("no NVRTC"),
        DeviceMemoryError("3 GiB wanted, 1 GiB free"),
    ],
)
def test_what_one_target_cannot_do_the_next_one_does(pair: Site, error: Exception) -> None:
    first, second = pair.backends.values()
    first.error = error
    assert pair.embed("fox").status_code == 200
    second.error = Busy("full too")
    reply = pair.embed("fox")
    assert reply.status_code == 503
    assert type(error).__name__ in reply.json()["error"]["message"]


def test_a_generation_starts_on_the_first_executor_to_take_it() -> None:
    availability = Availability("", "abc", {})
    asked = []

    def stream_of(name: str, error: Exception | None = None) -> Stream:
        async def stream(request: Request, streamed: bool) -> AsyncGenerator[str]:
            asked.append(name)
            if error:
                raise error
            yield name

        return stream

    streams = (stream_of("a"), stream_of("b", DeviceMemoryError("full")), stream_of("c"))
    text_model = ServedTextModel(
        "s", 8, frozenset(), None, None, ("a", "b", "c"), streams, availability.present
    )
    availability.note({"a": "its executor is starting"})
    first, _ = asyncio.run(text_model.start(None, 1, streamed=True))
    assert (first, asked) == ("c", ["b", "c"])
    availability.note({"a": "starting", "c": "starting"})
    with pytest.raises(DeviceMemoryError, match="full"):
        asyncio.run(text_model.start(None, 1, streamed=True))
    availability.note(dict.fromkeys("abc", "starting"))
    with pytest.raises(TimeoutError, match="first token"):
        asyncio.run(text_model.start(None, 0.01, streamed=True))
