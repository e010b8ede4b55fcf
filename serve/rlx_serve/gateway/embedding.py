"""Token lists to vectors by lanes: callables, in this process or not, so that no Ray is here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rlx_ray.checkpoint.tokenizer import Encoded
from rlx_ray.component import ModelVariant
from rlx_ray.inference.embedding import (
    OUTPUT,
    Embedded,
    ForwardPass,
    Ran,
    drive_at_once,
    merge_shared,
    plan,
)
from rlx_ray.routing.buckets import ShapeBucket
from rlx_serve.wire import CallResult, Route

Call = Callable[[Route, Mapping[str, np.ndarray]], Awaitable[CallResult]]
"""Runs a variant. Raises Busy if it takes no more work, VariantMissing if it has no artifact."""


@dataclass(frozen=True, slots=True)
class Lane:
    """What runs a model's variants for one target.

    Attributes:
        target: its name.
        call: runs one.
        routes: the variants that texts can be routed to.
        loaded: whether a variant is in memory; an executor's always counts as such.
        passes: how many passes it takes at once.
        buckets: the same variants, with what routing has to know of them.
        calls: how many calls of a pass: a processor runs one after the other fastest, several
            replicas are to have work each.
    """

    target: str
    call: Call
    routes: Mapping[ModelVariant, Route]
    loaded: Callable[[Route], bool] = lambda route: True
    passes: int = 1
    calls: int = 1
    buckets: tuple[ShapeBucket, ...] = field(init=False)

    def __post_init__(self) -> None:
        found = [ShapeBucket(variant, route.packed) for variant, route in self.routes.items()]
        object.__setattr__(self, "buckets", tuple(found))


@dataclass(frozen=True, slots=True)
class Answer:
    """Vectors of some token lists, and how they came to be.

    Attributes:
        embedded: the vectors.
        used: the variants that ran, each once, in order of first use, with its tier then.
        times: seconds that parts of it took, by name.
    """

    embedded: Embedded
    used: tuple[tuple[Route, str], ...]
    times: dict[str, float] = field(default_factory=dict, compare=False)

    @classmethod
    def joined(cls, parts: Sequence[Answer]) -> Answer:
        """The answer of a request that ran in several parts, at least one, in their order."""
        if len(parts) == 1:
            return parts[0]
        all_of = [part.embedded for part in parts]
        rows = [sum(one.tokens) / (1 - one.pad_waste) for one in all_of]
        waste = sum(one.pad_waste * n for one, n in zip(all_of, rows, strict=True)) / sum(rows)
        used: dict[Route, str] = {}
        times: dict[str, float] = {}
        for part in parts:
            for route, tier in part.used:
                used.setdefault(route, tier)
            for name, seconds in part.times.items():
                times[name] = max(times.get(name, 0.0), seconds)
        return cls(
            Embedded(
                np.concatenate([one.vectors for one in all_of]),
                tuple(n for one in all_of for n in one.tokens),
                sum(one.truncated for one in all_of),
                tuple(run for one in all_of for run in one.runs),
                tuple(tier for one in all_of for tier in one.tiers),
                waste,
            ),
            tuple(used.items()),
            times,
        )

    def headers(self) -> dict[str, str]:
        """The answer's headers; the lists in `x-rlx-` ones have one entry for each variant."""
        found = used_headers(self.used)
        found["x-rlx-pad-waste"] = f"{self.embedded.pad_waste:.4f}"
        if self.embedded.truncated:
            found["x-rlx-truncated"] = str(self.embedded.truncated)
        spent = [f"{name};dur={seconds * 1e3:.2f}" for name, seconds in self.times.items()]
        found["server-timing"] = ", ".join(spent)
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


async def embed(
    texts: Sequence[Encoded],
    counts: Sequence[int],
    lanes: Sequence[Lane],
    model: str,
    path: str,
    waits: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Vectors of some requests' token lists, in passes that they share, on what pads least.

    Args:
        texts: of all requests, one after the other, each of at least one token.
        counts: texts of each request, at least one.
        lanes: in serving order; one that is busy, or cannot have a variant, passes its part on to
            the next.
        model: the model's name, for messages.
        path: where it stands in the config, for messages.
        waits: called if a variant has to be loaded first, which may take long.

    Returns:
        An answer for each request.

    Raises:
        InputError: a text is longer than the largest variant.
        RlxError: one of `fallback.PASSED_ON` as the first lane says it, once none is left.
        CompileError, StoreError: as a lane says.
    """
    limits = [asyncio.Semaphore(lane.calls) for lane in lanes]
    begun = time.monotonic()

    def route_of(call: ForwardPass) -> Route:
        return lanes[call.lane].routes[call.batch.variant]

    async def run(call: ForwardPass) -> Ran:
        lane, route = lanes[call.lane], route_of(call)
        if not lane.loaded(route):
            waits()
        async with limits[call.lane]:
            result = await lane.call(route, call.inputs(texts))
        return Ran(result.outputs[OUTPUT], result.tier)

    lengths = [len(text.ids) for text in texts]
    calls = plan(lengths, [lane.buckets for lane in lanes], model, path)
    done = await drive_at_once(calls, run)
    seconds = time.monotonic() - begun
    answers = []
    for embedded in merge_shared(texts, done, counts):
        used: dict[Route, str] = {}
        for call, tier in zip(embedded.runs, embedded.tiers, strict=True):
            used.setdefault(route_of(call), tier)
        answers.append(Answer(embedded, tuple(used.items()), {"run": seconds}))
    return answers
