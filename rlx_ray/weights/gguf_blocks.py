"""The block formats of GGUF files, decoded to whole numbers and scales by NumPy.

A row of K weights is ceil(K / size) blocks one after the other; the layouts are those of GGML
(https://github.com/ggml-org/ggml, ggml-common.h), little-endian. Every one of them is
w = d * code + m with d, and m if there is one, for 16, 32 or 256 weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rlx_ray.component.quant import QuantScheme
from rlx_ray.errors import CheckpointError

Bytes = npt.NDArray[np.uint8]
Floats = Any  # float32 arrays; NumPy widens beyond what its types can say


class Parts(NamedTuple):
    """Blocks of a GGUF scheme: w = d * code + m.

    Attributes:
        codes: whole numbers [blocks, size].
        d: float32 [blocks, parts], each for size / parts codes.
        m: float32 of the same shape, or None.
    """

    codes: npt.NDArray[Any]
    d: Floats
    m: Floats | None = None


def gguf_parts(raw: memoryview | bytes, scheme: QuantScheme, shape: tuple[int, ...]) -> Parts:
    """The blocks of a packed tensor.

    Args:
        raw: the blocks of all rows, one row after the other.
        scheme: a GGUF block format.
        shape: row-major; the last extent is a multiple of the block size.

    Raises:
        CheckpointError: the scheme is none of GGUF's, or the bytes are not as many as the shape
            needs.
    """
    rule = _RULES.get(scheme.debug)
    if rule is None:
        raise CheckpointError(f"weights in {scheme} cannot be unpacked from a file.")
    count = int(np.prod(shape))
    blocks = count // scheme.gguf_block_size
    if shape[-1] % scheme.gguf_block_size or len(raw) != blocks * scheme.gguf_block_bytes:
        raise CheckpointError(
            f"{len(raw)} bytes are no {scheme} tensor of shape {list(shape)}: its rows are blocks "
            f"of {scheme.gguf_block_size} weights in {scheme.gguf_block_bytes} bytes.",
            "The file is damaged: fetch it again.",
        )
    return rule(np.frombuffer(raw, np.uint8).reshape(-1, scheme.gguf_block_bytes))


def _f16(data: Bytes, at: int) -> Floats:
    """The float16 at a byte of every block, as a column of float32."""
    return np.ascontiguousarray(data[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(data: Bytes) -> Any:
    """Low halves of all bytes, then high halves."""
    return np.concatenate([data & 15, data >> 4], axis=1).astype(np.int16)


def _fifth_bits(data: Bytes, at: int) -> Any:
    """Bit i of the u32 at a byte of every block, as 16 at place i."""
    bits = np.ascontiguousarray(data[:, at : at + 4]).view(np.uint32)
    return ((bits >> np.arange(32, dtype=np.uint32)) & 1).astype(np.int16) << 4


def _q4_0(b: Bytes) -> Parts:
    return Parts(_nibbles(b[:, 2:]) - 8, _f16(b, 0))


def _q4_1(b: Bytes) -> Parts:
    return Parts(_nibbles(b[:, 4:]), _f16(b, 0), _f16(b, 2))


def _q5_0(b: Bytes) -> Parts:
    return Parts((_nibbles(b[:, 6:]) | _fifth_bits(b, 2)) - 16, _f16(b, 0))


def _q5_1(b: Bytes) -> Parts:
    return Parts(_nibbles(b[:, 8:]) | _fifth_bits(b, 4), _f16(b, 0), _f16(b, 2))


def _q8_0(b: Bytes) -> Parts:
    return Parts(b[:, 2:].view(np.int8), _f16(b, 0))


def _pairs_of_bits(data: Bytes) -> Any:
    """[blocks, 64] bytes as [blocks, 2, 4, 32]: bits 2 s, 2 s + 1 of each half's 32 bytes."""
    halves = data.reshape(-1, 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    return ((halves >> shifts) & 3).astype(np.int16)


def _q2_k(b: Bytes) -> Parts:
    scales, codes = b[:, :16], _pairs_of_bits(b[:, 16:80]).reshape(-1, 256)
    return Parts(codes, _f16(b, 80) * (scales & 15), -_f16(b, 82) * (scales >> 4))


def _q3_k(b: Bytes) -> Parts:
    mask, quants, packed = b[:, :32], _pairs_of_bits(b[:, 32:96]), b[:, 96:108]
    high = (mask[:, None, :] >> np.arange(8, dtype=np.uint8)[None, :, None]) & 1
    codes = quants.reshape(-1, 8, 32) - 4 * (1 - high.astype(np.int16))
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    top = np.concatenate([(packed[:, 8:] >> s) & 3 for s in (0, 2, 4, 6)], axis=1)
    scales = (low | (top << 4)).astype(np.float32) - 32
    return Parts(codes.reshape(-1, 256), _f16(b, 108) * scales)


def _scales_and_mins(packed: Bytes) -> tuple[Floats, Floats]:
    """Eight 6-bit scales and eight 6-bit minimums from the twelve bytes of Q4_K and Q5_K."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
    mins = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scales.astype(np.float32), mins.astype(np.float32)


def _q4_k(b: Bytes) -> Parts:
    scales, mins = _scales_and_mins(b[:, 4:16])
    pairs = b[:, 16:].reshape(-1, 4, 1, 32)
    codes = np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(-1, 256)
    return Parts(codes, _f16(b, 0) * scales, -_f16(b, 2) * mins)


def _q5_k(b: Bytes) -> Parts:
    scales, mins = _scales_and_mins(b[:, 4:16])
    pairs = b[:, 48:].reshape(-1, 4, 1, 32)
    low = np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(-1, 8, 32)
    high = (b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[None, :, None]) & 1
    codes = (low | (high << 4)).reshape(-1, 256)
    return Parts(codes, _f16(b, 0) * scales, -_f16(b, 2) * mins)


def _q6_k(b: Bytes) -> Parts:
    low = b[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    codes = (low.astype(np.int16) | (_pairs_of_bits(b[:, 128:192]) << 4)) - 32
    return Parts(codes.reshape(-1, 256), _f16(b, 208) * b[:, 192:208].view(np.int8))


def _q8_k(b: Bytes) -> Parts:
    d = np.ascontiguousarray(b[:, :4]).view(np.float32)
    return Parts(b[:, 4:260].view(np.int8), d)


_RULES: dict[str, Callable[[Bytes], Parts]] = {
    "GgufQ4_0": _q4_0,
    "GgufQ4_1": _q4_1,
    "GgufQ5_0": _q5_0,
    "GgufQ5_1": _q5_1,
    "GgufQ8_0": _q8_0,
    "GgufQ2K": _q2_k,
    "GgufQ3K": _q3_k,
    "GgufQ4K": _q4_k,
    "GgufQ5K": _q5_k,
    "GgufQ6K": _q6_k,
    "GgufQ8K": _q8_k,
}
