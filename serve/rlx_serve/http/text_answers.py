"""OpenAI's text APIs: batches of tokens to answers, whole or as server-sent events.

Format: https://platform.openai.com/docs/api-reference/completions and the pages on chat.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from rlx_ray.engine.sampling import Chosen
from rlx_serve.gateway.embedding import used_headers
from rlx_serve.http.completions import Job
from rlx_serve.http.problems import problem
from rlx_serve.wire import Route, TokenBatch


@dataclass(slots=True)
class _Choice:
    """A choice while its tokens come."""

    index: int
    text: str = ""
    finish: str = ""
    chosen: list[Chosen] = field(default_factory=list)

    def take(self, batch: TokenBatch) -> None:
        self.text += batch.text
        self.finish = batch.finish
        self.chosen += batch.chosen


async def whole(job: Job, seconds: float) -> tuple[dict[str, object], dict[str, str]]:
    """The answer in one piece, and its headers.

    Raises:
        Busy, TimeoutError, RlxError: as `ServedTextModel.start` does, for the first that fails.
    """
    used: dict[Route, str] = {}

    async def run(index: int) -> _Choice:
        choice = _Choice(index)
        first, rest = await job.text_model.start(job.requests[index], seconds, streamed=False)
        async with aclosing(rest):
            choice.take(first)
            used.update({route: tier for route, tier in first.used if route not in used})
            async for batch in rest:
                choice.take(batch)
                used.update({route: tier for route, tier in batch.used if route not in used})
        return choice

    choices = await _together([run(i) for i in range(len(job.requests))])
    answer = _head(job, job.kind) | {
        "choices": [_whole_choice(job, choice) for choice in choices],
        "usage": _usage(job, sum(len(c.chosen) for c in choices)),
    }
    return answer, headers(used)


async def _together(work: Sequence[Any]) -> list[_Choice]:
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def headers(used: Mapping[Route, str]) -> dict[str, str]:
    """The answer's `x-rlx-` headers: prefill variants first, then the decode ones."""
    routes = sorted(used, key=lambda r: not r.variant.startswith("prefill"))
    return used_headers([(route, used[route]) for route in routes])


async def begin(job: Job, seconds: float) -> tuple[AsyncGenerator[bytes], dict[str, str]]:
    """The answer as server-sent events, once every choice has its first token, and its headers.

    Raises:
        Busy, TimeoutError, RlxError: as `ServedTextModel.start` does; later failures end the stream
            with an event of their own.
    """
    starts = [job.text_model.start(r, seconds, streamed=True) for r in job.requests]
    started = [asyncio.ensure_future(start) for start in starts]
    try:
        opened = list(await asyncio.gather(*started))
    except BaseException:
        for task in started:
            task.cancel()
        done = await asyncio.gather(*started, return_exceptions=True)
        for one in done:
            if not isinstance(one, BaseException):
                await one[1].aclose()
        raise
    used: dict[Route, str] = {}
    for first, _ in opened:
        used.update({route: tier for route, tier in first.used if route not in used})
    return _events(job, opened), headers(used)


_Opened = tuple[TokenBatch, AsyncGenerator[TokenBatch]]
_Merged = asyncio.Queue[tuple[int, TokenBatch | BaseException | None]]


async def _events(job: Job, opened: Sequence[_Opened]) -> AsyncGenerator[bytes]:
    merged: _Merged = asyncio.Queue(64)
    tasks = [asyncio.ensure_future(_follow(merged, i, *one)) for i, one in enumerate(opened)]
    try:
        if job.chat:
            for index in range(len(opened)):
                yield _event(job, _delta(index, {"role": "assistant", "content": ""}, None))
        tokens, left = 0, len(tasks)
        while left:
            index, batch = await merged.get()
            if isinstance(batch, BaseException):
                yield _data(problem(batch).openai())
                return
            if batch is None:
                left -= 1
                continue
            tokens += len(batch.chosen)
            yield _event(job, _part(job, index, batch))
        if job.usage:
            yield _event(job, None, usage=_usage(job, tokens))
        yield b"data: [DONE]\n\n"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _follow(
    merged: _Merged, index: int, first: TokenBatch, rest: AsyncGenerator[TokenBatch]
) -> None:
    """Hand on the batches of a choice, then None, or what went wrong."""
    try:
        async with aclosing(rest):
            await merged.put((index, first))
            async for batch in rest:
                await merged.put((index, batch))
        await merged.put((index, None))
    except Exception as error:
        await merged.put((index, error))


def _part(job: Job, index: int, batch: TokenBatch) -> dict[str, object]:
    """A choice of one event."""
    finish = batch.finish or None
    logprobs = _logprobs(job, batch.chosen)
    if not job.chat:
        return {"index": index, "text": batch.text, "finish_reason": finish, "logprobs": logprobs}
    delta = {"content": batch.text} if batch.text or not finish else {}
    return _delta(index, delta, finish, logprobs)


def _delta(
    index: int, delta: Mapping[str, object], finish: str | None, logprobs: object = None
) -> dict[str, object]:
    return {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}


def _event(job: Job, choice: Mapping[str, object] | None, **more: object) -> bytes:
    kind = "chat.completion.chunk" if job.chat else job.kind
    return _data({**_head(job, kind), "choices": [choice] if choice else [], **more})


def _data(value: object) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _head(job: Job, kind: str) -> dict[str, object]:
    return {
        "id": job.identity,
        "object": kind,
        "created": job.created,
        "model": job.text_model.name,
    }


def _usage(job: Job, completion_tokens: int) -> dict[str, int]:
    """Tokens; a prompt of several choices counts once."""
    prompt = sum(len(p) for p in {id(r.prompt): r.prompt for r in job.requests}.values())
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt + completion_tokens,
    }


def _whole_choice(job: Job, choice: _Choice) -> dict[str, object]:
    common = {"index": choice.index, "finish_reason": choice.finish}
    logprobs = _logprobs(job, choice.chosen)
    if job.chat:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return {**common, "message": message, "logprobs": logprobs}
    return {**common, "text": choice.text, "logprobs": logprobs}


def _logprobs(job: Job, chosen: Sequence[Chosen]) -> dict[str, object] | None:
    """How likely tokens were, in the shape of the API; None if nobody asked."""
    if job.requests[0].sampling.logprobs is None:
        return None

    def text(token: int) -> str:
        return job.text_model.tokenizer.decode([token])

    if job.chat:

        def entry(token: int, logprob: float | None) -> dict[str, object]:
            name = text(token)
            return {"token": name, "logprob": logprob, "bytes": list(name.encode())}

        return {
            "content": [
                {**entry(c.token, c.logprob), "top_logprobs": [entry(*t) for t in c.top]}
                for c in chosen
            ]
        }
    return {
        "tokens": [text(c.token) for c in chosen],
        "token_logprobs": [c.logprob for c in chosen],
        "top_logprobs": [{text(t): p for t, p in c.top} for c in chosen],
    }
