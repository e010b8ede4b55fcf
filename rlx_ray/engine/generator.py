"""The loop that runs a model's steps in a thread of its own, and the streams that callers hold."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Sized
from typing import Any, Protocol

import numpy.typing as npt

from rlx_ray.artifact.manifest import BindingManifest
from rlx_ray.component import ModelVariant
from rlx_ray.engine.detokenizer import Decode, TextStream
from rlx_ray.engine.generation import Generation, Request, TokenDelta
from rlx_ray.engine.inputs import choose, feed
from rlx_ray.engine.pages import PagePool
from rlx_ray.engine.sampling import Chosen, Sampler
from rlx_ray.engine.scheduler import Scheduler, Step
from rlx_ray.errors import EngineError, InputError, RlxError

_LOG = logging.getLogger(__name__)


class Decoder(Protocol):
    """A loaded prefill or decode variant."""

    binding: BindingManifest

    def run(
        self,
        inputs: Mapping[str, npt.NDArray[Any]],
        cache: Sized | None = None,
        wanted: Collection[str] | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """One step; see `runtime.executable.Executable.run`."""
        ...

    def make_cache(self, pages: int) -> Sized:
        """The pages that all of the model's variants read and write."""
        ...


class Engine:
    """Generates for many callers at once.

    Args:
        variants: the model's prefill and decode variants.
        load: gives a variant's executable, loading it at first use.
        decode: tokens to text, special tokens skipped.
        cache: the key-value cache, which a variant has made; nobody else uses it.
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
        cache: Sized,
        vocab: int,
        window: int = 0,
    ) -> None:
        self._load = load
        self._decode = decode
        self._vocab = vocab
        self._took: dict[ModelVariant, float] = {}
        self._scheduler = Scheduler(variants, PagePool(len(cache)), self._took.get, window)
        self._cache = cache
        self._of: dict[int, Generation] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closed = ""
        self._gate = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="rlx-engine", daemon=True)
        self._thread.start()

    @property
    def context(self) -> int:
        """The most tokens of prompt and answer together."""
        return self._scheduler.context

    @property
    def closed(self) -> str:
        """Why nothing can be submitted any more; empty while it can."""
        return self._closed

    def submit(
        self, request: Request, listener: Callable[[TokenDelta | RlxError], None] | None = None
    ) -> Generation:
        """Begin a generation.

        Args:
            request: what to generate.
            listener: called with each delta, or the error that ends the stream, from the engine's
                thread; without one, iterate over the generation.

        Raises:
            InputError: a value is out of range, or prompt and answer exceed the context.
            EngineError: the engine has been closed or has failed.
        """
        self._check(request)
        most = request.max_tokens
        generation = Generation(
            request,
            self.context if most is None else len(request.prompt) + most,
            Sampler(request.sampling, request.prompt),
            TextStream(self._decode, request.stop),
        )
        if listener is not None:
            generation.listen(listener)
        with self._gate:  # what is put in before the end is answered at the end
            if self._closed:
                raise EngineError(self._closed, "Send the request again.")
            self._inbox.put(lambda: self._begin(generation))
        return generation

    def cancel(self, generation: Generation) -> None:
        """End a generation; its place is free before the next step."""
        self._inbox.put(lambda: self._end(generation))

    def close(self) -> None:
        """End the loop after its step and free the cache; streams not done get an error."""
        with self._gate:
            if not self._closed:
                self._closed = "the engine has been closed."
                self._inbox.put(None)
        self._thread.join()

    def _check(self, request: Request) -> None:
        most = request.max_tokens
        if most is not None and most < 1:
            raise InputError(f"max_tokens is {most}.", "Use at least 1.")
        if not request.prompt:
            raise InputError("the prompt has no tokens.", "Send at least one.")
        if len(request.prompt) >= self.context:
            raise InputError(
                f"the prompt has {len(request.prompt)} tokens, the context is {self.context} with "
                "the answer.",
                "Shorten it.",
            )
        if most is not None and len(request.prompt) + most > self.context:
            raise InputError(
                f"max_tokens is {most}, but the prompt's {len(request.prompt)} tokens "
                f"leave {self.context - len(request.prompt)} of the context's "
                f"{self.context}.",
                "Lower max_tokens or shorten the prompt.",
            )
        bad = [t for t in request.prompt if not 0 <= t < self._vocab]
        if bad:
            raise InputError(f"token {bad[0]} is not in the vocabulary of {self._vocab}.")
        request.sampling.check(self._vocab)

    # The engine's thread ------------------------------------------------------------------------

    def _loop(self) -> None:
        """Take turns until the end; a fault of the engine itself is one, and nobody hangs on it."""
        try:
            self._turns()
        except Exception as error:
            _LOG.exception("the text engine has failed")
            with self._gate:
                self._closed = f"the engine has failed: {type(error).__name__}: {error}."
        self._stop()

    def _turns(self) -> None:
        idle = False
        while True:
            try:
                while True:
                    command = self._inbox.get(block=idle)
                    if command is None:
                        return
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
        if self._closed:
            generation.put(EngineError(self._closed, "Send the request again."))
            return
        self._of[id(generation.stream)] = generation
        try:
            self._scheduler.add(generation.stream)
        except RlxError as error:
            self._fail(generation, error)

    def _end(self, generation: Generation) -> None:
        generation.cancelled = True
        if self._of.pop(id(generation.stream), None) is not None:
            self._scheduler.remove(generation.stream)
            generation.put(TokenDelta(None, "", "cancelled", ()))

    def _stop(self) -> None:
        """Answer everybody who waits: the streams, and what was submitted before the end."""
        for generation in self._of.values():
            with contextlib.suppress(Exception):  # a listener may be gone; the others are not
                generation.put(EngineError(self._closed, "Send the request again."))
        self._of.clear()
        while not self._inbox.empty():
            command = self._inbox.get()
            if command is not None:
                with contextlib.suppress(Exception):
                    command()
        self._cache = ()  # free, whoever still holds this object

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
        samplers = [generation.sampler for generation in generations]
        inputs, wanted = feed(executable.binding, step, samplers)
        begun = time.perf_counter()
        found = executable.run(inputs, self._cache, wanted)
        took = time.perf_counter() - begun
        known = self._took.get(step.variant)
        self._took[step.variant] = took if known is None else 0.8 * known + 0.2 * took
        chosen: list[Chosen | None] = []
        for row, (generation, count) in enumerate(zip(generations, step.counts, strict=True)):
            generation.ran.append(step.variant)
            whole = count == generation.stream.left
            chosen.append(
                choose(executable.binding, found, row, generation.sampler) if whole else None
            )
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
        generation.put(TokenDelta(chosen, found, finish, ran))
