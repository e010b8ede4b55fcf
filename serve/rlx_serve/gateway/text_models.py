"""What the text routes call: a language model by name, its prompts and its streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlx_ray.checkpoint.tokenizer import Tokenizer
from rlx_ray.component import ModelPhase
from rlx_ray.engine.generation import Request
from rlx_ray.engine.scheduler import bound
from rlx_ray.engine.template import ChatTemplate
from rlx_ray.errors import Failure, RlxError
from rlx_ray.inference.fallback import PASSED_ON
from rlx_ray.inference.text_engine import PHASES
from rlx_ray.target import Target
from rlx_serve.gateway.availability import Availability
from rlx_serve.gateway.lanes import Executors, unavailable_is_busy
from rlx_serve.gateway.request_error import RequestError
from rlx_serve.replica.core import ReplicaCore
from rlx_serve.table import Table
from rlx_serve.wire import Handle, Route, TokenBatch

Stream = Callable[[Request, bool], AsyncGenerator[TokenBatch]]
"""Generates on some replica; the flag says whether it is read while it runs.

Raises Busy if none takes more work, RlxError as the engine does.
"""


@dataclass(frozen=True, slots=True)
class ServedTextModel:
    """A language model as the routes see it.

    Attributes:
        name: its name.
        context: most tokens of prompt and answer.
        stop_ids: tokens that end an answer.
        tokenizer: text to tokens.
        template: messages to text; None if the model has none.
        targets: of its executors, in serving order.
        streams: one for each of them.
        present: those of some targets whose executors answer; waits until there is one.
    """

    name: str
    context: int
    stop_ids: frozenset[int]
    tokenizer: Tokenizer
    template: ChatTemplate | None
    targets: tuple[str, ...]
    streams: tuple[Stream, ...]
    present: Callable[[Sequence[str]], Awaitable[Sequence[str]]]

    def prompt(self, messages: Sequence[Mapping[str, object]]) -> tuple[int, ...]:
        """The tokens of some messages.

        Raises:
            InputError: the model has no chat template, or its template refuses them.
        """
        if self.template is None:
            raise RequestError(
                f"model {self.name!r} has no chat template.",
                "Use /v1/completions.",
                param="messages",
            )
        return tuple(self.tokenizer.encode(self.template.render(messages), special=False))

    async def start(
        self, request: Request, seconds: float, *, streamed: bool
    ) -> tuple[TokenBatch, AsyncGenerator[TokenBatch]]:
        """The first token of a generation, and the rest in batches; close the rest to cancel.

        Args:
            request: what to generate.
            seconds: for the first token: a first request may wait for a build.
            streamed: whether the rest is wanted while it comes.

        Raises:
            TimeoutError: the first token did not come in time.
            RlxError: as the engine does, or one of `fallback.PASSED_ON` of the first executor.
        """
        try:
            async with asyncio.timeout(seconds):
                return await self._start(request, streamed=streamed)
        except TimeoutError:
            raise TimeoutError(
                f"The first token took longer than {seconds:g} s. A first request may wait for "
                "a build: try again, or raise serve.request_timeout_s."
            ) from None

    async def _start(
        self, request: Request, *, streamed: bool
    ) -> tuple[TokenBatch, AsyncGenerator[TokenBatch]]:
        """The first executor that takes the request; if none does, the first one's error."""
        present = await self.present(self.targets)
        pairs = zip(self.targets, self.streams, strict=True)
        first: RlxError | None = None
        for stream in (stream for target, stream in pairs if target in present):
            try:
                batch = stream(request, streamed)
                return await anext(batch), batch
            except PASSED_ON as error:
                first = first or error
        assert first is not None
        raise first


def text_models(
    table: Table,
    cores: Mapping[str, ReplicaCore],
    executors: Mapping[str, Executors],
    availability: Availability,
) -> dict[str, ServedTextModel]:
    """The language models of a table that are served, by name.

    A model's streams share one engine: that of an executor where the target has one, else that of
    this process, which is the only gateway then.

    Args:
        table: what is served.
        cores: what this process runs, by target name.
        executors: what others run.
        availability: which of them answer.
    """

    def stream_of(target: Target, route: Route) -> Stream:
        if target.name in executors:
            return handle_stream(executors[target.name].handle, route, target)
        return core_stream(cores[target.name], route)

    found = {}
    for name, model in table.models.items():
        routes: dict[Target, Route] = {}
        reach = []
        for target in table.targets(name):
            rows = [r for r in table.select(target) if r.route.model == name]
            rows = [r for r in rows if r.variant.phase in PHASES]
            if rows and target.name in {*cores, *executors}:
                decode = [r for r in rows if r.variant.phase is ModelPhase.DECODE] or rows
                # One id for all of a model's streams: they share a replica until it spills.
                routes[target] = max(decode, key=lambda r: r.variant.batch).route
                reach.append(max(bound(r.variant) for r in decode))
        if routes:
            found[name] = ServedTextModel(
                name,
                min(reach),
                frozenset(model.info.stop_ids),
                model.tokenizer(),
                model.template(),
                tuple(t.name for t in routes),
                tuple(stream_of(t, route) for t, route in routes.items()),
                availability.present,
            )
    return found


def core_stream(core: ReplicaCore, route: Route) -> Stream:
    """A callable that generates in this process."""

    def stream(request: Request, streamed: bool) -> AsyncGenerator[TokenBatch]:
        return core.generate(route, request, streamed=streamed)

    return stream


def handle_stream(handle: Handle, route: Route, target: Target) -> Stream:
    """A callable that generates on some replica, preferably the one that holds the model."""

    async def stream(request: Request, streamed: bool) -> AsyncGenerator[TokenBatch]:
        chosen = handle.options(stream=True, multiplexed_model_id=route.route_id)
        reply: Any = chosen.generate.remote(route, request, streamed=streamed)
        try:
            with unavailable_is_busy(target):
                async for batch in reply:
                    if isinstance(batch, Failure):
                        raise batch.error()
                    yield batch
        finally:
            with contextlib.suppress(Exception):  # it may be over already
                reply.cancel()

    return stream
