"""Bucketing: every text is answered once, nothing is cut, and little is padded."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx_ray.component import ModelVariant
from rlx_ray.errors import InputError
from rlx_ray.routing.buckets import Batch, ShapeBucket, assign

LADDER = tuple(
    ModelVariant.encoder(b, s) for b in (1, 2, 4, 8, 16, 32) for s in (16, 32, 64, 128, 256)
)
RAGGED = tuple(ModelVariant.encoder(64, 256).with_extra(2, rows) for rows in (256, 1024))


def pad_waste(batches: Sequence[Batch], lengths: Sequence[int]) -> float:
    """Padded rows over all rows that a request computes, between 0 and 1."""
    total = sum(b.computed_rows(lengths) for b in batches)
    real = sum(lengths[i] for b in batches for i in b.items)
    return (total - real) / total if total else 0.0


def cut(lengths: list[int], variants=LADDER, *, packed: bool = True) -> tuple[Batch, ...]:
    return assign(lengths, [ShapeBucket(v, packed) for v in variants], "m", "$.models[0]")


@given(st.lists(st.integers(1, 256), min_size=1, max_size=60), st.booleans(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_every_item_is_in_one_call_that_it_fits(lengths, packed: bool, ragged: bool) -> None:
    batches = cut(lengths, LADDER + RAGGED if ragged else LADDER, packed=packed)
    assert sorted(i for b in batches for i in b.items) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch.items) <= batch.variant.batch
        assert max(lengths[i] for i in batch.items) <= batch.variant.seq
        assert sum(lengths[i] for i in batch.items) <= batch.bucket.rows


@given(st.lists(st.integers(1, 16), min_size=1, max_size=6), st.booleans())
@settings(max_examples=50, deadline=None)
def test_no_way_to_cut_the_sorted_list_is_cheaper(lengths: list[int], packed: bool) -> None:
    buckets = tuple(
        ShapeBucket(ModelVariant.encoder(b, s), packed) for b in (1, 2, 4) for s in (4, 16)
    )
    ordered = sorted(lengths, reverse=True)
    batches = assign(lengths, buckets, "m", "$")
    found = sum(b.bucket.cost([lengths[i] for i in b.items]) for b in batches)

    def cheapest(start: int) -> float:
        if start >= len(ordered):
            return 0.0
        return min(
            bucket.cost(ordered[start : start + n]) + cheapest(start + n)
            for bucket in buckets
            if (n := bucket.takes(ordered[start:]))
        )

    assert found == pytest.approx(cheapest(0))


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 100, 255, 256])
def test_a_single_text_takes_the_smallest_variant_that_fits(length: int) -> None:
    (batch,) = cut([length])
    assert batch.variant.batch == 1
    assert batch.variant.seq == min(s for s in (16, 32, 64, 128, 256) if s >= length)


def test_short_and_long_texts_do_not_share_a_padded_batch() -> None:
    lengths = [10] * 8 + [250]
    for packed in (True, False):
        batches = cut(lengths, packed=packed)
        assert {b.variant for b in batches} == {
            ModelVariant.encoder(8, 16),
            ModelVariant.encoder(1, 256),
        }
    assert 0 < pad_waste(cut(lengths, packed=False), lengths) < 0.2


def test_packed_rows_are_no_waste() -> None:
    lengths = [10] * 8 + [250, 3]
    assert pad_waste(cut(lengths), lengths) == 0
    assert pad_waste(cut(lengths, packed=False), lengths) > 0


def test_mixed_lengths_waste_less_than_one_padded_batch() -> None:
    lengths = list(itertools.islice(itertools.cycle([6, 9, 14, 30, 12, 60, 8, 120]), 32))
    computed = sum(b.computed_rows(lengths) for b in cut(lengths, packed=False))
    assert computed < 32 * 128 / 2


def test_mixed_lists_run_ragged_and_single_texts_padded() -> None:
    lengths = list(itertools.islice(itertools.cycle([6, 9, 14, 30, 12, 60, 8, 120]), 24))
    batches = cut(lengths, LADDER + RAGGED)
    assert [b.variant for b in batches] == [RAGGED[1]]
    for length, seq in ((20, 32), (33, 64), (130, 256)):
        (single,) = cut([length], LADDER + RAGGED)
        assert single.variant == ModelVariant.encoder(1, seq)


def test_where_all_rows_are_computed_the_least_rows_win() -> None:
    lengths = [120, 60, *[9] * 8]  # 252 tokens
    batches = cut(lengths, LADDER + RAGGED, packed=False)
    assert [b.variant for b in batches] == [RAGGED[0]]
    assert pad_waste(batches, lengths) == pytest.approx(4 / 256)
    (single,) = cut([20], LADDER + RAGGED, packed=False)
    assert single.variant == ModelVariant.encoder(1, 32)


def test_a_ragged_variant_takes_no_more_rows_than_it_has() -> None:
    batches = cut([100] * 5, RAGGED[:1])
    assert [len(b.items) for b in batches] == [2, 2, 1]
    with pytest.raises(InputError, match="takes 100"):
        cut([101], (ModelVariant.encoder(64, 256).with_extra(2, 100),))


def test_past_the_largest_variant_both_numbers_are_named() -> None:
    with pytest.raises(InputError) as caught:
        cut([3, 300])
    text = str(caught.value)
    for part in ("input[1] has 300 tokens", "takes 256", "seq: 320", "$.models[0].matrix"):
        assert part in text


def test_no_variant_at_all_is_an_input_error() -> None:
    with pytest.raises(InputError, match="takes 0"):
        cut([3], ())
