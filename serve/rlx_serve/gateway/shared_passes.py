"""The passes of a lane: requests that came together run together, each gets its own answer."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from rlx_ray.checkpoint.tokenizer import Encoded
from rlx_ray.inference.fallback import PASSED_ON
from rlx_serve.gateway.batcher import Batcher, Waiting
from rlx_serve.gateway.embedding import Answer

MAX_ROWS = 2048
"""Token rows of a pass: some tenths of a second of a small encoder on two cores."""

_LONG_S = 1.0
"""A pass that takes longer waits for a load or a build somewhere, and keeps nobody else waiting."""

_log = logging.getLogger("ray.serve")

Run = Callable[[str, Sequence[Encoded], Sequence[int], Callable[[], None]], Awaitable[list[Answer]]]
"""Runs texts of a model that are of several requests; gives an answer for each of them.

Told are the model, the texts one request after the other, how many are of each, and what to call
where the lane is not busy meanwhile.
"""


@dataclass(slots=True)
class _Part:
    """A request, or a part of one, until it is answered."""

    texts: Sequence[Encoded]
    added: float
    answer: asyncio.Future[Answer]

    def wanted(self) -> bool:
        return not self.answer.done()

    def fail(self, error: BaseException) -> None:
        if self.wanted():
            self.answer.set_exception(error)

    def give(self, answer: Answer) -> None:
        if self.wanted():
            self.answer.set_result(answer)


class SharedPasses:
    """One lane's queue, driven in an event loop.

    Args:
        passes: how many run at once.
        run: runs one.
        max_rows: token rows of a pass.
    """

    def __init__(self, passes: int, run: Run, max_rows: int = MAX_ROWS) -> None:
        self._batcher = Batcher(passes, max_rows)
        self._run = run
        self._max_rows = max_rows
        self._parts: dict[int, _Part] = {}
        self._keys = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    async def embed(self, model: str, texts: Sequence[Encoded], deadline: float) -> Answer:
        """Vectors of some texts, whatever they share passes with.

        A request of many texts is several parts, between which others have their turns. One that is
        cancelled, or fails, fails alone.

        Args:
            model: the model's name.
            texts: at least one, each of at least one token.
            deadline: seconds of `time.monotonic`: what still waits then is not run.

        Raises:
            TimeoutError: it waited past the deadline.
            RlxError: as the lane's run says.
        """
        keys = [self._add(model, part, deadline) for part in self._cut(texts)]
        answers = [self._parts[key].answer for key in keys]
        self._start()
        try:
            return Answer.joined([await answer for answer in answers])
        finally:
            self._batcher.cancel(keys)
            for key, answer in zip(keys, answers, strict=True):
                self._parts.pop(key, None)
                if not answer.cancel() and not answer.cancelled():
                    answer.exception()  # that of a later part is no one's business

    def _add(self, model: str, texts: Sequence[Encoded], deadline: float) -> int:
        key = next(self._keys)
        loop = asyncio.get_running_loop()
        self._parts[key] = _Part(texts, time.monotonic(), loop.create_future())
        self._batcher.add(Waiting(key, model, sum(len(t.ids) for t in texts), deadline))
        return key

    def _cut(self, texts: Sequence[Encoded]) -> Iterator[Sequence[Encoded]]:
        """Runs of neighbours, each within the rows of a pass unless it is one text."""
        first = rows = 0
        for i, text in enumerate(texts):
            if i > first and rows + len(text.ids) > self._max_rows:
                yield texts[first:i]
                first, rows = i, 0
            rows += len(text.ids)
        yield texts[first:]

    def _start(self) -> None:
        """Start as many passes as the lane takes."""
        for one in self._batcher.late(time.monotonic()):
            self._parts[one.key].fail(TimeoutError("it waited too long for a free lane."))
        while taken := self._batcher.next():
            parts = [self._parts[one.key] for one in taken]
            task = asyncio.get_running_loop().create_task(self._pass(taken[0].model, parts))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, model: str, parts: Sequence[_Part]) -> None:
        free = _Once(self._done)
        timer = asyncio.get_running_loop().call_later(_LONG_S, free)
        try:
            await self._run_parts(model, parts, free)
        finally:
            timer.cancel()
            free()

    async def _run_parts(self, model: str, parts: Sequence[_Part], free: _Once) -> None:
        started = time.monotonic()
        parts = [part for part in parts if part.wanted()]
        if not parts:
            return
        texts = [text for part in parts for text in part.texts]
        try:
            answers = await self._run(model, texts, [len(part.texts) for part in parts], free)
        except Exception as error:
            if len(parts) == 1 or isinstance(error, PASSED_ON):
                for part in parts:
                    part.fail(error)
                return
            _log.warning("a pass of %d requests failed, each is tried alone: %s", len(parts), error)
            for part in parts:
                await self._run_parts(model, [part], free)
            return
        for part, answer in zip(parts, answers, strict=True):
            answer.times["queue"] = started - part.added
            part.give(answer)

    def _done(self) -> None:
        self._batcher.done()
        self._start()


class _Once:
    """Calls something the first time that it is called."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._called = False

    def __call__(self) -> None:
        if not self._called:
            self._called = True
            self._call()
