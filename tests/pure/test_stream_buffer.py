"""Batches of a stream's deltas: nothing lost, in order, the first at once, the last at the end."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from rlx_ray.component import ModelVariant
from rlx_ray.engine.generation import TokenDelta
from rlx_ray.engine.sampling import Chosen
from rlx_ray.errors import EngineError
from rlx_serve.replica.stream_buffer import FlushInterval, StreamBuffer, joined
from rlx_serve.wire import TokenBatch

VARIANT = ModelVariant.decode(1, 63)


def delta(token: int, finish: str = "") -> TokenDelta:
    return TokenDelta(Chosen(token, -0.5 * token), f"<{token}>", finish, (VARIANT,))


def feed(buffer: StreamBuffer, count: int) -> threading.Thread:
    """Puts `count` deltas from a thread of its own, as an engine does; the last ends the stream."""

    def run() -> None:
        for i in range(count):
            buffer.put(delta(i, "length" if i == count - 1 else ""))

    thread = threading.Thread(target=run)
    thread.start()
    return thread


async def batches(buffer: StreamBuffer) -> list[TokenBatch]:
    found = []
    while not found or not found[-1].finish:
        found.append(joined(await buffer.take()))
    return found


@pytest.mark.parametrize("flush", [0.0, 0.002, None])
def test_batches_hold_every_piece_once_and_in_order(flush: float | None) -> None:
    async def run() -> list[TokenBatch]:
        buffer = StreamBuffer(None if flush is None else lambda: flush)
        thread = feed(buffer, 500)
        found = await batches(buffer)
        thread.join()
        return found

    found = asyncio.run(asyncio.wait_for(run(), 20))
    assert "".join(s.text for s in found) == "".join(f"<{i}>" for i in range(500))
    chosen = [c for s in found for c in s.chosen]
    assert [(c.token, c.logprob) for c in chosen] == [(i, -0.5 * i) for i in range(500)]
    assert [s.finish for s in found] == [""] * (len(found) - 1) + ["length"]


def test_what_is_not_read_while_it_runs_comes_in_two_batches() -> None:
    async def run() -> list[int]:
        buffer = StreamBuffer(None)
        buffer.put(delta(0))
        sizes = [len(await buffer.take())]
        for i in range(1, 40):
            buffer.put(delta(i, "stop" if i == 39 else ""))
        return [*sizes, len(await buffer.take())]

    assert asyncio.run(run()) == [1, 39]


def test_a_running_stream_waits_for_more_unless_it_is_over() -> None:
    async def run() -> tuple[int, int]:
        buffer = StreamBuffer(lambda: 60.0)
        buffer.put(delta(0))
        await buffer.take()
        waiting = asyncio.ensure_future(buffer.take())
        buffer.put(delta(1))
        await asyncio.sleep(0.05)
        held = int(waiting.done())
        buffer.put(delta(2, "stop"))
        return held, len(await asyncio.wait_for(waiting, 10))

    assert asyncio.run(run()) == (0, 2)


def test_an_error_comes_after_the_pieces_before_it() -> None:
    async def run() -> None:
        buffer = StreamBuffer(lambda: 0.0)
        buffer.put(delta(0))
        buffer.put(delta(1))
        buffer.put(EngineError("a step failed."))
        assert [p.text for p in await buffer.take()] == ["<0>", "<1>"]
        await buffer.take()

    with pytest.raises(EngineError, match="a step failed"):
        asyncio.run(run())


def test_a_batch_can_be_given_up_while_it_is_held_back() -> None:
    async def run() -> None:
        buffer = StreamBuffer(lambda: 60.0)
        buffer.put(delta(0))
        await buffer.take()
        buffer.put(delta(1))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(buffer.take(), 0.05)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("streams", "seconds"), [(0, 0.04), (1, 0.04), (4, 0.04), (8, 0.08), (20, 0.2), (99, 0.25)]
)
def test_many_streams_send_less_often_within_bounds(streams: int, seconds: float) -> None:
    flush = FlushInterval()
    with contextlib.ExitStack() as stack:
        for _ in range(streams):
            stack.enter_context(flush.stream())
        assert flush() == seconds
    assert flush() == 0.04
