"""Block formats against the gguf package's own unpacking, and plain loops where it has none."""

from __future__ import annotations

import struct

import gguf
import ml_dtypes
import numpy as np
import pytest

from rlx_ray.component import SCHEMES, QuantScheme
from rlx_ray.errors import CheckpointError
from rlx_ray.weights.blocks import as_blocks, quantise, unpack
from rlx_ray.weights.formats import FORMATS, join, scheme_format
from rlx_ray.weights.small_floats import E2M1, E4M3, E5M2, SmallFloat

KINDS = {
    "gguf_q4_0": gguf.GGMLQuantizationType.Q4_0,
    "gguf_q4_1": gguf.GGMLQuantizationType.Q4_1,
    "gguf_q5_0": gguf.GGMLQuantizationType.Q5_0,
    "gguf_q5_1": gguf.GGMLQuantizationType.Q5_1,
    "gguf_q8_0": gguf.GGMLQuantizationType.Q8_0,
    "gguf_q2k": gguf.GGMLQuantizationType.Q2_K,
    "gguf_q3k": gguf.GGMLQuantizationType.Q3_K,
    "gguf_q4k": gguf.GGMLQuantizationType.Q4_K,
    "gguf_q5k": gguf.GGMLQuantizationType.Q5_K,
    "gguf_q6k": gguf.GGMLQuantizationType.Q6_K,
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", KINDS)
def test_every_format_unpacks_to_the_bits_of_the_gguf_package(name: str) -> None:
    scheme = QuantScheme.parse(name)
    rng = np.random.default_rng(len(name))
    raw = rng.integers(0, 256, (5, 7 * scheme.gguf_block_bytes), dtype=np.uint8)
    want = gguf.quants.dequantize(raw, KINDS[name])
    got = unpack(raw.tobytes(), scheme, (5, 7 * scheme.gguf_block_size))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, want)


def test_q8_k_by_plain_loops() -> None:
    rng = np.random.default_rng(3)
    quants = rng.integers(-128, 128, (2, 256)).astype(np.int8)
    scales = [0.5, -1.25]
    raw = b"".join(
        struct.pack("<f", d) + q.tobytes() + bytes(32) for d, q in zip(scales, quants, strict=True)
    )
    want = [[d * int(v) for v in q] for d, q in zip(scales, quants, strict=True)]
    assert unpack(raw, QuantScheme.parse("gguf_q8k"), (2, 256)).tolist() == want


def test_every_gguf_scheme_is_known() -> None:
    for scheme in SCHEMES:
        if scheme.is_gguf:
            unpack(bytes(scheme.gguf_block_bytes), scheme, (1, scheme.gguf_block_size))


@pytest.mark.parametrize(
    ("count", "shape"), [(17, (1, 32)), (18, (32, 1)), (36, (1, 32)), (18, (2, 16))]
)
def test_bytes_that_do_not_fit_are_refused(count: int, shape: tuple[int, int]) -> None:
    with pytest.raises(CheckpointError, match="blocks of 32 weights in 18 bytes"):
        unpack(bytes(count), QuantScheme.parse("gguf_q4_0"), shape)


def test_schemes_of_other_files_are_refused() -> None:
    with pytest.raises(CheckpointError, match="int8/32"):
        unpack(bytes(34), QuantScheme.parse("int8/32"), (1, 32))


# Blocks of 32 and halves of them ----------------------------------------------------------------


@pytest.mark.parametrize("name", [*KINDS, "gguf_q8k"])
def test_blocks_are_what_unpacking_gives(name: str) -> None:
    scheme = QuantScheme.parse(name)
    rng = np.random.default_rng(2)
    raw = rng.integers(0, 256, (6, scheme.gguf_block_bytes), dtype=np.uint8)
    for at in {"gguf_q2k": (80, 82), "gguf_q3k": (108,), "gguf_q6k": (208,)}.get(name, (0, 2)):
        raw[:, at + 1] = 0x2C  # scales of a usual size
    if name == "gguf_q8k":
        raw[:, :4] = np.frombuffer(np.float32(0.01).tobytes(), np.uint8)
    shape = (3, 2 * scheme.gguf_block_size)
    blocks = as_blocks(raw.tobytes(), scheme, shape)
    want = unpack(raw.tobytes(), scheme, shape)
    exact = name in ("gguf_q4_0", "gguf_q4_1", "gguf_q5_0", "gguf_q5_1", "gguf_q8_0")
    assert blocks.form == scheme_format(scheme)
    assert np.abs(blocks.f32() - want).max() <= (0 if exact else np.abs(want).max() * 2**-10)
    for form in FORMATS.values():
        if form.bits and join([blocks.form, form]) == form:
            np.testing.assert_array_equal(blocks.to(form).f32(), blocks.f32())
            stored = blocks.to(form).codes + form.centre
            assert form.bits == 8 or (stored.min() >= 0 and stored.max() < 1 << form.bits)


