"""Requests that share a lane's passes: each gets its own answer, and fails alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from rlx_ray.checkpoint.tokenizer import Encoded
from rlx_ray.errors import Busy, CompileError, RlxError
from rlx_ray.inference.embedding import Embedded
from rlx_serve.gateway.embedding import Answer
from rlx_serve.gateway.shared_passes import SharedPasses
from rlx_serve.wire import Route

POISON = 13


def texts(*ids: int, length: int = 4) -> list[Encoded]:
    return [Encoded((i,) * length, (0,) * length, False) for i in ids]


def route(model: str) -> Route:
    return Route(model, "encoder:b1:s8", "k", "d", "w")


class Model:
    """Runs passes whose vector of a text is its id; POISON fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.passes: list[tuple[str, list[int]]] = []
        self.error = error or CompileError("poisoned")
        self.gate = asyncio.Event()
        self.waits = False

    async def __call__(
        self,
        model: str,
        items: Sequence[Encoded],
        counts: Sequence[int],
        waits: Callable[[], None],
    ) -> list[Answer]:
        ids = [text.ids[0] for text in items]
        self.passes.append((model, ids))
        if self.waits:
            waits()
        await self.gate.wait()
        if POISON in ids:
            raise self.error
        answers, first = [], 0
        for count in counts:
            own = items[first : first + count]
            vectors = np.array([[t.ids[0]] for t in own], np.float32)
            tokens = tuple(len(t.ids) for t in own)
            answers.append(
                Answer(Embedded(vectors, tokens, 0, (), (), 0.0), ((route(model), "memory"),))
            )
            first += count
        return answers


def story(check: Callable[[Model, SharedPasses], object], **options: object) -> None:
    async def go() -> None:
        model = Model(**options)  # type: ignore[arg-type]
        await check(model, SharedPasses(1, model, max_rows=40))  # type: ignore[misc]

    asyncio.run(go())


def ask(
    passes: SharedPasses, *ids: int, model: str = "m", seconds: float = 60
) -> asyncio.Task[Answer]:
    work = passes.embed(model, texts(*ids), time.monotonic() + seconds)
    return asyncio.ensure_future(work)


def ids_of(answer: Answer) -> list[float]:
    return answer.embedded.vectors[:, 0].tolist()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_what_comes_while_a_pass_runs_shares_the_next_one() -> None:
    async def check(model: Model, passes: SharedPasses) -> None:
        first = ask(passes, 1)
        await settle()
        others = [ask(passes, i, i + 1) for i in (20, 30, 40)]
        await settle()
        model.gate.set()
        assert ids_of(await first) == [1]
        assert [ids_of(await one) for one in others] == [[20, 21], [30, 31], [40, 41]]
        assert model.passes == [("m", [1]), ("m", [20, 21, 30, 31, 40, 41])]
        assert (await first).times["queue"] < 1

    story(check)


def test_a_request_larger_than_a_pass_leaves_room_for_others() -> None:
    async def check(model: Model, passes: SharedPasses) -> None:
        large = ask(passes, *range(100, 125))
        small = ask(passes, 1, model="other")
        model.gate.set()
        assert ids_of(await large) == list(range(100, 125))
        assert (await large).used == ((route("m"), "memory"),)
        assert ids_of(await small) == [1]
        assert [(name, len(ids)) for name, ids in model.passes] == [
            ("m", 10),
            ("m", 10),
            ("other", 1),
            ("m", 5),
        ]

    story(check)


def test_a_request_that_fails_fails_alone() -> None:
    async def check(model: Model, passes: SharedPasses) -> None:
        model.gate.set()
        tasks = [ask(passes, 1), ask(passes, 2), ask(passes, POISON), ask(passes, 3)]
        with pytest.raises(CompileError, match="poisoned"):
            await tasks[2]
        assert [ids_of(await tasks[i]) for i in (0, 1, 3)] == [[1], [2], [3]]
        assert ids_of(await ask(passes, 4)) == [4]

    story(check)


@pytest.mark.parametrize("error", [Busy("full"), RuntimeError("a fault")])
def test_errors_reach_every_request_and_the_lane_goes_on(error: Exception) -> None:
    async def check(model: Model, passes: SharedPasses) -> None:
        model.gate.set()
        tasks = [ask(passes, POISON) for _ in range(3)]
        for task in tasks:
            with pytest.raises(type(error)):
                await task
        tries = len(model.passes)
        assert tries == (2 if isinstance(error, RlxError) else 4)  # the first, then the others
        assert ids_of(await ask(passes, 4)) == [4]

    story(check, error=error)


def test_a_cancelled_request_is_not_run_and_takes_nobody_along() -> None:
    async def check(model: Model, passes: SharedPasses) -> None:
        running, waiting, other = ask(passes, 1), ask(passes, 2), ask(passes, 3)
        await settle()
        waiting.cancel()
        running.cancel()
        await settle()
        model.gate.set()
        assert ids_of(await other) == [3]
        assert model.passes == [("m", [1]), ("m", [3])]
        assert waiting.cancelled()
        assert running.cancelled()

    story(check)


def test_one_that_leaves_before_its_pass_begins_frees_the_lane() -> None:
    async def check(model: Model, passes: SharedPasses) -> None:
        model.gate.set()
        gone = ask(passes, 1)
        await asyncio.sleep(0)  # its pass is a task that has not run yet
        gone.cancel()
        assert ids_of(await ask(passes, 2)) == [2]
        assert model.passes == [("m", [2])]

    story(check)


def test_what_is_late_is_not_run() -> None:
    async def check(model: Model, passes: SharedPasses) -> None:
        first, late = ask(passes, 1), ask(passes, 2, seconds=0)
        await settle()
        model.gate.set()
        assert ids_of(await first) == [1]
        with pytest.raises(TimeoutError):
            await late
        assert model.passes == [("m", [1])]

    story(check)


def test_a_pass_that_waits_for_a_load_keeps_nobody_waiting() -> None:
    async def check(model: Model, passes: SharedPasses) -> None:
        model.waits = True
        first = ask(passes, 1)
        await settle()
        second = ask(passes, 2)
        await settle()
        assert model.passes == [("m", [1]), ("m", [2])]
        model.gate.set()
        assert [ids_of(await one) for one in (first, second)] == [[1], [2]]

    story(check)
