"""The engine's thread: what ends a stream, what ends the engine, and what is free after it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from rlx_ray.engine.generation import Request
from rlx_ray.engine.generator import Engine
from rlx_ray.engine.sampling import Sampling
from rlx_ray.engine.scheduler import Scheduler
from rlx_ray.errors import EngineError, InputError, StoreError
from rlx_ray.shape import PAGE
from tests.support.specs import TEXT_VARIANTS


class Flaky:
    """A decoder of five tokens that always says 3, and fails when it is told to."""

    def __init__(self) -> None:
        self.binding = SimpleNamespace(outputs=[SimpleNamespace(name="logits")])
        self.fails: list[Exception] = []

    def run(self, inputs, cache=None, wanted=None):
        assert set(wanted) == {"logits"}
        assert inputs["pages"].max() < len(cache)
        if self.fails:
            raise self.fails.pop()
        logits = np.zeros((len(inputs["lengths"]), 5), np.float32)
        logits[:, 3] = 1
        return {"logits": logits}


@pytest.fixture
def flaky() -> Iterator[tuple[Flaky, Engine]]:
    decoder = Flaky()
    engine = Engine(TEXT_VARIANTS, lambda _: decoder, lambda ids: "x" * len(ids), range(64), 5)
    yield decoder, engine
    engine.close()


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (ValueError("boom"), EngineError, "ValueError: boom"),
        (StoreError("the store is away"), StoreError, "the store is away"),
    ],
)
def test_a_failed_step_ends_its_streams_and_not_the_engine(
    flaky, fault: Exception, kind: type[Exception], message: str
) -> None:
    decoder, engine = flaky
    decoder.fails = [fault]
    with pytest.raises(kind, match=message):
        list(engine.submit(Request((1, 2), 4)))
    pieces = list(engine.submit(Request((1, 2), 4, Sampling(temperature=0))))
    assert [p.chosen.token for p in pieces if p.chosen] == [3, 3, 3, 3]


def test_the_engine_knows_the_window() -> None:
    for window, context in ((0, 4 * PAGE), (32, 512)):
        decode, cache = lambda ids: "x" * len(ids), range(4)
        engine = Engine(TEXT_VARIANTS, lambda _: Flaky(), decode, cache, 5, window)
        assert engine.context == context
        engine.close()


def test_who_names_no_length_gets_what_the_cache_has_room_for() -> None:
    cache = range(2)  # fewer pages than the variants could take
    engine = Engine(TEXT_VARIANTS, lambda _: Flaky(), lambda ids: "x" * len(ids), cache, 5)
    pieces = list(engine.submit(Request((1, 2, 4), None, Sampling(temperature=0))))
    assert (len(pieces), pieces[-1].finish) == (2 * PAGE - 3, "length")
    with pytest.raises(InputError, match=f"max_tokens is 62, but .* leave 61 of .* {2 * PAGE}"):
        engine.submit(Request((1, 2, 4), 62))
    engine.close()


def test_a_scheduler_fault_ends_all_streams_and_the_engine(
    flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, engine = flaky
    at_work, go_on = threading.Event(), threading.Event()

    def broken(self: Scheduler) -> None:
        at_work.set()
        go_on.wait(10)
        raise AssertionError("pages ran out")

    monkeypatch.setattr(Scheduler, "next_step", broken)
    answers: list[object] = []
    first = engine.submit(Request((1, 2), 4), answers.append)
    assert at_work.wait(10)
    late = engine.submit(Request((1, 2), 4))
    engine.cancel(first)
    go_on.set()
    with pytest.raises(EngineError, match="the engine has failed: AssertionError: pages ran out"):
        list(late)
    assert [type(answer) for answer in answers] == [EngineError]
    with pytest.raises(EngineError, match="pages ran out"):
        engine.submit(Request((1,), 1))
    assert "pages ran out" in engine.closed
    engine.close()


def test_a_closed_engine_is_the_servers_error(flaky) -> None:
    _, engine = flaky
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.submit(Request((1,), 1))
