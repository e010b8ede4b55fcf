"""A list of token lists to vectors: bucket, split, call, merge.

The executors are handle-like callables, so that all of this runs without Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from rlx_ray.checkpoint.tokenizer import Encoded
from rlx_ray.component import ModelVariant
from rlx_ray.errors import InputError, RlxError
from rlx_ray.routing.ladder import Batch, Rung, bucket
from rlx_ray.runtime.executable import pad_tokens
from rlx_serve.problems import PASSED_ON

_CALLS_AT_ONCE = 8
"""Calls of one request in flight: enough for every replica to work, too few to crowd others out."""


@dataclass(frozen=True, slots=True)
class Route:
    """One variant of one model for one target, as a caller names it.

    Attributes:
        model: the model's name.
        variant: the variant text.
        cache_key: 16 hex digits.
        digest: the artifact digest; an executor whose own differs refuses.
        weights: the weights digest; the same.
        packed: whether it runs on the real token rows alone.
    """

    model: str
    variant: str
    cache_key: str
    digest: str
    weights: str
    packed: bool = True

    @property
    def route_id(self) -> str:
        """What Ray routes on: `<model>.<cache_key>`."""
        return f"{self.model}.{self.cache_key}"

    @property
    def slot_id(self) -> str:
        """Which slot runs it, as replicas report it: `<model>.<digest>.<weights>`."""
        return f"{self.model}.{self.digest}.{self.weights}"


def weights_header(routes: Iterable[Route]) -> str:
    """The `x-rlx-weights` of an answer: 16 digits for each set of weights; there is one."""
    return ", ".join(dict.fromkeys(route.weights[:16] for route in routes))


@dataclass(frozen=True, slots=True)
class CallResult:
    """Output arrays by name, and the tier that the variant came from."""

    outputs: Mapping[str, np.ndarray]
    tier: str


Call = Callable[[Route, Mapping[str, np.ndarray]], Awaitable[CallResult]]
"""Runs a variant. Raises Busy if it takes no more work, VariantMissing if it has no artifact."""


@dataclass(frozen=True, slots=True)
class Lane:
    """The executor of one target, with what a model has been given there."""

    target: str
    call: Call
    routes: Mapping[ModelVariant, Route]


@dataclass(frozen=True, slots=True)
class Answer:
    """Vectors of some token lists, and how they came to be.

    Attributes:
        vectors: float32 [texts, hidden].
        tokens: tokens of each text.
        truncated: how many texts were cut.
        used: the variants that ran, each once, in order of first use, with its tier then.
        pad_waste: padded rows over all rows.
    """

    vectors: np.ndarray
    tokens: tuple[int, ...]
    truncated: int
    used: tuple[tuple[Route, str], ...]
    pad_waste: float

    def headers(self) -> dict[str, str]:
        """The answer's `x-rlx-` headers; the lists in them have one entry for each variant."""
        found = {
            "x-rlx-cache-key": ", ".join(route.cache_key for route, _ in self.used),
            "x-rlx-variant": ", ".join(route.variant for route, _ in self.used),
            "x-rlx-tier": ", ".join(tier for _, tier in self.used),
            "x-rlx-weights": weights_header(route for route, _ in self.used),
            "x-rlx-pad-waste": f"{self.pad_waste:.4f}",
        }
        if self.truncated:
            found["x-rlx-truncated"] = str(self.truncated)
        return found


@dataclass(frozen=True, slots=True)
class _Done:
    items: tuple[int, ...]
    rows: np.ndarray
    route: Route
    tier: str
    computed_rows: int


async def embed(
    texts: Sequence[Encoded], lanes: Sequence[Lane], model: str, path: str, output: str
) -> Answer:
    """Vectors of some token lists, on the variants that pad least.

    Args:
        texts: at least one, each of at least one token.
        lanes: executors in serving order; one that is busy, or cannot have a variant, passes its
            part on to the next.
        model: the model's name, for messages.
        path: where it stands in the config, for messages.
        output: name of the output to take.

    Raises:
        InputError: a text is longer than the largest variant.
        RlxError: one of `problems.PASSED_ON` as the first lane says it, once none is left.
        CompileError, StoreError: as a lane says.
    """
    run = _Run(texts, model, path, output, asyncio.Semaphore(_CALLS_AT_ONCE))
    done = await run.items(tuple(range(len(texts))), lanes)
    return _merge(texts, done)


@dataclass(frozen=True, slots=True)
class _Run:
    texts: Sequence[Encoded]
    model: str
    path: str
    output: str
    limit: asyncio.Semaphore

    async def items(self, items: tuple[int, ...], lanes: Sequence[Lane]) -> list[_Done]:
        """Some of the texts, on the first lane that takes them."""
        lane, *others = lanes
        lengths = [len(self.texts[i].ids) for i in items]
        try:
            rungs = [Rung(variant, route.packed) for variant, route in lane.routes.items()]
            batches = bucket(lengths, rungs, self.model, self.path)
        except InputError:
            if not others:
                raise
            return await self.items(items, others)
        parts = [Batch(b.rung, tuple(items[i] for i in b.items)) for b in batches]
        done = await gather([self._batch(batch, lane, others) for batch in parts])
        return list(chain.from_iterable(done))

    async def _batch(self, batch: Batch, lane: Lane, others: Sequence[Lane]) -> list[_Done]:
        route = lane.routes[batch.variant]
        tokens = [(self.texts[i].ids, self.texts[i].type_ids) for i in batch.items]
        try:
            async with self.limit:
                result = await lane.call(route, pad_tokens(batch.variant, tokens))
        except PASSED_ON as error:
            return await self._fall(batch.items, others, error)
        rows = result.outputs[self.output][: len(batch.items)]
        computed = batch.computed_rows([len(text.ids) for text in self.texts])
        return [_Done(batch.items, rows, route, result.tier, computed)]

    async def _fall(
        self, items: tuple[int, ...], others: Sequence[Lane], error: RlxError
    ) -> list[_Done]:
        """The next lanes' answer; if they have none, the first lane's error is the one to tell."""
        if not others:
            raise error
        try:
            return await self.items(items, others)
        except (*PASSED_ON, InputError):
            raise error from None


def _merge(texts: Sequence[Encoded], done: Sequence[_Done]) -> Answer:
    vectors = np.empty((len(texts), done[0].rows.shape[1]), np.float32)
    used: dict[Route, str] = {}
    for part in done:
        vectors[list(part.items)] = part.rows
        used.setdefault(part.route, part.tier)
    tokens = tuple(len(text.ids) for text in texts)
    computed = sum(part.computed_rows for part in done)
    return Answer(
        vectors,
        tokens,
        sum(text.truncated for text in texts),
        tuple(used.items()),
        (computed - sum(tokens)) / computed,
    )


async def gather(work: Sequence[Awaitable[list[_Done]]]) -> list[list[_Done]]:
    """All results in order; the first failure cancels the rest."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
