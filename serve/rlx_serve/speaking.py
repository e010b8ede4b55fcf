"""Text generation inside an executor: an engine for each model, streams as plain data."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence

from rlx_ray.catalog import OpenModel
from rlx_ray.component import ModelPhase, ModelVariant
from rlx_ray.engine.generation import Request
from rlx_ray.engine.generator import Decoder, Engine
from rlx_ray.errors import ConfigError, EngineError
from rlx_serve.dispatch import Route
from rlx_serve.host import Loaded
from rlx_serve.outbox import PACE_S, Outbox, Spoken, joined
from rlx_serve.table import Row

SPEAKING = (ModelPhase.PREFILL, ModelPhase.DECODE)
"""Phases of the variants that generate text."""

Hold = Callable[[Row], Awaitable[tuple[Loaded, str]]]
"""Loads a variant, if need be, and keeps it for good; gives it with the tier that it came from."""


class Speakers:
    """The engines of an executor.

    Args:
        rows: the executor's variants.
        models: by name.
        hold: loads variants.
        loop: that `hold` runs in.
        cache_bytes: of each model's key-value cache.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        models: Mapping[str, OpenModel],
        hold: Hold,
        loop: asyncio.AbstractEventLoop,
        cache_bytes: int,
    ) -> None:
        self._rows = rows
        self._models = models
        self._hold = hold
        self._loop = loop
        self._cache_bytes = cache_bytes
        self._engines: dict[str, asyncio.Task[Engine]] = {}
        self._loaded: dict[tuple[str, ModelVariant], Loaded] = {}
        self._tiers: dict[tuple[str, ModelVariant], str] = {}

    async def generate(
        self, model: str, request: Request, *, streamed: bool
    ) -> AsyncGenerator[Spoken]:
        """A generation in batches of pieces; leaving early cancels it.

        Args:
            model: its name.
            request: what to generate.
            streamed: whether it is read while it runs; else its first token comes at once, as a
                sign that it has begun, and the rest at its end.

        Raises:
            RlxError: the request is refused, or a variant cannot be loaded.
        """
        engine = await self._engine(model)
        outbox = Outbox(PACE_S if streamed else None)
        generation = engine.submit(request, outbox.put)
        seen: set[ModelVariant] = set()
        try:
            while True:
                pieces = await outbox.take()
                ran = dict.fromkeys(v for piece in pieces for v in piece.variants)
                new = [v for v in ran if v not in seen]
                seen.update(new)
                yield joined(pieces, tuple(self._used(model, v) for v in new))
                if pieces[-1].finish:
                    return
        finally:
            engine.cancel(generation)

    def check(self) -> None:
        """See that no engine has failed.

        Raises:
            EngineError: one has, and answers nobody any more.
        """
        for engine in self._open_engines():
            if engine.closed:
                raise EngineError(engine.closed)

    def close(self) -> None:
        """End all engines."""
        for engine in self._open_engines():
            engine.close()

    def _open_engines(self) -> list[Engine]:
        tasks = [task for task in self._engines.values() if task.done() and not task.cancelled()]
        return [task.result() for task in tasks if task.exception() is None]

    async def _engine(self, model: str) -> Engine:
        """The model's engine; opened by whoever comes first, anew if that failed."""
        task = self._engines.get(model)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._engines[model] = self._loop.create_task(self._open(model))
        return await asyncio.shield(task)

    async def _open(self, model: str) -> Engine:
        rows = self._of(model)
        first, _ = await self._hold(next(iter(rows.values())))
        page = first.executable.binding.page
        pages = self._cache_bytes // page if page else 0
        if not pages:
            raise ConfigError(
                f"$.serve.kv_cache_bytes is {self._cache_bytes}, too few for a page of {page}.",
                "Raise it.",
            )
        opened = self._models[model]

        def load(variant: ModelVariant) -> Decoder:
            """Runs in the engine's thread, and waits there if the variant is new."""
            known = self._loaded.get((model, variant))
            if known is not None:
                return known.executable
            asked = asyncio.run_coroutine_threadsafe(self._load(model, rows[variant]), self._loop)
            return asked.result()

        tokenizer = await asyncio.to_thread(opened.tokenizer)
        config = json.loads(opened.facts.config)
        vocab, window = int(config["vocab"]), int(config.get("window", 0))
        return Engine(rows, load, tokenizer.decode, pages, vocab, window)

    async def _load(self, model: str, row: Row) -> Decoder:
        if (model, row.variant) not in self._loaded:
            loaded, tier = await self._hold(row)
            self._loaded[model, row.variant] = loaded
            self._tiers[model, row.variant] = tier
        executable: Decoder = self._loaded[model, row.variant].executable
        return executable

    def _of(self, model: str) -> dict[ModelVariant, Row]:
        """The model's variants; the first row of each counts."""
        found: dict[ModelVariant, Row] = {}
        for row in self._rows:
            if row.route.model == model and row.variant.phase in SPEAKING:
                found.setdefault(row.variant, row)
        return found

    def _used(self, model: str, variant: ModelVariant) -> tuple[Route, str]:
        """A variant's route, and its tier: what it came from for the first stream, then memory."""
        tier = self._tiers.pop((model, variant), "memory")
        return self._of(model)[variant].route, tier
