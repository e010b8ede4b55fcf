"""The loop that runs a model's steps in a thread of its own, and the streams that callers hold."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rlx_ray.artifact import BindingManifest
from rlx_ray.component import ModelVariant
from rlx_ray.engine.pages import PagePool
from rlx_ray.engine.sampling import Chosen, Sampler, Sampling
from rlx_ray.engine.scheduler import Scheduler, Step, Stream, bound
from rlx_ray.engine.text import Decode, TextStream
from rlx_ray.errors import EngineError, InputError, RlxError
from rlx_ray.shape import PAGE

_LOG = logging.getLogger(__name__)


class Decoder(Protocol):
    """A loaded prefill or decode variant."""

    binding: BindingManifest

    def run(
        self, inputs: Mapping[str, npt.NDArray[Any]], cache: npt.NDArray[Any] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """One step; see `CpuExecutable.run`."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate.

    Attributes:
        prompt: token ids.
        max_tokens: most new tokens, at least 1.
        sampling: how they are chosen.
        stop: strings that end the text.
        stop_ids: tokens that end it; they are counted, but no part of the text.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token added to a stream.

    Attributes:
        chosen: the token; None in the last piece of a cancelled stream.
        text: text that is certain now, possibly empty.
        finish: why it ended: `stop`, `length` or `cancelled`; empty while it goes on.
        variants: that ran since the piece before, in order.
    """

    chosen: Chosen | None
    text: str
    finish: str
    variants: tuple[ModelVariant, ...]


class Generation:
    """A stream of pieces; iterate over it, or cancel it. Ends with a piece that has `finish`."""

    def __init__(self, request: Request, sampler: Sampler, text: TextStream) -> None:
        self._over = False
        self.request = request
        self.sampler = sampler
        self.text = text
        self.stream = Stream(list(request.prompt), len(request.prompt) + request.max_tokens)
        self.ran: list[ModelVariant] = []
        self.cancelled = False
        self._pieces: queue.SimpleQueue[Piece | RlxError] = queue.SimpleQueue()
        self._listener: Callable[[Piece | RlxError], None] | None = None

    def put(self, piece: Piece | RlxError) -> None:
        """Hand a piece, or the error that ended the stream, to whoever waits."""
        (self._listener or self._pieces.put)(piece)

    def listen(self, listener: Callable[[Piece | RlxError], None]) -> None:
        """Have pieces handed to a function, called from the engine's thread; call before submit."""
        self._listener = listener

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> Piece:
        if self._over:
            raise StopIteration
        piece = self._pieces.get()
        self._over = isinstance(piece, RlxError) or bool(piece.finish)
        if isinstance(piece, RlxError):
            raise piece
        return piece


