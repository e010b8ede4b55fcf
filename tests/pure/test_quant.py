"""Quantisation schemes: spelling, debug text and GGUF block facts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlx_ray.component import SCHEMES, QuantScheme
from rlx_ray.errors import ConfigError


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_scheme_is_found_by_both_of_its_texts(scheme: QuantScheme) -> None:
    assert str(scheme) == scheme.display
    assert QuantScheme.parse(scheme.display) == scheme
    assert QuantScheme.parse(scheme.debug) == scheme


def test_no_two_schemes_share_a_text() -> None:
    texts = [text for s in SCHEMES for text in (s.debug, s.display)]
    assert len(set(texts)) == len(texts)


@given(st.integers(1, 999_999))
def test_block_schemes_take_any_block_size(block: int) -> None:
    for make, display, debug in (
        (QuantScheme.int8_block, "int8", "Int8Block"),
        (QuantScheme.int8_block_asym, "int8a", "Int8BlockAsym"),
        (QuantScheme.int4_block, "int4", "Int4Block"),
    ):
        scheme = make(block)
        assert scheme.display == f"{display}/{block}"
        assert scheme.debug == f"{debug} {{ block_size: {block} }}"
        assert QuantScheme.parse(scheme.display) == QuantScheme.parse(scheme.debug) == scheme


@pytest.mark.parametrize(
    ("display", "debug", "nbytes", "bits_x10"),
    [
        ("gguf_q4_1", "GgufQ4_1", 20, 50),
        ("gguf_q5_0", "GgufQ5_0", 22, 55),
        ("gguf_q5_1", "GgufQ5_1", 24, 60),
    ],
)
def test_the_extension_schemes(display: str, debug: str, nbytes: int, bits_x10: int) -> None:
    scheme = QuantScheme.parse(display)
    assert scheme.debug == debug
    assert scheme.is_gguf
    assert (scheme.gguf_block_size, scheme.gguf_block_bytes) == (32, nbytes)
    assert scheme.bits_x10 == bits_x10 == nbytes * 80 // 32
    assert scheme.bits_per_weight == bits_x10 / 10
    assert not scheme.has_scale
    assert not scheme.has_zero_point


def test_the_bits_of_gguf_schemes_are_those_of_their_blocks() -> None:
    for scheme in SCHEMES:
        if scheme.is_gguf:
            exact = scheme.gguf_block_bytes * 80 / scheme.gguf_block_size
            assert abs(scheme.bits_x10 - exact) < 1, scheme


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("gguf_q4kk", "gguf_q4k"),
        ("int8", "int8/32"),
        ("int8/0", "int8/"),
        ("int8/032", "int8/32"),
        ("int8/٣٢", "int8/"),
        ("int8/32\n", "int8/32"),
        ("int8/-1", "int8/"),
        ("int4/9999999", "int4/"),
        ("Int8Block { block_size: 0 }", "Int8Block"),
        ("file", "Use one of"),
        ("", "Use one of"),
    ],
)
def test_an_unknown_scheme_is_refused_with_the_nearest_named(text: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        QuantScheme.parse(text)
    assert repr(text) in str(caught.value)
    assert named in str(caught.value)
