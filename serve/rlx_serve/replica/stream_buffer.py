"""Tokens of a stream on their way from the engine's thread to a client, handed on in batches.

A message passes three processes and costs about as much as a decode step of a small model, on the
cores that the step wants: the fewer, the faster the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from rlx_ray.engine.generation import TokenDelta
from rlx_ray.errors import RlxError
from rlx_serve.wire import Route, TokenBatch

_PACE_S = 0.04
"""Least seconds between two messages of a stream: 25 a second look fluent."""

_SLOW_S = 0.25
"""The most that many streams make of it."""

_MESSAGES = 100
"""Messages a second of a replica, within these bounds: each costs some milliseconds of processor
time in its three processes, and in the replica's own it holds up the engine's thread."""


def joined(deltas: Sequence[TokenDelta], used: tuple[tuple[Route, str], ...] = ()) -> TokenBatch:
    """Some deltas, at least one, as one."""
    chosen = tuple(p.chosen for p in deltas if p.chosen is not None)
    return TokenBatch("".join(p.text for p in deltas), deltas[-1].finish, chosen, used)


class FlushInterval:
    """How often the streams of a replica send something while they are read."""

    def __init__(self) -> None:
        self._streams = 0

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Count a stream for as long as it is read."""
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    def __call__(self) -> float:
        """Least seconds between two batches of a stream, as many as there are now."""
        return min(max(_PACE_S, self._streams / _MESSAGES), _SLOW_S)


class StreamBuffer:
    """The deltas of one stream, put in by the engine's thread and taken in the event loop.

    Args:
        flush: gives the least seconds between two batches, the first and the last excepted; None if
            only these two are wanted.
    """

    def __init__(self, flush: Callable[[], float] | None) -> None:
        self._flush = flush
        self._loop = asyncio.get_running_loop()
        self._deltas: deque[TokenDelta | RlxError] = deque()
        self._wake = asyncio.Event()
        self._hungry = False  # whether a delta is waited for: only then it wakes the loop
        self._over = False
        self._begun = False
        self._last = 0.0

    def put(self, delta: TokenDelta | RlxError) -> None:
        """Add a delta, or the error that ends the stream; for the engine's thread."""
        self._deltas.append(delta)
        if isinstance(delta, RlxError) or delta.finish:
            self._over = True
        if self._hungry or self._over:
            self._loop.call_soon_threadsafe(self._wake.set)

    async def take(self) -> list[TokenDelta]:
        """The deltas since the last batch, at least one.

        Raises:
            RlxError: that ended the stream, once all before it have been taken.
        """
        if self._begun:
            await self._rest()
        self._hungry = True  # before looking: `put` looks after adding
        while not self._deltas:
            await self._changed()
        self._hungry = False
        self._begun, self._last = True, self._loop.time()
        taken: list[TokenDelta] = []
        while self._deltas:
            if isinstance(first := self._deltas[0], RlxError):
                if not taken:
                    raise first
                break
            taken.append(first)
            self._deltas.popleft()
        return taken

    async def _rest(self) -> None:
        """Wait until the next batch may go, or the stream is over."""
        until = None if self._flush is None else self._last + self._flush()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                while not self._over:
                    await self._changed()

    async def _changed(self) -> None:
        await self._wake.wait()
        self._wake.clear()
