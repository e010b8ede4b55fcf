"""A language model in this process: what `rlx-ray generate` runs on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rlx_ray.component import ModelPhase, ModelVariant
from rlx_ray.engine.generation import Generation, Request
from rlx_ray.engine.generator import Engine
from rlx_ray.engine.sampling import Sampling
from rlx_ray.engine.template import ChatTemplate
from rlx_ray.errors import ConfigError
from rlx_ray.local import LocalModel

CACHE_BYTES = 512 << 20
"""Bytes of the key-value cache unless said; on a CPU what is not written to costs no memory."""


@dataclass(frozen=True, slots=True)
class Ended:
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
        variants = tuple(
            dict.fromkeys(
                v
                for c in model.cells
                if (v := c.spec.component.variant).phase in (ModelPhase.PREFILL, ModelPhase.DECODE)
            )
        )
        if not variants:
            raise ConfigError(
                f"model {model.model.spec.name!r} has no prefill and decode rows.",
                "Add them to its matrix; an encoder embeds with 'rlx-ray embed'.",
            )
        first = model.executable(variants[0])[0]
        page = first.binding.page
        pages = cache_bytes // page if page else 0
        if not pages:
            raise ConfigError(
                f"a key-value cache of {cache_bytes} bytes has no room for a page of {page}.",
                "Give it more.",
            )
        config = json.loads(model.model.facts.config)
        self.engine = Engine(
            variants,
            lambda variant: model.executable(variant)[0],
            model.tokenizer.decode,
            first.make_cache(pages),
            int(config["vocab"]),
            int(config.get("window", 0)),
        )

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
        """Begin a generation; iterate over it for its pieces.

        Args:
            prompt: token ids.
            max_tokens: most new tokens; None for as many as the context leaves.
            sampling: how they are chosen; None takes the most likely ones.
            stop: strings that end the text.

        Raises:
            InputError: a value is out of range, or prompt and answer exceed the context.
        """
        request = Request(
            tuple(prompt),
            max_tokens,
            sampling or Sampling(temperature=0),
            tuple(stop),
            frozenset(self.model.model.facts.stop_ids),
        )
        return self.engine.submit(request)

    def generate(
        self,
        prompt: Sequence[int],
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
    ) -> Ended:
        """A whole answer; the arguments and errors are those of `start`."""
        tokens, text, finish = [], "", ""
        ran: dict[ModelVariant, None] = {}
        for piece in self.start(prompt, max_tokens, sampling, stop):
            if piece.chosen is not None:
                tokens.append(piece.chosen.token)
            text, finish = text + piece.text, piece.finish
            ran |= dict.fromkeys(piece.variants)
        return Ended(tuple(tokens), text, finish, tuple(ran))

    def close(self) -> None:
        """End the engine; nothing can be generated after it."""
        self.engine.close()
