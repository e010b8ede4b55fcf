"""Variants: their text, their dim binding and their bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlx_ray.component import ModelPhase, ModelVariant
from rlx_ray.component.rust_hash import U32, U64
from rlx_ray.errors import ConfigError

SIZE = st.integers(1, U64)
EXTRA = st.lists(st.tuples(st.integers(0, U32), SIZE), max_size=4).map(tuple)


@st.composite
def variants(draw: st.DrawFn) -> ModelVariant:
    """Any variant that a text can name."""
    phase = draw(st.sampled_from(ModelPhase))
    past = {
        ModelPhase.DECODE: SIZE,
        ModelPhase.INFERENCE: st.none() | SIZE,
        ModelPhase.ENCODER: st.none(),
        ModelPhase.PREFILL: st.none(),
    }[phase]
    return ModelVariant(phase, draw(SIZE), draw(SIZE), draw(past), draw(EXTRA))


@given(variants())
def test_a_variants_text_names_it_again(variant: ModelVariant) -> None:
    assert ModelVariant.parse(str(variant)) == variant


@given(st.text(st.sampled_from("encodr:bspx=0123456789 \n٣"), max_size=30))
def test_a_text_is_refused_or_is_the_one_that_str_gives(text: str) -> None:
    try:
        variant = ModelVariant.parse(f"encoder:{text}")
    except ConfigError:
        return
    assert str(variant) == f"encoder:{text}"


@pytest.mark.parametrize(
    ("variant", "text"),
    [
        (ModelVariant.encoder(8, 128), "encoder:b8:s128"),
        (ModelVariant.prefill(1, 512), "prefill:b1:s512"),
        (ModelVariant.decode(1, 512), "decode:b1:s1:p512"),
        (ModelVariant.decode(4, 512, seq=2), "decode:b4:s2:p512"),
        (ModelVariant.inference(2, 3), "inference:b2:s3"),
        (ModelVariant.encoder(64, 256).with_extra(2, 1024), "encoder:b64:s256:x2=1024"),
        (
            ModelVariant.decode(1, 7).with_extra(17, 1).with_extra(16, 2),
            "decode:b1:s1:p7:x17=1:x16=2",
        ),
    ],
)
def test_variants_are_spelt_as_in_configs(variant: ModelVariant, text: str) -> None:
    assert str(variant) == text
    assert ModelVariant.parse(text) == variant


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "phase ''"),
        ("encodr:b1:s1", "did you mean 'encoder'"),
        ("Encoder:b1:s1", "'encoder'"),
        ("encoder", "batch"),
        ("encoder:b8", "seq"),
        ("encoder:s8:b1", "'s8' (seq) is not in its place"),
        ("encoder:b8:b8", "'b8' (batch) is not in its place"),
        ("encoder:b0:s1", "'b0' is no batch"),
        ("encoder:b-1:s1", "'b-1' is no batch"),
        ("encoder:b01:s1", "'b01' is no batch"),
        ("encoder:b٣:s1", "is no batch"),
        ("encoder:b1:sx", "'sx' is no seq"),
        ("encoder:b1:s1:", "'' is not understood"),
        ("encoder:b1:s1\n", "is no seq"),
        ("encoder:b1:s1:p5", "encoder has no past_seq"),
        ("prefill:b1:s1:p5", ":x3="),
        ("decode:b1:s1", "past_seq"),
        ("decode:b1:s1:p0", "'p0' is no past_seq"),
        ("decode:b1:s1:p1:p2", "'p2' (past_seq) is not in its place"),
        ("encoder:b1:s1:x2", "'x2' is not understood"),
        ("encoder:b1:s1:x2=0", "'x2=0' is not understood"),
        ("encoder:b1:s1:x4294967296=1", "4294967296"),
        ("encoder:b1:s1:x2=1:s1", "'s1' (seq) is not in its place"),
        ("encoder:b18446744073709551616:s1", "18446744073709551616"),
        ("encoder:b" + "9" * 9000 + ":s1", "is no batch"),
    ],
)
def test_a_bad_text_is_refused_with_the_field_named(text: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelVariant.parse(text)
    assert named in str(caught.value)
    assert caught.value.remedy
    assert len(str(caught.value)) < 400


def test_rows_are_bound_for_batches_outside_decode() -> None:
    assert ModelVariant.encoder(1, 9).dim_binding == ((0, 1), (1, 9))
    for make in (ModelVariant.encoder, ModelVariant.prefill, ModelVariant.inference):
        assert make(4, 9).dim_binding == ((0, 4), (1, 9), (2, 36))
    assert ModelVariant.decode(4, 50).dim_binding == ((0, 4), (1, 1), (3, 50))


def test_extras_come_last_and_override() -> None:
    ragged = ModelVariant.encoder(64, 256).with_extra(2, 1024)
    assert ragged.dim_binding == ((0, 64), (1, 256), (2, 1024))
    chunk = ModelVariant.prefill(1, 64).with_extra(16, 7).with_extra(3, 512).with_extra(16, 8)
    assert chunk.dim_binding == ((0, 1), (1, 64), (3, 512), (16, 8))


@given(variants())
def test_a_binding_is_sorted_and_has_each_symbol_once(variant: ModelVariant) -> None:
    symbols = [symbol for symbol, _ in variant.dim_binding]
    assert symbols == sorted(set(symbols))
    assert {0, 1, *(symbol for symbol, _ in variant.extra)} <= set(symbols)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ModelVariant.encoder(-1, 1), "variant.batch"),
        (lambda: ModelVariant.encoder(1, U64 + 1), "variant.seq"),
        (lambda: ModelVariant.encoder(True, 1), "variant.batch"),
        (lambda: ModelVariant.decode(1, -5), "variant.past_seq"),
        (lambda: ModelVariant.encoder(1, 1).with_extra(U32 + 1, 1), "variant.extra[0][0]"),
        (lambda: ModelVariant.encoder(1, 1).with_extra(2, U64 + 1), "variant.extra[0][1]"),
    ],
)
def test_sizes_that_the_key_cannot_hold_are_refused(make: object, named: str) -> None:
    assert callable(make)
    with pytest.raises(ConfigError) as caught:
        make()
    assert named in str(caught.value)
