"""Block formats against the gguf package's own unpacking, and plain loops where it has none."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest

from rlx_ray.blocks import unpack
from rlx_ray.component import SCHEMES, QuantScheme
from rlx_ray.errors import CheckpointError

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
