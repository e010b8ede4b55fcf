"""Which variants a list of texts runs on, so that little time is lost.

Texts are sorted by length; a call takes a run of neighbours. The best way to cut the sorted list
is found by dynamic programming over the model's variants.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rlx_ray.component import ModelVariant
from rlx_ray.errors import InputError

_CALL_ROWS = 8
"""What a call costs beside its rows, in rows: queueing, copies, the first tile's cold weights."""

_ATTENTION_ROWS = 2048
"""A row of a sequence of this many tokens costs twice a row of a very short one."""

_LOOSE = 0.15
"""What a row that a padded batch could take and does not get costs, of a whole row: its tiles are
whole sequences, and unequal ones keep some threads waiting."""

_LOOSE_EVEN = 0.01
"""The same where tiles are equal shares of the rows: in a ragged variant, and in one sequence."""


@dataclass(frozen=True, slots=True)
class ShapeBucket:
    """A variant that texts can be routed to.

    Attributes:
        variant: an encoder variant.
        packed: whether it runs on the real token rows alone; one that is not computes all rows that
            it has, but a ragged one has no attention between sequences.
        rows: the most token rows of a call.
        ragged: whether sequences share the rows.
    """

    variant: ModelVariant
    packed: bool = True
    rows: int = field(init=False, compare=False)
    ragged: bool = field(init=False, compare=False)

    def __post_init__(self) -> None:
        rows = self.variant.ragged_rows
        object.__setattr__(self, "ragged", rows is not None)
        object.__setattr__(self, "rows", rows or self.variant.batch * self.variant.seq)

    def takes(self, lengths: Sequence[int]) -> int:
        """How many texts from the first on one call takes; `lengths` falls."""
        if not lengths or lengths[0] > self.variant.seq:
            return 0
        count = rows = 0
        for length in lengths[: self.variant.batch]:
            rows += length
            if rows > self.rows:
                break
            count += 1
        return count

    def cost(self, lengths: Sequence[int]) -> float:
        """What one call for texts of some lengths costs, in rows of a short sequence."""
        attended = sum(n * n for n in lengths) / _ATTENTION_ROWS
        if not self.packed:
            padded = self.rows * self.variant.seq / _ATTENTION_ROWS
            return self.rows + (attended if self.ragged else padded) + _CALL_ROWS
        real = sum(lengths) + attended
        even = self.variant.batch == 1 or self.ragged
        loose = _LOOSE_EVEN if even else _LOOSE
        return real + loose * (self.rows - sum(lengths)) + _CALL_ROWS


@dataclass(frozen=True, slots=True)
class Batch:
    """One call: its bucket and the positions in the request that it answers, in row order."""

    bucket: ShapeBucket
    items: tuple[int, ...]

    @property
    def variant(self) -> ModelVariant:
        """The variant that runs."""
        return self.bucket.variant

    def computed_rows(self, lengths: Sequence[int]) -> int:
        """Token rows that the call computes; `lengths` are the request's."""
        return sum(lengths[i] for i in self.items) if self.bucket.packed else self.bucket.rows


def assign(
    lengths: Sequence[int], buckets: Iterable[ShapeBucket], model: str, path: str
) -> tuple[Batch, ...]:
    """Cut a request into calls.

    Args:
        lengths: tokens of each item, at least 1.
        buckets: the model's encoder variants.
        model: its name, for the message.
        path: where the model's matrix stands in the config, for the message.

    Raises:
        InputError: an item is longer than the largest variant.
    """
    ordered = sorted(set(buckets), key=lambda r: (r.variant.seq, r.rows, r.variant.batch))
    check_lengths(lengths, ordered, model, path)
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches = []
    start = 0
    for bucket, count in _cheapest([lengths[i] for i in order], ordered):
        batches.append(Batch(bucket, tuple(order[start : start + count])))
        start += count
    return tuple(batches)


def check_lengths(
    lengths: Sequence[int], buckets: Iterable[ShapeBucket], model: str, path: str
) -> None:
    """Check that every item fits some variant; the arguments and errors are those of `assign`."""
    longest = max((min(r.variant.seq, r.rows) for r in buckets), default=0)
    for item, length in enumerate(lengths):
        if length > longest:
            raise InputError(
                f"input[{item}] has {length} tokens, the largest variant of {model!r} takes "
                f"{longest}.",
                f"Add a row such as {{phase: encoder, batch: 1, seq: {_round(length)}}} to "
                f"{path}.matrix of the config.",
            )


def _cheapest(
    lengths: Sequence[int], buckets: Sequence[ShapeBucket]
) -> list[tuple[ShapeBucket, int]]:
    """The cheapest way through a list (longest first): buckets, and how many texts each takes."""
    count = len(lengths)
    best = [0.0] * (count + 1)
    choice: list[tuple[ShapeBucket, int]] = [(buckets[0], 1)] * count if buckets else []
    for start in range(count - 1, -1, -1):
        best[start] = float("inf")
        for bucket in buckets:
            taken = bucket.takes(lengths[start : start + bucket.variant.batch])
            if not taken:
                continue
            total = bucket.cost(lengths[start : start + taken]) + best[start + taken]
            if total < best[start]:
                best[start], choice[start] = total, (bucket, taken)
    way = []
    start = 0
    while start < count:
        way.append(choice[start])
        start += choice[start][1]
    return way


def _round(length: int) -> int:
    """The next multiple of 64, as a seq to suggest."""
    return -(-length // 64) * 64
