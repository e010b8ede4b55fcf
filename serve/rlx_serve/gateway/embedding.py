"""A list of token lists to vectors by executors: handle-like callables, so that no Ray is here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlx_ray.checkpoint.tokenizer import Encoded
from rlx_ray.component import ModelVariant
from rlx_ray.inference.embedding import (
    OUTPUT,
    Embedded,
    ForwardPass,
    Ran,
    drive_at_once,
    merge,
    plan,
)
from rlx_ray.routing.buckets import ShapeBucket
from rlx_serve.wire import CallResult, Route

_CALLS_AT_ONCE = 8
"""Calls of one request in flight: enough for every replica to work, too few to crowd others out."""


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
        embedded: the vectors.
        used: the variants that ran, each once, in order of first use, with its tier then.
    """

    embedded: Embedded
    used: tuple[tuple[Route, str], ...]

    def headers(self) -> dict[str, str]:
        """The answer's `x-rlx-` headers; the lists in them have one entry for each variant."""
        found = used_headers(self.used)
        found["x-rlx-pad-waste"] = f"{self.embedded.pad_waste:.4f}"
        if self.embedded.truncated:
            found["x-rlx-truncated"] = str(self.embedded.truncated)
        return found


def used_headers(used: Sequence[tuple[Route, str]]) -> dict[str, str]:
    """The headers that say which variants ran, from where they came, and on which weights."""
    weights = dict.fromkeys(route.weights[:16] for route, _ in used)
    return {
        "x-rlx-cache-key": ", ".join(route.cache_key for route, _ in used),
        "x-rlx-variant": ", ".join(route.variant for route, _ in used),
        "x-rlx-tier": ", ".join(tier for _, tier in used),
        "x-rlx-weights": ", ".join(weights),
    }


async def embed(texts: Sequence[Encoded], lanes: Sequence[Lane], model: str, path: str) -> Answer:
    """Vectors of some token lists, on the variants that pad least.

    Args:
        texts: at least one, each of at least one token.
        lanes: executors in serving order; one that is busy, or cannot have a variant, passes its
            part on to the next.
        model: the model's name, for messages.
        path: where it stands in the config, for messages.

    Raises:
        InputError: a text is longer than the largest variant.
        RlxError: one of `fallback.PASSED_ON` as the first lane says it, once none is left.
        CompileError, StoreError: as a lane says.
    """
    limit = asyncio.Semaphore(_CALLS_AT_ONCE)

    def route_of(call: ForwardPass) -> Route:
        return lanes[call.lane].routes[call.batch.variant]

    async def run(call: ForwardPass) -> Ran:
        async with limit:
            result = await lanes[call.lane].call(route_of(call), call.inputs(texts))
        return Ran(result.outputs[OUTPUT], result.tier)

    buckets = [
        [ShapeBucket(variant, route.packed) for variant, route in lane.routes.items()]
        for lane in lanes
    ]
    calls = plan([len(text.ids) for text in texts], buckets, model, path)
    embedded = merge(texts, await drive_at_once(calls, run))
    used: dict[Route, str] = {}
    for call, tier in zip(embedded.runs, embedded.tiers, strict=True):
        used.setdefault(route_of(call), tier)
    return Answer(embedded, tuple(used.items()))