def test_the_joint_format_holds_both() -> None:
    def joined(*names: str) -> str:
        form = join(FORMATS[name] for name in names)
        return form.name if form else "none"

    assert joined("b4m", "b4m") == "b4m"
    assert joined("b4m", "b6h") == "b6hm"
    assert joined("b5", "b8") == "b8"
    assert joined("b3h", "b6h", "b4") == "b6h"
    assert joined("b4", "fp8e4m3") == "none"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("gguf_q8_0", 0.0055),
        ("int8/64", 0.007),
        ("int8a/64", 0.006),
        ("gguf_q5_1", 0.045),
        ("gguf_q5_0", 0.045),
        ("gguf_q4_1", 0.1),
        ("int4/32", 0.09),
        ("nvfp4/16", 0.11),
    ],
)
def test_quantising_keeps_most_of_a_matrix(name: str, error: float) -> None:
    rows = np.random.default_rng(3).normal(size=(8, 128)).astype(np.float32)
    rows[2], rows[3, :64], rows[4] = 0, 7.5, np.abs(rows[4])
    got = quantise(rows, QuantScheme.parse(name)).f32()
    assert np.linalg.norm(got - rows) <= error * np.linalg.norm(rows)
    assert not got[2].any()


def test_int8a_has_whole_zero_points() -> None:
    rows = np.random.default_rng(4).uniform(1, 3, (4, 128)).astype(np.float32)
    blocks = quantise(rows, QuantScheme.parse("int8a/64"))
    assert blocks.m is not None
    zero = -blocks.m.astype(np.float64) / blocks.d.astype(np.float64)
    assert np.abs(zero - np.rint(zero)).max() < 0.1, "an offset is no whole number of steps"
    assert np.abs(blocks.f32() - rows).max() <= 0.6 * 3 / 255


def test_nvfp4_has_the_values_of_ml_dtypes() -> None:
    rows = np.random.default_rng(5).normal(size=(4, 64)).astype(np.float32)
    blocks = quantise(rows, QuantScheme.parse("nvfp4/16"))
    whole = np.abs(rows).max() / np.float32(448 * 6)
    parts = rows.reshape(4, 4, 16)
    scales = (np.abs(parts).max(2) / 6 / whole).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    exact = scales * whole
    values = (parts / exact[:, :, None]).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    np.testing.assert_array_equal(blocks.codes.reshape(4, 4, 16), values * 2)
    np.testing.assert_array_equal(blocks.d, (exact / 2).astype(np.float16))


def test_what_cannot_be_quantised_is_named() -> None:
    rows = np.zeros((2, 48), np.float32)
    for name in ("gguf_q8_0", "int8/48", "int8a/64", "gguf_q6k", "fp8e4m3"):
        with pytest.raises(CheckpointError, match="48 columns"):
            quantise(rows, QuantScheme.parse(name))


# Small floats -----------------------------------------------------------------------------------

SMALL = {
    "e4m3": (E4M3, ml_dtypes.float8_e4m3fn),
    "e5m2": (E5M2, ml_dtypes.float8_e5m2),
    "e2m1": (E2M1, ml_dtypes.float4_e2m1fn),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_floats_are_those_of_ml_dtypes(name: str) -> None:
    kind, oracle = SMALL[name]
    codes = np.arange(kind.finite, dtype=np.uint8)
    codes = np.concatenate([codes, codes | 1 << (kind.exponent + kind.mantissa)])
    numbers = codes.view(oracle).astype(np.float32)
    np.testing.assert_array_equal(kind.decode(codes), numbers)
    np.testing.assert_array_equal(kind.encode(numbers), codes)
    ties = np.concatenate([(a[1:] + a[:-1]) / 2 for a in np.split(numbers, 2)])
    rng = np.random.default_rng(6)
    random = rng.normal(size=4096) * 2.0 ** rng.integers(-18, 16, 4096)
    values = np.concatenate([ties, np.nextafter(ties, np.float32(np.inf)), random])
    values = values.astype(np.float32)
    values = values[np.abs(values) <= kind.largest]
    np.testing.assert_array_equal(kind.encode(values), values.astype(oracle).view(np.uint8))


@pytest.mark.parametrize("kind", [E4M3, E5M2, E2M1], ids=["e4m3", "e5m2", "e2m1"])
def test_what_is_too_large_becomes_the_largest(kind: SmallFloat) -> None:
    values = np.array([2, -3, 1e30], np.float32) * np.float32(kind.largest)
    assert (np.abs(kind.decode(kind.encode(values))) == kind.largest).all()