class Engine:
    """Generates for many callers at once.

    Args:
        variants: the model's prefill and decode variants.
        load: gives a variant's executable, loading it at first use.
        decode: tokens to text, special tokens skipped.
        pages: of the key-value cache.
        vocab: token ids are below it.
        window: most tokens that a token sees, itself included; 0 for all.

    Raises:
        ConfigError: the variants cannot generate.
    """

    def __init__(
        self,
        variants: Iterable[ModelVariant],
        load: Callable[[ModelVariant], Decoder],
        decode: Decode,
        pages: int,
        vocab: int,
        window: int = 0,
    ) -> None:
        self._load = load
        self._decode = decode
        self._vocab = vocab
        self._took: dict[ModelVariant, float] = {}
        self._scheduler = Scheduler(variants, PagePool(pages), self._took.get, window)
        self._pages = pages
        self._cache: npt.NDArray[np.uint8] | None = None
        self._of: dict[int, Generation] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="rlx-engine", daemon=True)
        self._thread.start()

    @property
    def context(self) -> int:
        """The most tokens of prompt and answer together."""
        return self._scheduler.context

    def submit(
        self, request: Request, listener: Callable[[Piece | RlxError], None] | None = None
    ) -> Generation:
        """Begin a generation.

        Args:
            request: what to generate.
            listener: called with each piece, or the error that ends the stream, from the engine's
                thread; without one, iterate over the generation.

        Raises:
            InputError: a value is out of range, or prompt and answer exceed the context.
        """
        self._check(request)
        generation = Generation(
            request,
            Sampler(request.sampling, request.prompt),
            TextStream(self._decode, request.stop),
        )
        if listener is not None:
            generation.listen(listener)
        self._inbox.put(lambda: self._begin(generation))
        return generation

    def cancel(self, generation: Generation) -> None:
        """End a generation; its place is free before the next step."""
        self._inbox.put(lambda: self._end(generation))

    def close(self) -> None:
        """End the loop; streams that are not done get an error."""
        if not self._closed:
            self._closed = True
            self._inbox.put(None)
            self._thread.join()

    def _check(self, request: Request) -> None:
        if self._closed:
            raise EngineError("the engine has been closed.", "Send the request again.")
        if request.max_tokens < 1:
            raise InputError(f"max_tokens is {request.max_tokens}.", "Use at least 1.")
        if not request.prompt:
            raise InputError("the prompt has no tokens.", "Send at least one.")
        if len(request.prompt) >= self.context:
            raise InputError(
                f"the prompt has {len(request.prompt)} tokens, the context is {self.context} with "
                "the answer.",
                "Shorten it.",
            )
        if len(request.prompt) + request.max_tokens > self.context:
            raise InputError(
                f"max_tokens is {request.max_tokens}, but the prompt's {len(request.prompt)} "
                f"tokens leave {self.context - len(request.prompt)} of the context's "
                f"{self.context}.",
                "Lower max_tokens or shorten the prompt.",
            )
        bad = [t for t in request.prompt if not 0 <= t < self._vocab]
        if bad:
            raise InputError(f"token {bad[0]} is not in the vocabulary of {self._vocab}.")
        request.sampling.check(self._vocab)

    # The engine's thread ------------------------------------------------------------------------

    def _loop(self) -> None:
        idle = False
        while True:
            try:
                while True:
                    command = self._inbox.get(block=idle)
                    if command is None:
                        return self._stop()
                    command()
                    idle = False
            except queue.Empty:
                pass
            step = self._scheduler.next_step()
            idle = step is None
            if step is not None:
                self._guarded(step)

    def _begin(self, generation: Generation) -> None:
        if generation.cancelled:
            return
        self._of[id(generation.stream)] = generation
        try:
            self._scheduler.add(generation.stream)
        except RlxError as error:
            self._fail(generation, error)

    def _end(self, generation: Generation) -> None:
        generation.cancelled = True
        self._scheduler.remove(generation.stream)
        if self._of.pop(id(generation.stream), None) is not None:
            generation.put(Piece(None, "", "cancelled", ()))

    def _stop(self) -> None:
        for generation in list(self._of.values()):
            error = EngineError("the engine has been closed.", "Send the request again.")
            self._fail(generation, error)

    def _fail(self, generation: Generation, error: RlxError) -> None:
        self._scheduler.remove(generation.stream)
        self._of.pop(id(generation.stream), None)
        generation.put(error)

    def _guarded(self, step: Step) -> None:
        """Run a step; what goes wrong ends its streams, and never the engine."""
        generations = [self._of[id(s)] for s in step.streams]
        try:
            self._run(step, generations)
        except Exception as error:
            known = error if isinstance(error, RlxError) else None
            if known is None:
                _LOG.exception("a step of the text engine failed: %s", step.variant)
                known = EngineError(f"a step failed: {type(error).__name__}: {error}")
            for generation in generations:
                if id(generation.stream) in self._of:
                    self._fail(generation, known)

    def _run(self, step: Step, generations: Sequence[Generation]) -> None:
        executable = self._load(step.variant)
        if self._cache is None:
            self._cache = cache_pages(self._pages, executable.binding.page)
        begun = time.perf_counter()
        logits = executable.run(step_inputs(step), self._cache)["logits"]
        took = time.perf_counter() - begun
        known = self._took.get(step.variant)
        self._took[step.variant] = took if known is None else 0.8 * known + 0.2 * took
        chosen: list[Chosen | None] = []
        for generation, count, row in zip(generations, step.counts, logits, strict=False):
            generation.ran.append(step.variant)
            whole = count == generation.stream.left
            chosen.append(generation.sampler.choose(row) if whole else None)
        self._scheduler.done(step, [None if c is None else c.token for c in chosen])
        for generation, one in zip(generations, chosen, strict=True):
            if one is not None:
                self._emit(generation, one)

    def _emit(self, generation: Generation, chosen: Chosen) -> None:
        """Hand out what a token adds, and end the stream if it is the last."""
        stream, text = generation.stream, generation.text
        finish, found = "", ""
        if chosen.token in generation.request.stop_ids:
            finish = "stop"
        else:
            found = text.add(chosen.token)
            if text.stopped:
                finish = "stop"
            elif len(stream.tokens) >= stream.most:
                finish = "length"
        if finish:
            found += text.finish()
            self._scheduler.remove(stream)
            del self._of[id(stream)]
        ran, generation.ran = tuple(generation.ran), []
        generation.put(Piece(chosen, found, finish, ran))


def step_inputs(step: Step) -> dict[str, npt.NDArray[np.int32]]:
    """The inputs of a step, int32.

    `input_ids` [batch, seq], `lengths` and `past` [batch], `pages` [batch, pages] with -1 past a
    stream's last and before its window; rows without a stream have length 0.
    """
    variant = step.variant
    ids = np.zeros((variant.batch, variant.seq), np.int32)
    lengths, past = (np.zeros(variant.batch, np.int32) for _ in range(2))
    pages = np.full((variant.batch, bound(variant) // PAGE), -1, np.int32)
    for row, (stream, count) in enumerate(zip(step.streams, step.counts, strict=True)):
        ids[row, :count] = stream.tokens[stream.past : stream.past + count]
        lengths[row], past[row] = count, stream.past
        table = stream.pages[: pages.shape[1]]
        pages[row, : len(table)] = table
    return {"input_ids": ids, "lengths": lengths, "past": past, "pages": pages}


def cache_pages(count: int, size: int) -> npt.NDArray[np.uint8]:
    """Zeroed pages, uint8 [count, size], 64-byte aligned; memory is used as they are written."""
    raw = np.zeros(count * size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count * size].reshape(count, size)
