"""OpenAI's text APIs: request bodies to generations. The answers are made in `answers.py`.

Format: https://platform.openai.com/docs/api-reference/completions and the pages on chat. `top_k`,
`min_p` and `repetition_penalty` are further fields, as other servers have them.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, StrictBool, StrictInt, StrictStr

from rlx_ray.engine.generation import Request
from rlx_ray.engine.sampling import Sampling
from rlx_serve.gateway.request_error import RequestError
from rlx_serve.gateway.text_models import ServedTextModel

_MOST_CHOICES = 16
_MOST_STOPS = 16


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="ignore")

    include_usage: StrictBool = False


class _Body(BaseModel):
    """What both bodies have; unknown fields are ignored, so that newer clients work."""

    model_config = ConfigDict(extra="ignore")

    model: StrictStr
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    top_k: StrictInt = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float | None = 0.0
    frequency_penalty: float | None = 0.0
    logit_bias: dict[str, float] | None = None
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
        text_model: the model.
        requests: one for each choice, in order.
        chat: which of the two APIs it came by.
        usage: whether a stream ends with the usage.
        identity: the answer's id.
    """

    text_model: ServedTextModel
    requests: tuple[Request, ...]
    chat: bool
    usage: bool
    identity: str
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def kind(self) -> str:
        """The name of the answer's object."""
        return "chat.completion" if self.chat else "text_completion"


def completion(text_model: ServedTextModel, body: CompletionBody) -> Job:
    """The generations of a completions body.

    Raises:
        RequestError, InputError: a field that cannot be answered.
    """
    for name, value in (("suffix", body.suffix), ("echo", body.echo or None)):
        if value is not None:
            raise RequestError(f"{name} is {value!r}.", "It is not known here.", param=name)
    if body.best_of not in (None, body.n or 1):
        raise RequestError(f"best_of is {body.best_of}.", "Use n.", param="best_of")
    prompts = _prompts(text_model, body.prompt)
    sampling = _sampling(body, body.logprobs)
    return _job(text_model, body, prompts, body.max_tokens, sampling, chat=False)


def chat(text_model: ServedTextModel, body: ChatBody) -> Job:
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
    prompt = text_model.prompt(messages)
    most = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    return _job(text_model, body, [prompt], most, _sampling(body, logprobs), chat=True)


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


def _prompts(text_model: ServedTextModel, value: object) -> list[tuple[int, ...]]:
    """The `prompt` field: a text, texts, token ids, or lists of them."""
    many = value if isinstance(value, list) and value and not _id(value[0]) else [value]
    prompts = []
    for item in many:
        if isinstance(item, str):
            prompts.append(tuple(text_model.tokenizer.encode(item)))
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
    text_model: ServedTextModel,
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
        left = text_model.context - len(prompt)
        if left < 1:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens, the context of {text_model.name!r} is "
                f"{text_model.context} with the answer.",
                "Shorten it.",
                param="messages" if chat else "prompt",
                code="context_length_exceeded",
            )
        if max_tokens is not None and max_tokens > left:
            raise RequestError(
                f"max_tokens is {max_tokens}, but the prompt's {len(prompt)} tokens leave {left} "
                f"of the context of {text_model.context}.",
                "Lower max_tokens or shorten the prompt.",
                param="max_tokens",
                code="context_length_exceeded",
            )
        for i in range(n):
            seed = sampling.seed
            own = sampling if seed is None else replace(sampling, seed=(seed + i) % (1 << 64))
            requests.append(Request(prompt, max_tokens, own, tuple(stop), text_model.stop_ids))
    usage = body.stream_options is not None and body.stream_options.include_usage
    name = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
    return Job(text_model, tuple(requests), chat, usage, name)
