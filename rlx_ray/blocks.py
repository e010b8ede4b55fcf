"""Block formats of quantised weights, unpacked to float32 by NumPy.

A row of K weights is ceil(K / size) blocks one after the other; the layouts are those of GGML
(https://github.com/ggml-org/ggml, ggml-common.h), little-endian. `d` and `m` are float16 unless
said. Packing is done by whoever wrote the file; kernels that multiply packed weights read the same
bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rlx_ray.component.quant import QuantScheme
from rlx_ray.errors import CheckpointError

Bytes = npt.NDArray[np.uint8]
Floats = Any  # float32 arrays; NumPy widens beyond what its types can say


@dataclass(frozen=True, slots=True)
class Blocks:
    """A [N, K] matrix as w = d * code + m over blocks of 32 along K.

    Attributes:
        codes: [N, K]: uint8 from 0 to 15 where there is an m, else int8.
        d: float16 [N, K / 32].
        m: float16 [N, K / 32], or None for 0.
    """

    codes: npt.NDArray[Any]
    d: npt.NDArray[np.float16]
    m: npt.NDArray[np.float16] | None

    def rows(self, order: npt.NDArray[np.intp]) -> Blocks:
        """The same rows in another order."""
        return Blocks(self.codes[order], self.d[order], None if self.m is None else self.m[order])


def unpack(raw: memoryview | bytes, scheme: QuantScheme, shape: tuple[int, ...]) -> Floats:
    """A packed tensor as float32.

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
    unpack_check(raw, scheme, shape)
    data = np.frombuffer(raw, np.uint8).reshape(-1, scheme.gguf_block_bytes)
    return rule(data).reshape(shape)


def unpack_check(raw: memoryview | bytes, scheme: QuantScheme, shape: tuple[int, ...]) -> None:
    """See that bytes are a tensor of a shape.

    Raises:
        CheckpointError: they are not as many as the shape needs.
    """
    count = int(np.prod(shape))
    blocks = count // scheme.gguf_block_size
    if shape[-1] % scheme.gguf_block_size or len(raw) != blocks * scheme.gguf_block_bytes:
        raise CheckpointError(
            f"{len(raw)} bytes are no {scheme} tensor of shape {list(shape)}: its rows are blocks "
            f"of {scheme.gguf_block_size} weights in {scheme.gguf_block_bytes} bytes.",
            "The file is damaged: fetch it again.",
        )


