"""A generation as its caller sees it: the request, the deltas, and the stream of them."""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass, field

from rlx_ray.component import ModelVariant
from rlx_ray.engine.detokenizer import TextStream
from rlx_ray.engine.sampling import Chosen, Sampler, Sampling
from rlx_ray.engine.scheduler import Stream
from rlx_ray.errors import RlxError


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate.

    Attributes:
        prompt: token ids.
        max_tokens: most new tokens, at least 1; None for as many as the context leaves.
        sampling: how they are chosen.
        stop: strings that end the text.
        stop_ids: tokens that end it; they are counted, but no part of the text.
    """

    prompt: tuple[int, ...]
    max_tokens: int | None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """What one token added to a stream.

    Attributes:
        chosen: the token; None in the last delta of a cancelled stream.
        text: text that is certain now, possibly empty.
        finish: why it ended: `stop`, `length` or `cancelled`; empty while it goes on.
        variants: that ran since the delta before, in order.
    """

    chosen: Chosen | None
    text: str
    finish: str
    variants: tuple[ModelVariant, ...]


class Generation:
    """A stream of deltas; iterate over it, or cancel it. Ends with a delta that has `finish`.

    Args:
        request: what to generate.
        most: most tokens of prompt and answer.
        sampler: chooses the tokens.
        text: what they say.
    """

    def __init__(self, request: Request, most: int, sampler: Sampler, text: TextStream) -> None:
        self._over = False
        self.request = request
        self.sampler = sampler
        self.text = text
        self.stream = Stream(list(request.prompt), most)
        self.ran: list[ModelVariant] = []
        self.cancelled = False
        self._deltas: queue.SimpleQueue[TokenDelta | RlxError] = queue.SimpleQueue()
        self._listener: Callable[[TokenDelta | RlxError], None] | None = None

    def put(self, delta: TokenDelta | RlxError) -> None:
        """Hand a delta, or the error that ended the stream, to whoever waits."""
        (self._listener or self._deltas.put)(delta)

    def listen(self, listener: Callable[[TokenDelta | RlxError], None]) -> None:
        """Have deltas handed to a function, called from the engine's thread; call before submit."""
        self._listener = listener

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> TokenDelta:
        if self._over:
            raise StopIteration
        delta = self._deltas.get()
        self._over = isinstance(delta, RlxError) or bool(delta.finish)
        if isinstance(delta, RlxError):
            raise delta
        return delta
