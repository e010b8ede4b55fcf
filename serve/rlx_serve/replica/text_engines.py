"""Text generation inside an executor: an engine for each model, streams as plain data."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial

from rlx_ray.checkpoint.tokenizer import Tokenizer
from rlx_ray.component import ModelVariant
from rlx_ray.engine.generation import Request
from rlx_ray.engine.generator import Decoder, Engine
from rlx_ray.errors import EngineError
from rlx_ray.inference.catalog import OpenModel
from rlx_ray.inference.loader import Loaded
from rlx_ray.inference.text_engine import PHASES, cache_pages, make_engine
from rlx_serve.replica.residency import Residency
from rlx_serve.replica.stream_buffer import FlushInterval, StreamBuffer, joined
from rlx_serve.table import ServedVariant
from rlx_serve.wire import Route, TokenBatch


class TextEngines:
    """The engines of an executor: each is made when it is asked for, and ends to make room.

    Args:
        rows: the executor's variants.
        models: by name.
        residency: what holds variants and engines.
        cache_bytes: most bytes of a model's key-value cache.
    """

    def __init__(
        self,
        rows: Sequence[ServedVariant],
        models: Mapping[str, OpenModel],
        residency: Residency,
        cache_bytes: int,
    ) -> None:
        self._rows: dict[str, dict[ModelVariant, ServedVariant]] = {}
        for row in rows:  # the first row of each variant counts
            if row.variant.phase in PHASES:
                self._rows.setdefault(row.route.model, {}).setdefault(row.variant, row)
        self._models = models
        self._residency = residency
        self._cache_bytes = cache_bytes
        self._tokenizers: dict[str, Tokenizer] = {}
        self._flush = FlushInterval()

    @property
    def names(self) -> tuple[str, ...]:
        """The models that generate text."""
        return tuple(self._rows)

    async def hold(self, model: str, stack: contextlib.ExitStack) -> HeldEngine:
        """A model's engine, which does not end before the stack is closed.

        Raises:
            Busy: there is no room beside what others use.
            RlxError: a variant cannot be loaded, or the cache not be made.
        """
        make = partial(self._make, model)
        return await self._residency.hold_engine(model, self._cache_bytes, make, stack)

    def check(self) -> None:
        """Check that no engine has failed.

        Raises:
            EngineError: one has, and answers nobody any more.
        """
        for engine in self._residency.open_engines():
            if engine.closed:
                raise EngineError(engine.closed)

    async def _make(self, model: str) -> tuple[HeldEngine, int]:
        """A model's engine and the bytes of its cache."""
        rows, opened = self._rows[model], self._models[model]
        variants = Variants(model, rows, self._residency)
        first = await variants.keep(next(iter(rows)))
        page = first.binding.page
        pages = cache_pages(self._cache_bytes, page, "$.serve.kv_cache_bytes")
        if model not in self._tokenizers:
            self._tokenizers[model] = await asyncio.to_thread(opened.tokenizer)
        cache = await self._residency.in_loader(partial(first.make_cache, pages))
        decode = self._tokenizers[model].decode
        engine = make_engine(opened, rows, variants.load, decode, cache)
        return HeldEngine(engine, variants, self._flush), pages * page


class Variants:
    """The variants that a model's engine runs, each loaded at its first use.

    Args:
        model: the model's name.
        rows: its variants.
        residency: what loads and keeps them.
    """

    def __init__(
        self, model: str, rows: Mapping[ModelVariant, ServedVariant], residency: Residency
    ) -> None:
        self._model = model
        self._rows = rows
        self._residency = residency
        self._loop = asyncio.get_running_loop()
        self._loaded: dict[ModelVariant, Loaded] = {}
        self._tiers: dict[ModelVariant, str] = {}

    async def keep(self, variant: ModelVariant) -> Decoder:
        """A variant, kept for as long as the engine is there."""
        if variant not in self._loaded:
            loaded, self._tiers[variant] = await self._residency.keep(self._rows[variant])
            self._loaded[variant] = loaded
        executable: Decoder = self._loaded[variant].executable
        return executable

    def load(self, variant: ModelVariant) -> Decoder:
        """A variant; runs in the engine's thread, and waits there if the variant is new.

        Raises:
            EngineError: the engine is ending.
            RlxError: the variant cannot be loaded.
        """
        if variant in self._loaded:
            return self._loaded[variant].executable
        return asyncio.run_coroutine_threadsafe(self._load(variant), self._loop).result()

    async def _load(self, variant: ModelVariant) -> Decoder:
        with contextlib.ExitStack() as stack:  # an engine that waits for a load does not end
            self._residency.hold_open(self._model, stack)
            return await self.keep(variant)

    def used(self, variant: ModelVariant) -> tuple[Route, str]:
        """A variant's route, and its tier: what it came from for the first stream, then memory."""
        return self._rows[variant].route, self._tiers.pop(variant, "memory")

    def forget(self) -> None:
        """Let go of the executables."""
        self._loaded.clear()


class HeldEngine:
    """A model's engine on a replica.

    Args:
        engine: the engine.
        variants: that it runs.
        flush: of the replica's streams.
    """

    def __init__(self, engine: Engine, variants: Variants, flush: FlushInterval) -> None:
        self._engine = engine
        self._variants = variants
        self._flush = flush

    @property
    def closed(self) -> str:
        """Why nothing can be generated any more; empty while it can."""
        return self._engine.closed

    async def generate(self, request: Request, *, streamed: bool) -> AsyncGenerator[TokenBatch]:
        """A generation in batches of tokens; leaving early cancels it.

        Args:
            request: what to generate.
            streamed: whether it is read while it runs; else its first token comes at once, as a
                sign that it has begun, and the rest at its end.

        Raises:
            RlxError: the request is refused, or a variant cannot be loaded.
        """
        buffer = StreamBuffer(self._flush if streamed else None)
        generation = self._engine.submit(request, buffer.put)
        seen: set[ModelVariant] = set()
        with contextlib.ExitStack() as stack:
            stack.callback(self._engine.cancel, generation)
            if streamed:
                stack.enter_context(self._flush.stream())
            while True:
                deltas = await buffer.take()
                ran = dict.fromkeys(v for delta in deltas for v in delta.variants)
                new = [v for v in ran if v not in seen]
                seen.update(new)
                yield joined(deltas, tuple(self._variants.used(v) for v in new))
                if deltas[-1].finish:
                    return

    def close(self) -> None:
        """End the engine, after the step that it runs; its cache and executables are free then."""
        self._engine.close()
        self._variants.forget()
