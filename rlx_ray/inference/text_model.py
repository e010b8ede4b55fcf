"""A language model in this process: what `rlx-ray generate` runs on."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rlx_ray.component import ModelVariant
from rlx_ray.engine.generation import Generation, Request, TokenDelta
from rlx_ray.engine.generator import Engine
from rlx_ray.engine.sampling import Sampling
from rlx_ray.engine.template import ChatTemplate
from rlx_ray.errors import ConfigError, RlxError, VariantMissing
from rlx_ray.inference.fallback import PASSED_ON
from rlx_ray.inference.local import LocalModel, TargetVariants
from rlx_ray.inference.text_engine import cache_pages, generating, make_engine
from rlx_ray.runtime.executable import Executable

CACHE_BYTES = 512 << 20
"""Bytes of the key-value cache unless said; on a CPU what is not written to costs no memory."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer.

    Attributes:
        token_ids: that were generated, with the one that ended it.
        text: without that token.
        finish: `stop` or `length`.
        variants: that ran, in order of first use.
    """

    token_ids: tuple[int, ...]
    text: str
    finish: str
    variants: tuple[ModelVariant, ...]


class TextModel:
    """Generates text with a model of a config; thread-safe.

    Args:
        model: opened; it stays the caller's to close, after this.
        cache_bytes: of the key-value cache.

    Raises:
        ConfigError: the model's matrix lacks prefill or decode rows, or the cache is too small.
        VariantMissing, CompileError: a decode variant cannot be loaded.
        DeviceMemoryError: the device has no room for the cache.
    """

    def __init__(self, model: LocalModel, cache_bytes: int = CACHE_BYTES) -> None:
        self.model = model
        self._cache_bytes = cache_bytes
        self._engines: dict[TargetVariants, Engine] = {}
        self._lock = threading.Lock()
        if not any(variants_of(lane) for lane in model.lanes):
            raise ConfigError(
                f"model {model.model.spec.name!r} has no prefill and decode rows.",
                "Add them to its matrix; an encoder embeds with 'rlx-ray embed'.",
            )
        first: RlxError | None = None
        for lane in tuple(model.lanes):
            try:
                self.engine = self._engine(lane)
            except PASSED_ON as error:
                first = first or error
                continue
            return
        assert first is not None
        raise first

    def _engine(self, lane: TargetVariants) -> Engine:
        """The engine of a lane, made at its first use.

        Raises:
            RlxError: its first variant cannot be loaded, or its cache not be made.
        """
        with self._lock:
            if lane not in self._engines:
                self._engines[lane] = self._make(lane)
            return self._engines[lane]

    def _make(self, lane: TargetVariants) -> Engine:
        model, variants = self.model, variants_of(lane)
        if not variants:
            raise VariantMissing(f"{lane.target.name} has no prefill and decode variants.")

        def load(variant: ModelVariant) -> Executable:
            return model.load(lane, variant)[0]

        first = load(variants[0])
        pages = cache_pages(self._cache_bytes, first.binding.page, "the key-value cache")
        cache = first.make_cache(pages)
        return make_engine(model.model, variants, load, model.tokenizer.decode, cache)

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The model's chat template, if it has one."""
        return self.model.model.template()

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """The tokens of some messages, ready for the answer.

        Raises:
            ConfigError: the model has no chat template.
            InputError: its template refuses the messages.
        """
        if self.template is None:
            raise ConfigError(
                f"model {self.model.model.spec.name!r} has no chat template.",
                "Send plain prompts.",
            )
        text = self.template.render(messages)
        return tuple(self.model.tokenizer.encode(text, special=False))

    def start(
        self,
        prompt: Sequence[int],
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
    ) -> Generation:
        """Begin a generation; iterate over it for its deltas.

        Args:
            prompt: token ids.
            max_tokens: most new tokens; None for as many as the context leaves.
            sampling: how they are chosen; None takes the most likely ones.
            stop: strings that end the text.

        Raises:
            InputError: a value is out of range, or prompt and answer exceed the context.
        """
        return self.engine.submit(self.request(prompt, max_tokens, sampling, stop))

    def request(
        self,
        prompt: Sequence[int],
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
    ) -> Request:
        """A request from the arguments of `start`; it ends at the model's stop tokens."""
        return Request(
            tuple(prompt),
            max_tokens,
            sampling or Sampling(temperature=0),
            tuple(stop),
            frozenset(self.model.model.info.stop_ids),
        )

    def answer(self, request: Request) -> Iterator[TokenDelta]:
        """The deltas of an answer, on the first target that takes the request.

        Raises:
            InputError: see `start`.
            RlxError: as the first target says it, if none takes it.
        """
        first: RlxError | None = None
        for lane in tuple(self.model.lanes):
            try:
                deltas = self._engine(lane).submit(request)
                delta = next(deltas)
            except PASSED_ON as error:
                first = first or error
                continue
            yield delta
            yield from deltas
            return
        assert first is not None
        raise first

    def generate(
        self,
        prompt: Sequence[int],
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
    ) -> Completion:
        """A whole answer; the arguments and errors are those of `start`."""
        tokens, text, finish = [], "", ""
        ran: dict[ModelVariant, None] = {}
        for delta in self.answer(self.request(prompt, max_tokens, sampling, stop)):
            if delta.chosen is not None:
                tokens.append(delta.chosen.token)
            text, finish = text + delta.text, delta.finish
            ran |= dict.fromkeys(delta.variants)
        return Completion(tuple(tokens), text, finish, tuple(ran))

    def close(self) -> None:
        """End the engines; nothing can be generated after it."""
        for engine in self._engines.values():
            engine.close()


def variants_of(lane: TargetVariants) -> tuple[ModelVariant, ...]:
    """The variants of a lane that generate text."""
    return generating(cell.spec.component.variant for cell in lane.cells)
