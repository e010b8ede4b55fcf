"""Texts to vectors: what runs where, what is left of it for the next target, and the answer.

`plan` is pure. It yields calls in rounds and is sent how each ended; `drive` runs the calls one
after the other, `drive_at_once` side by side. A call that its target cannot have (`PASSED_ON`) goes
to the next target with the texts that it had.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from rlx_ray.checkpoint.tokenizer import Encoded
from rlx_ray.component import ModelVariant
from rlx_ray.errors import InputError, RlxError
from rlx_ray.inference.fallback import PASSED_ON
from rlx_ray.routing.buckets import Batch, ShapeBucket, assign
from rlx_ray.runtime.executable import pad_tokens

OUTPUT = "embedding"
"""Name of the output that holds a vector for each text."""


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """One forward pass.

    Attributes:
        lane: which target, by its place in the serving order.
        batch: which texts, on which variant.
    """

    lane: int
    batch: Batch

    def inputs(self, texts: Sequence[Encoded]) -> dict[str, np.ndarray]:
        """What the variant takes, of all texts of the request."""
        tokens = [(texts[i].ids, texts[i].type_ids) for i in self.batch.items]
        return pad_tokens(self.batch.variant, tokens)


@dataclass(frozen=True, slots=True)
class Ran:
    """How a call ended well: the variant's `embedding`, float32 [batch, hidden], and its tier."""

    rows: np.ndarray
    tier: str


Outcome: TypeAlias = Ran | RlxError
"""How a call ended; an error is one of PASSED_ON."""

Plan: TypeAlias = Generator[list[ForwardPass], Sequence[Outcome], list[tuple[ForwardPass, Ran]]]


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of some texts, and how they came to be.

    Attributes:
        vectors: float32 [texts, hidden].
        tokens: tokens of each text, special ones included.
        truncated: how many texts were cut to the model's limit.
        runs: what ran, in order; items are places in the list of all texts that shared it.
        tiers: for each call where its artifact came from: memory, disk, store or compiled.
        pad_waste: padded rows over all rows.
    """

    vectors: np.ndarray
    tokens: tuple[int, ...]
    truncated: int
    runs: tuple[ForwardPass, ...]
    tiers: tuple[str, ...]
    pad_waste: float

    @property
    def calls(self) -> tuple[ModelVariant, ...]:
        """The variants that ran, one for each call."""
        return tuple(run.batch.variant for run in self.runs)


def plan(
    lengths: Sequence[int], lanes: Sequence[Sequence[ShapeBucket]], model: str, path: str
) -> Plan:
    """The calls that a request needs, on the variants that pad least.

    Args:
        lengths: tokens of each text, at least one text and one token.
        lanes: for each target, in serving order, the variants that texts can be routed to.
        model: the model's name, for messages.
        path: where it stands in the config, for messages.

    Yields:
        Calls; sent are their outcomes, in the same order.

    Raises:
        InputError: a text is longer than the largest variant.
        RlxError: one of PASSED_ON as the first target says it, once none is left.
    """
    done: list[tuple[ForwardPass, Ran]] = []
    waiting: list[tuple[Sequence[int], RlxError | None]] = [(range(len(lengths)), None)]
    for lane, buckets in enumerate(lanes):
        last = lane == len(lanes) - 1
        calls: list[ForwardPass] = []
        errors: list[RlxError | None] = []
        left: list[tuple[Sequence[int], RlxError | None]] = []
        for items, error in waiting:
            try:
                batches = assign([lengths[i] for i in items], buckets, model, path)
            except InputError as too_long:
                if last:
                    raise (error or too_long) from None
                left.append((items, error))
                continue
            for batch in batches:
                calls.append(
                    ForwardPass(lane, Batch(batch.bucket, tuple(items[i] for i in batch.items)))
                )
                errors.append(error)
        outcomes = (yield calls) if calls else ()
        for call, error, outcome in zip(calls, errors, outcomes, strict=True):
            if isinstance(outcome, Ran):
                done.append((call, outcome))
            else:
                left.append((call.batch.items, error or outcome))
        waiting = left
        if not waiting:
            break
    for _, error in waiting:
        assert error is not None
        raise error
    return done


def merge(texts: Sequence[Encoded], done: Sequence[tuple[ForwardPass, Ran]]) -> Embedded:
    """The answer of a request from its calls."""
    return merge_shared(texts, done, (len(texts),))[0]


def merge_shared(
    texts: Sequence[Encoded], done: Sequence[tuple[ForwardPass, Ran]], counts: Sequence[int]
) -> list[Embedded]:
    """The answers of some requests that shared calls.

    A call's padding is shared out by the rows that each request has in it.

    Args:
        texts: of all of them, one request after the other.
        done: the calls, and how they ended.
        counts: texts of each request, at least one.
    """
    lengths = tuple(len(text.ids) for text in texts)
    vectors = np.empty((len(texts), done[0][1].rows.shape[1]), np.float32)
    owner = [number for number, count in enumerate(counts) for _ in range(count)]
    runs: list[list[tuple[ForwardPass, Ran]]] = [[] for _ in counts]
    padded, real = [0.0] * len(counts), [0] * len(counts)
    for call, ran in done:
        items = call.batch.items
        vectors[list(items)] = ran.rows[: len(items)]
        rows = sum(lengths[i] for i in items)
        waste = call.batch.computed_rows(lengths) / rows - 1
        for number in dict.fromkeys(owner[i] for i in items):
            runs[number].append((call, ran))
        for i in items:
            padded[owner[i]] += lengths[i] * waste
            real[owner[i]] += lengths[i]
    found, first = [], 0
    for number, count in enumerate(counts):
        own = slice(first, first + count)
        first += count
        found.append(
            Embedded(
                vectors[own],
                lengths[own],
                sum(text.truncated for text in texts[own]),
                tuple(call for call, _ in runs[number]),
                tuple(ran.tier for _, ran in runs[number]),
                padded[number] / (padded[number] + real[number]),
            )
        )
    return found


def drive(calls: Plan, run: Callable[[ForwardPass], Ran]) -> list[tuple[ForwardPass, Ran]]:
    """Run a plan's calls one after the other.

    Args:
        calls: the plan.
        run: runs a call; one of PASSED_ON passes it on, any other error ends the plan.
    """

    def one(call: ForwardPass) -> Outcome:
        try:
            return run(call)
        except PASSED_ON as error:
            return error

    try:
        wanted = next(calls)
        while True:
            wanted = calls.send([one(call) for call in wanted])
    except StopIteration as stop:
        found: list[tuple[ForwardPass, Ran]] = stop.value
        return found


async def drive_at_once(
    calls: Plan, run: Callable[[ForwardPass], Awaitable[Ran]]
) -> list[tuple[ForwardPass, Ran]]:
    """Run a plan's calls of one round side by side; the arguments are as those of `drive`."""

    async def one(call: ForwardPass) -> Outcome:
        try:
            return await run(call)
        except PASSED_ON as error:
            return error

    try:
        wanted = next(calls)
        while True:
            wanted = calls.send(await together([one(call) for call in wanted]))
    except StopIteration as stop:
        found: list[tuple[ForwardPass, Ran]] = stop.value
        return found


async def together(work: Sequence[Awaitable[Outcome]]) -> list[Outcome]:
    """All results in order; the first failure cancels the rest."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
