"""From logits to a token: penalties, temperature, truncation, a seeded draw."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rlx_ray.engine.adjustments import LogitAdjustments
from rlx_ray.errors import InputError
from rlx_ray.shape import LIKELIEST

Logits = npt.NDArray[np.float32]

_NUCLEUS = 64
"""Tokens that are sorted at first where top_p is looked for."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the most likely token.
        top_k: only the k most likely; 0 for all.
        top_p: only the most likely whose probabilities add up to p.
        min_p: only those at least so likely as this share of the most likely.
        repetition_penalty: logits of tokens seen before are divided by it (multiplied if negative);
            1 for none. Source: Keskar et al., arXiv:1909.05858.
        presence_penalty: taken off the logit of every token generated before.
        frequency_penalty: taken off once for each time that it was.
        seed: of the draws; None for one that nobody knows.
        logit_bias: added to the logits of tokens.
        logprobs: how many of the most likely tokens are reported with each; None for no report.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None

    def check(self, vocab: int) -> None:
        """Check that every value is in its range.

        Raises:
            InputError: one is not; the message names it.
        """
        ranges = (
            ("temperature", 0.0, 100.0),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", 0.01, 100.0),
            ("presence_penalty", -2.0, 2.0),
            ("frequency_penalty", -2.0, 2.0),
        )
        for name, low, high in ranges:
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise InputError(f"{name} is {value}.", f"Use {low:g} to {high:g}.")
        if self.top_p == 0:
            raise InputError("top_p is 0.", "Use more than 0; temperature 0 takes the best token.")
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}.", "Use 0 for all tokens, or more.")
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            raise InputError(f"seed is {self.seed}.", "Use 0 to 2**64 - 1.")
        if self.logprobs is not None and not 0 <= self.logprobs <= LIKELIEST:
            raise InputError(f"logprobs is {self.logprobs}.", f"Use 0 to {LIKELIEST}.")
        for token, bias in self.logit_bias.items():
            if not 0 <= token < vocab or not (math.isfinite(bias) and abs(bias) <= 100):
                raise InputError(
                    f"logit_bias gives token {token} {bias}.",
                    f"Use tokens from 0 to {vocab - 1} and values from -100 to 100.",
                )


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token, and, if asked for, how likely it and the most likely ones were (natural logs)."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one stream: holds its random state and what it has generated.

    Args:
        sampling: checked before.
        prompt: token ids that the repetition penalty counts as seen.

    Attributes:
        sampling: as it was given.
        seed: of the draws, below 2^64: the one that was given, or one that nobody knows.
        changes: what its biases and penalties do, as of the tokens so far.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self.sampling = sampling
        self.seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        self.adjustments = LogitAdjustments(
            sampling.logit_bias,
            prompt,
            sampling.repetition_penalty,
            sampling.presence_penalty,
            sampling.frequency_penalty,
        )
        self._random: np.random.Generator | None = None
        if sampling.temperature > 0:
            self._random = np.random.Generator(np.random.Philox(self.seed))

    def choose(self, logits: Logits) -> Chosen:
        """The next token from float32 logits [vocab], which stay as they are."""
        scores = self.adjustments.apply(logits)
        random = self._random
        token = int(scores.argmax()) if random is None else self._draw(scores, random)
        self.adjustments.generated(token)
        if self.sampling.logprobs is None:
            return Chosen(token)
        return _reported(logits, token, self.sampling.logprobs)

    def _draw(self, scores: npt.NDArray[Any], random: np.random.Generator) -> int:
        how = self.sampling
        weights = np.exp((scores - scores.max()).astype(np.float64) / how.temperature)
        weights[weights < how.min_p] = 0
        order: npt.NDArray[np.intp] | None = None  # all tokens, where their ranks do not matter
        if how.top_k and how.top_k < len(weights):
            order = _best(weights, how.top_k)
        elif how.top_p < 1:
            order = _nucleus(weights, how.top_p * weights.sum())
        kept = weights if order is None else weights[order]
        sums = kept.cumsum()
        if how.top_k and how.top_p < 1:
            sums = sums[: int(np.searchsorted(sums, how.top_p * sums[-1])) + 1]
        place = int(np.searchsorted(sums, random.random() * sums[-1], side="right"))
        place = min(place, len(sums) - 1)
        return place if order is None else int(order[place])


def _best(weights: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.intp]:
    """The tokens of the largest weights, those first; among equals the lower number."""
    if count < len(weights):
        least = np.partition(weights, -count)[-count]
        some = np.flatnonzero(weights >= least)
    else:
        some = np.arange(len(weights))
    return some[np.argsort(-weights[some], kind="stable")[:count]]


def _nucleus(weights: npt.NDArray[np.float64], share: float) -> npt.NDArray[np.intp]:
    """The fewest tokens, the likeliest first, whose weights add up to a share.

    Only as many are sorted as are likely to be enough: sorting a whole vocabulary takes longer
    than a small model's step.
    """
    count = _NUCLEUS
    while True:
        order = _best(weights, count)
        sums = weights[order].cumsum()
        if sums[-1] >= share or len(order) == len(weights):
            return order[: int(np.searchsorted(sums, share)) + 1]
        count *= 8


def _reported(logits: Logits, token: int, count: int) -> Chosen:
    scores = logits.astype(np.float64)
    top = scores.max()
    logs = scores - top - math.log(np.exp(scores - top).sum())
    best = np.argsort(-logs, kind="stable")[:count]
    return Chosen(token, float(logs[token]), tuple((int(t), float(logs[t])) for t in best))
