"""OpenAI's text APIs: bodies to generations, pieces to answers, whole or as server-sent events.

Format: https://platform.openai.com/docs/api-reference/completions and the pages on chat. `top_k`,
`min_p` and `repetition_penalty` are further fields, as other servers have them.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from rlx_ray.engine.generator import Request
from rlx_ray.engine.sampling import Chosen, Sampling
from rlx_serve.dispatch import Route
from rlx_serve.problems import RequestError, problem
from rlx_serve.speaking import Spoken
from rlx_serve.speech import Speaker

_MOST_CHOICES = 16
_MOST_STOPS = 16
_Number = Annotated[float, Field(strict=False)]


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="ignore")

    include_usage: StrictBool = False


class _Body(BaseModel):
    """What both bodies have; unknown fields are ignored, so that newer clients work."""

    model_config = ConfigDict(extra="ignore")

    model: StrictStr
    temperature: _Number | None = 1.0
    top_p: _Number | None = 1.0
    top_k: StrictInt = 0
    min_p: _Number = 0.0
    repetition_penalty: _Number = 1.0
    presence_penalty: _Number | None = 0.0
    frequency_penalty: _Number | None = 0.0
    logit_bias: dict[str, _Number] | None = None
    seed: StrictInt | None = None
    n: StrictInt | None = 1
    stop: StrictStr | list[StrictStr] | None = None
    stream: StrictBool | None = False
    stream_options: StreamOptions | None = None
    user: StrictStr | None = None


class CompletionBody(_Body):
    """The body of `POST /v1/completions`."""

    prompt: object = ""
    max_tokens: StrictInt | None = 16
    logprobs: StrictInt | None = None
    echo: StrictBool | None = False
    suffix: StrictStr | None = None
    best_of: StrictInt | None = None


class ChatBody(_Body):
    """The body of `POST /v1/chat/completions`."""

    messages: list[dict[str, Any]]
    max_tokens: StrictInt | None = None
    max_completion_tokens: StrictInt | None = None
    logprobs: StrictBool | None = False
    top_logprobs: StrictInt | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """What a body asks for.

    Attributes:
        speaker: the model.
        requests: one for each choice, in order.
        chat: which of the two APIs it came by.
        usage: whether a stream ends with the usage.
        identity: the answer's id.
    """

    speaker: Speaker
    requests: tuple[Request, ...]
    chat: bool
    usage: bool
    identity: str
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def kind(self) -> str:
        """The name of the answer's object."""
        return "chat.completion" if self.chat else "text_completion"


def completion(speaker: Speaker, body: CompletionBody) -> Job:
    """The generations of a completions body.

    Raises:
        RequestError, InputError: a field that cannot be answered.
    """
    for name, value in (("suffix", body.suffix), ("echo", body.echo or None)):
        if value is not None:
            raise RequestError(f"{name} is {value!r}.", "It is not known here.", param=name)
    if body.best_of not in (None, body.n or 1):
        raise RequestError(f"best_of is {body.best_of}.", "Use n.", param="best_of")
    prompts = _prompts(speaker, body.prompt)
    sampling = _sampling(body, body.logprobs)
    return _job(speaker, body, prompts, body.max_tokens, sampling, chat=False)


def chat(speaker: Speaker, body: ChatBody) -> Job:
    """The generations of a chat body.

    Raises:
        RequestError, InputError: a field that cannot be answered.
    """
    messages = [_message(m, i) for i, m in enumerate(body.messages)]
    if not messages:
        raise RequestError("messages is an empty list.", "Send at least one.", param="messages")
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs is set, logprobs is not.", "Set it.", param="logprobs")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    prompt = speaker.prompt(messages)
    most = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    return _job(speaker, body, [prompt], most, _sampling(body, logprobs), chat=True)


def _message(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    """A message with its content as one text."""
    where = f"messages[{index}]"
    if not isinstance(message.get("role"), str):
        raise RequestError(f"{where}.role is no text.", "Send 'user', say.", param="messages")
    content = message.get("content")
    if isinstance(content, list):
        parts = [p.get("text") if isinstance(p, dict) else None for p in content]
        if not all(isinstance(p, str) for p in parts):
            raise RequestError(f"{where}.content has a part that is no text.", param="messages")
        content = "".join(str(p) for p in parts)
    if not isinstance(content, str):
        raise RequestError(f"{where}.content is no text.", "Send a text.", param="messages")
    return {**message, "content": content}


def _prompts(speaker: Speaker, value: object) -> list[tuple[int, ...]]:
    """The `prompt` field: a text, texts, token ids, or lists of them."""
    many = value if isinstance(value, list) and value and not _id(value[0]) else [value]
    prompts = []
    for item in many:
        if isinstance(item, str):
            prompts.append(tuple(speaker.tokenizer.encode(item)))
        elif isinstance(item, list) and item and all(map(_id, item)):
            prompts.append(tuple(item))
        else:
            raise RequestError(
                "prompt is neither text nor token ids.",
                "Send a text, a list of texts, token ids, or lists of them.",
                param="prompt",
            )
    return prompts


def _id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sampling(body: _Body, logprobs: int | None) -> Sampling:
    try:
        bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    except ValueError:
        raise RequestError(
            "logit_bias has a key that is no token id.", "Use ids as keys.", param="logit_bias"
        ) from None
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k,
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        seed=body.seed,
        logit_bias=bias,
        logprobs=logprobs,
    )


