"""Which variants a list of texts runs on, so that little is padded.

Texts are sorted by length; a call takes a run of neighbours. The best way to cut the sorted list
is found by dynamic programming over the model's variants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlx_ray.component import ModelVariant
from rlx_ray.errors import InputError

_CALL_ROWS = 8
"""What a call costs beside its rows, in rows: queueing, copies, the first tile's cold weights."""

_ATTENTION_ROWS = 2048
"""A row of a sequence of this many tokens costs twice a row of a very short one."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One call: the variant and the positions in the request that it answers, in row order."""

    variant: ModelVariant
    items: tuple[int, ...]

    def rows(self, lengths: Sequence[int]) -> int:
        """Real token rows of the call."""
        return sum(lengths[i] for i in self.items)

    @property
    def padded_rows(self) -> int:
        """Token rows of the call, padding included."""
        return self.variant.batch * self.variant.seq


def cost(variant: ModelVariant) -> float:
    """What one call of an encoder variant costs, in rows of a short sequence."""
    return variant.batch * variant.seq * (1 + variant.seq / _ATTENTION_ROWS) + _CALL_ROWS


def bucket(
    lengths: Sequence[int], variants: Sequence[ModelVariant], model: str, path: str
) -> tuple[Batch, ...]:
    """Cut a request into calls.

    Args:
        lengths: tokens of each item, at least 1.
        variants: the model's encoder variants.
        model: its name, for the message.
        path: where the model's matrix stands in the config, for the message.

    Raises:
        InputError: an item is longer than the largest variant.
    """
    longest = max((v.seq for v in variants), default=0)
    for item, length in enumerate(lengths):
        if length > longest:
            raise InputError(
                f"input[{item}] has {length} tokens, the largest variant of {model!r} takes "
                f"{longest}.",
                f"Add a row such as {{phase: encoder, batch: 1, seq: {_round(length)}}} to "
                f"{path}.matrix of the config.",
            )
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    ladder = [(v, cost(v)) for v in sorted(set(variants), key=lambda v: (v.seq, v.batch))]
    choice = _cheapest([lengths[i] for i in order], ladder)
    batches = []
    start = 0
    while start < len(order):
        variant = choice[start]
        items = tuple(order[start : start + variant.batch])
        batches.append(Batch(variant, items))
        start += len(items)
    return tuple(batches)


def _cheapest(
    lengths: Sequence[int], ladder: Sequence[tuple[ModelVariant, float]]
) -> list[ModelVariant]:
    """For each start in the list (longest first), the variant of the cheapest way from there."""
    count = len(lengths)
    best = [0.0] * (count + 1)
    choice: list[ModelVariant] = [ladder[0][0]] * count if ladder else []
    for start in range(count - 1, -1, -1):
        best[start] = float("inf")
        for variant, price in ladder:
            if variant.seq < lengths[start]:
                continue
            total = price + best[min(count, start + variant.batch)]
            if total < best[start]:
                best[start], choice[start] = total, variant
    return choice


def _round(length: int) -> int:
    """The next multiple of 64, as a seq to suggest."""
    return -(-length // 64) * 64


def pad_waste(batches: Sequence[Batch], lengths: Sequence[int]) -> float:
    """Padded rows over all rows of a request, between 0 and 1."""
    total = sum(b.padded_rows for b in batches)
    real = sum(b.rows(lengths) for b in batches)
    return (total - real) / total if total else 0.0