def as_blocks(raw: memoryview | bytes, scheme: QuantScheme, shape: tuple[int, int]) -> Blocks:
    """A packed [N, K] tensor as blocks of 32 with a scale and an offset each.

    Raises:
        CheckpointError: the scheme has no block format, or the bytes do not fit the shape.
    """
    unpack_check(raw, scheme, shape)
    n, k = shape
    data = np.frombuffer(raw, np.uint8).reshape(-1, scheme.gguf_block_bytes)
    d: Any
    m: Any = None
    codes: Any
    match scheme.debug:
        case "GgufQ4_0":
            d, codes = _halves(data, 0), _nibbles(data[:, 2:])
            m = (d.astype(np.float32) * -8).astype(np.float16)
        case "GgufQ4_1":
            d, m, codes = _halves(data, 0), _halves(data, 2), _nibbles(data[:, 4:])
        case "GgufQ4K":
            scales, mins = _scales_and_mins(data[:, 4:16])
            pairs = data[:, 16:].reshape(-1, 4, 1, 32)
            codes = np.concatenate([pairs & 15, pairs >> 4], axis=2)
            d = (_f16(data, 0) * scales).astype(np.float16)
            m = (-_f16(data, 2) * mins).astype(np.float16)
        case "GgufQ8_0":
            d, codes = _halves(data, 0), data[:, 2:].view(np.int8)
        case _:
            raise CheckpointError(f"weights in {scheme} have no block format.")
    kind = np.int8 if m is None else np.uint8
    return Blocks(
        codes.astype(kind).reshape(n, k),
        d.reshape(n, k // 32),
        None if m is None else m.reshape(n, k // 32),
    )


def quantise(rows: npt.NDArray[np.float32], scheme: QuantScheme) -> Blocks:
    """Float32 [N, K] as blocks of 32, by a scheme that weights are quantised to here.

    `gguf_q8_0` and `int8/...`: symmetric, the largest magnitude of a block becomes 127 (blocks of
    a multiple of 32 share a scale). `gguf_q4_1`: from the least to the largest value.
    `gguf_q4_0` and `int4/...`: symmetric, codes -8 to 7.

    Raises:
        CheckpointError: the scheme is none of these, or K is no multiple of its block.
    """
    n, k = rows.shape
    size = _block_size(scheme)
    if size is None or k % size:
        raise CheckpointError(
            f"weights of {k} columns cannot be quantised to {scheme}.",
            "Use gguf_q8_0, gguf_q4_0, gguf_q4_1, int8/N or int4/N, N a multiple of 32.",
        )
    blocks = rows.reshape(n, k // size, size).astype(np.float32)
    repeat = size // 32
    if scheme.debug == "GgufQ4_1":
        low = blocks.min(2)
        d, m = ((blocks.max(2) - low) / 15).astype(np.float16), low.astype(np.float16)
        inverse = _inverse(d)
        codes = np.rint((blocks - m[:, :, None].astype(np.float32)) * inverse).clip(0, 15)
        return Blocks(codes.astype(np.uint8).reshape(n, k), d, m)
    if scheme.debug == "GgufQ8_0" or scheme.display.startswith("int8/"):
        d = (np.abs(blocks).max(2) / 127).astype(np.float16)
        codes = np.rint(blocks * _inverse(d)).clip(-127, 127).astype(np.int8)
        return Blocks(codes.reshape(n, k), d.repeat(repeat, axis=1), None)
    most = np.take_along_axis(blocks, np.abs(blocks).argmax(2)[:, :, None], 2)[:, :, 0]
    d = (most / -8).astype(np.float16)
    codes = (np.rint(blocks * _inverse(d)) + 8).clip(0, 15).astype(np.uint8)
    m = (d.astype(np.float32) * -8).astype(np.float16)
    return Blocks(codes.reshape(n, k), d.repeat(repeat, axis=1), m.repeat(repeat, axis=1))


def _block_size(scheme: QuantScheme) -> int | None:
    if scheme.debug in ("GgufQ8_0", "GgufQ4_0", "GgufQ4_1"):
        return 32
    kind, _, size = scheme.display.partition("/")
    return int(size) if kind in ("int8", "int4") and int(size) % 32 == 0 else None


def _inverse(d: npt.NDArray[np.float16]) -> Floats:
    wide = d.astype(np.float32)[:, :, None]
    return np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0)


def _halves(data: Bytes, at: int) -> Any:
    """The float16 at a byte of every block, as a column."""
    return np.ascontiguousarray(data[:, at : at + 2]).view(np.float16)


def _f16(data: Bytes, at: int) -> Floats:
    """The same as float32."""
    return _halves(data, at).astype(np.float32)


def _real(numbers: Any) -> Floats:
    """Whole numbers as float32, so that NumPy does not widen the product to float64."""
    return numbers.astype(np.float32)


def _nibbles(data: Bytes) -> Any:
    """Low halves of all bytes, then high halves."""
    return np.concatenate([data & 15, data >> 4], axis=1).astype(np.int32)


def _fifth_bits(data: Bytes, at: int) -> Any:
    """Bit i of the u32 at a byte of every block, as 16 at place i."""
    bits = np.ascontiguousarray(data[:, at : at + 4]).view(np.uint32)
    return ((bits >> np.arange(32, dtype=np.uint32)) & 1).astype(np.int32) << 4


def _q4_0(b: Bytes) -> Floats:
    return _f16(b, 0) * _real(_nibbles(b[:, 2:]) - 8)


def _q4_1(b: Bytes) -> Floats:
    return _f16(b, 0) * _real(_nibbles(b[:, 4:])) + _f16(b, 2)


def _q5_0(b: Bytes) -> Floats:
    return _f16(b, 0) * _real((_nibbles(b[:, 6:]) | _fifth_bits(b, 2)) - 16)


def _q5_1(b: Bytes) -> Floats:
    return _f16(b, 0) * _real(_nibbles(b[:, 8:]) | _fifth_bits(b, 4)) + _f16(b, 2)


def _q8_0(b: Bytes) -> Floats:
    return _f16(b, 0) * b[:, 2:].view(np.int8)


def _pairs_of_bits(data: Bytes) -> Any:
    """[blocks, 64] bytes as [blocks, 2, 4, 32]: bits 2 s, 2 s + 1 of each half's 32 bytes."""
    halves = data.reshape(-1, 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    return ((halves >> shifts) & 3).astype(np.int32)


def _q2_k(b: Bytes) -> Floats:
    scales, quants = b[:, :16], _pairs_of_bits(b[:, 16:80]).reshape(-1, 16, 16)
    d, least = _f16(b, 80)[:, :, None], _f16(b, 82)[:, :, None]
    low, high = (scales & 15)[:, :, None], (scales >> 4)[:, :, None]
    return d * low * _real(quants) - least * high


def _q3_k(b: Bytes) -> Floats:
    mask, quants, packed = b[:, :32], _pairs_of_bits(b[:, 32:96]), b[:, 96:108]
    high = (mask[:, None, :] >> np.arange(8, dtype=np.uint8)[None, :, None]) & 1
    values = quants.reshape(-1, 8, 32) - 4 * (1 - high.astype(np.int32))
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    top = np.concatenate([(packed[:, 8:] >> s) & 3 for s in (0, 2, 4, 6)], axis=1)
    scales = (low | (top << 4)).astype(np.int32) - 32
    d = _f16(b, 108)
    return (d * _real(scales))[:, :, None] * _real(values.reshape(-1, 16, 16))


def _scales_and_mins(packed: Bytes) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Eight 6-bit scales and eight 6-bit minimums from the twelve bytes of Q4_K and Q5_K."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
    mins = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scales.astype(np.float32), mins.astype(np.float32)


def _q4_k(b: Bytes) -> Floats:
    scales, mins = _scales_and_mins(b[:, 4:16])
    bytes_ = b[:, 16:].reshape(-1, 4, 1, 32)
    quants = np.concatenate([bytes_ & 15, bytes_ >> 4], axis=2).reshape(-1, 8, 32)
    return (_f16(b, 0) * scales)[:, :, None] * quants - (_f16(b, 2) * mins)[:, :, None]


def _q5_k(b: Bytes) -> Floats:
    scales, mins = _scales_and_mins(b[:, 4:16])
    bytes_ = b[:, 48:].reshape(-1, 4, 1, 32)
    low = np.concatenate([bytes_ & 15, bytes_ >> 4], axis=2).reshape(-1, 8, 32)
    high = (b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[None, :, None]) & 1
    quants = low | (high << 4)
    return (_f16(b, 0) * scales)[:, :, None] * quants - (_f16(b, 2) * mins)[:, :, None]


def _q6_k(b: Bytes) -> Floats:
    low = b[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    high = _pairs_of_bits(b[:, 128:192])
    quants = (low.astype(np.int32) | (high << 4)) - 32
    scales = _f16(b, 208) * b[:, 192:208].view(np.int8)
    return scales[:, :, None] * _real(quants.reshape(-1, 16, 16))


def _q8_k(b: Bytes) -> Floats:
    d = np.ascontiguousarray(b[:, :4]).view(np.float32)
    return d * b[:, 4:260].view(np.int8)


_RULES: dict[str, Callable[[Bytes], Floats]] = {
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