def _job(
    speaker: Speaker,
    body: _Body,
    prompts: Sequence[tuple[int, ...]],
    max_tokens: int | None,
    sampling: Sampling,
    *,
    chat: bool,
) -> Job:
    n = 1 if body.n is None else body.n
    if not 1 <= n * len(prompts) <= _MOST_CHOICES:
        raise RequestError(
            f"n is {n} for {len(prompts)} prompts.",
            f"Ask for 1 to {_MOST_CHOICES} answers at a time.",
            param="n",
        )
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stop) > _MOST_STOPS:
        raise RequestError(f"stop has {len(stop)} texts.", f"Send {_MOST_STOPS}.", param="stop")
    requests = []
    for prompt in prompts:
        left = speaker.context - len(prompt)
        if left < 1:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens, the context of {speaker.name!r} is "
                f"{speaker.context} with the answer.",
                "Shorten it.",
                param="messages" if chat else "prompt",
                code="context_length_exceeded",
            )
        most = left if max_tokens is None else max_tokens
        if most > left:
            raise RequestError(
                f"max_tokens is {most}, but the prompt's {len(prompt)} tokens leave {left} of the "
                f"context of {speaker.context}.",
                "Lower max_tokens or shorten the prompt.",
                param="max_tokens",
                code="context_length_exceeded",
            )
        for i in range(n):
            seed = sampling.seed
            own = sampling if seed is None else replace(sampling, seed=(seed + i) % (1 << 64))
            requests.append(Request(prompt, most, own, tuple(stop), speaker.stop_ids))
    usage = body.stream_options is not None and body.stream_options.include_usage
    name = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
    return Job(speaker, tuple(requests), chat, usage, name)


# Answers ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Choice:
    """A choice while its pieces come."""

    index: int
    text: str = ""
    finish: str = ""
    tokens: int = 0
    chosen: list[Chosen] = field(default_factory=list)

    def take(self, spoken: Spoken) -> None:
        piece = spoken.piece
        self.text += piece.text
        self.finish = piece.finish
        if piece.chosen is not None:
            self.tokens += 1
            self.chosen.append(piece.chosen)


async def whole(job: Job, seconds: float) -> tuple[dict[str, object], dict[str, str]]:
    """The answer in one piece, and its headers.

    Raises:
        Busy, TimeoutError, RlxError: as `Speaker.start` does, for the first that fails.
    """
    used: dict[Route, str] = {}

    async def run(index: int) -> _Choice:
        choice = _Choice(index)
        first, rest = await job.speaker.start(job.requests[index], seconds)
        async with aclosing(rest):
            choice.take(first)
            used.update({route: tier for route, tier in first.used if route not in used})
            async for spoken in rest:
                choice.take(spoken)
                used.update({route: tier for route, tier in spoken.used if route not in used})
        return choice

    choices = await _together([run(i) for i in range(len(job.requests))])
    answer = _head(job, job.kind) | {
        "choices": [_whole_choice(job, choice) for choice in choices],
        "usage": _usage(job, sum(c.tokens for c in choices)),
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
    return {
        "x-rlx-cache-key": ", ".join(r.cache_key for r in routes),
        "x-rlx-variant": ", ".join(r.variant for r in routes),
        "x-rlx-tier": ", ".join(used[r] for r in routes),
    }


async def begin(job: Job, seconds: float) -> tuple[AsyncGenerator[bytes], dict[str, str]]:
    """The answer as server-sent events, once every choice has its first token, and its headers.

    Raises:
        Busy, TimeoutError, RlxError: as `Speaker.start` does; later failures end the stream with
            an event of their own.
    """
    started = [asyncio.ensure_future(job.speaker.start(r, seconds)) for r in job.requests]
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


_Opened = tuple[Spoken, AsyncGenerator[Spoken]]
_Merged = asyncio.Queue[tuple[int, Spoken | BaseException | None]]


async def _events(job: Job, opened: Sequence[_Opened]) -> AsyncGenerator[bytes]:
    merged: _Merged = asyncio.Queue(64)
    tasks = [asyncio.ensure_future(_follow(merged, i, *one)) for i, one in enumerate(opened)]
    try:
        if job.chat:
            for index in range(len(opened)):
                yield _event(job, _delta(index, {"role": "assistant", "content": ""}, None))
        tokens, left = 0, len(tasks)
        while left:
            index, spoken = await merged.get()
            if isinstance(spoken, BaseException):
                yield _data(problem(spoken).openai())
                return
            if spoken is None:
                left -= 1
                continue
            tokens += spoken.piece.chosen is not None
            yield _event(job, _part(job, index, spoken))
        if job.usage:
            yield _event(job, None, usage=_usage(job, tokens))
        yield b"data: [DONE]\n\n"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _follow(merged: _Merged, index: int, first: Spoken, rest: AsyncGenerator[Spoken]) -> None:
    """Hand on the pieces of a choice, then None, or what went wrong."""
    try:
        async with aclosing(rest):
            await merged.put((index, first))
            async for spoken in rest:
                await merged.put((index, spoken))
        await merged.put((index, None))
    except Exception as error:
        await merged.put((index, error))


def _part(job: Job, index: int, spoken: Spoken) -> dict[str, object]:
    """A choice of one event."""
    piece = spoken.piece
    chosen = [] if piece.chosen is None else [piece.chosen]
    finish = piece.finish or None
    logprobs = _logprobs(job, chosen)
    if not job.chat:
        return {"index": index, "text": piece.text, "finish_reason": finish, "logprobs": logprobs}
    delta = {"content": piece.text} if piece.text or not finish else {}
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
    return {"id": job.identity, "object": kind, "created": job.created, "model": job.speaker.name}


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
        return job.speaker.tokenizer.decode([token])

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
