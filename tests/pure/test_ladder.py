"""Bucketing: every text is answered once, nothing is cut, and little is padded."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx_ray.component import ModelVariant
from rlx_ray.errors import InputError
from rlx_ray.routing.ladder import Batch, bucket, cost, pad_waste

LADDER = tuple(
    ModelVariant.encoder(b, s) for b in (1, 2, 4, 8, 16, 32) for s in (16, 32, 64, 128, 256)
)


def cut(lengths: list[int], variants=LADDER) -> tuple[Batch, ...]:
    return bucket(lengths, variants, "m", "$.models[0]")


@given(st.lists(st.integers(1, 256), min_size=1, max_size=60))
@settings(max_examples=200, deadline=None)
def test_every_item_is_in_one_call_that_it_fits(lengths: list[int]) -> None:
    batches = cut(lengths)
    assert sorted(i for b in batches for i in b.items) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch.items) <= batch.variant.batch
        assert max(lengths[i] for i in batch.items) <= batch.variant.seq


@given(st.lists(st.integers(1, 16), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_no_way_to_cut_the_sorted_list_is_cheaper(lengths: list[int]) -> None:
    ladder = tuple(ModelVariant.encoder(b, s) for b in (1, 2, 4) for s in (4, 16))
    ordered = sorted(lengths, reverse=True)
    found = sum(cost(b.variant) for b in cut(lengths, ladder))

    def cheapest(start: int) -> float:
        if start >= len(ordered):
            return 0.0
        return min(cost(v) + cheapest(start + v.batch) for v in ladder if v.seq >= ordered[start])

    assert found == pytest.approx(cheapest(0))


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 100, 255, 256])
def test_a_single_text_takes_the_smallest_variant_that_fits(length: int) -> None:
    (batch,) = cut([length])
    assert batch.variant.batch == 1
    assert batch.variant.seq == min(s for s in (16, 32, 64, 128, 256) if s >= length)


def test_short_and_long_texts_do_not_share_a_batch() -> None:
    lengths = [10] * 8 + [250]
    assert {b.variant for b in cut(lengths)} == {
        ModelVariant.encoder(8, 16),
        ModelVariant.encoder(1, 256),
    }
    assert pad_waste(cut(lengths), lengths) < 0.2


def test_mixed_lengths_waste_less_than_one_padded_batch() -> None:
    lengths = list(itertools.islice(itertools.cycle([6, 9, 14, 30, 12, 60, 8, 120]), 32))
    padded = 32 * 128
    assert sum(b.padded_rows for b in cut(lengths)) < padded / 2


def test_past_the_largest_variant_names_both_numbers_and_the_row_to_add() -> None:
    with pytest.raises(InputError) as caught:
        cut([3, 300])
    text = str(caught.value)
    for part in ("input[1] has 300 tokens", "takes 256", "seq: 320", "$.models[0].matrix"):
        assert part in text


def test_no_variant_at_all_is_an_input_error() -> None:
    with pytest.raises(InputError, match="takes 0"):
        cut([3], ())
