"""Block formats of quantised weights: read from GGUF files, and made of float32 by NumPy.

A row of K weights is ceil(K / size) blocks one after the other; the layouts are those of GGML
(https://github.com/ggml-org/ggml, ggml-common.h), little-endian. Every one of them is
w = d * code + m with d, and m if there is one, for 16, 32 or 256 weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rlx_ray.component.quant import QuantScheme
from rlx_ray.errors import CheckpointError
from rlx_ray.weights.formats import BLOCK, HALF, MatrixFormat, scheme_block, scheme_format
from rlx_ray.weights.small_floats import E2M1, E4M3

Bytes = npt.NDArray[np.uint8]
Floats = Any  # float32 arrays; NumPy widens beyond what its types can say


@dataclass(frozen=True, slots=True)
class Blocks:
    """A [N, K] matrix as w = d * code + m over blocks of 32 along K, or over halves of them.

    Attributes:
        form: the smallest format that holds the codes.
        codes: int8 [N, K]; not negative where there is an m and a code has less than 8 bits.
        d: float16 [N, K / 32], or [N, K / 16] if the format has halves.
        m: float16 of the same shape, or None for 0.
    """

    form: MatrixFormat
    codes: npt.NDArray[np.int8]
    d: npt.NDArray[np.float16]
    m: npt.NDArray[np.float16] | None

    def rows(self, order: npt.NDArray[np.intp]) -> Blocks:
        """The same rows in another order."""
        m = None if self.m is None else self.m[order]
        return Blocks(self.form, self.codes[order], self.d[order], m)

    def to(self, form: MatrixFormat) -> Blocks:
        """The same weights in a format that holds more."""
        own, codes, d, m = self.form, self.codes, self.d, self.m
        if form.halves and not own.halves:
            d, m = d.repeat(2, axis=1), None if m is None else m.repeat(2, axis=1)
        if form.offsets and m is None:
            centre = own.centre if form.bits < 8 else 0
            codes, m = codes + np.int8(centre), d * np.float16(-centre)
        return Blocks(form, codes, d, m)

    def f32(self) -> Floats:
        """The weights as float32 [N, K]."""
        parts = self.codes.reshape(*self.d.shape, -1) * self.d[:, :, None].astype(np.float32)
        if self.m is not None:
            parts += self.m[:, :, None].astype(np.float32)
        return parts.reshape(self.codes.shape)


class _Parts(NamedTuple):
    """Blocks of a GGUF scheme: w = d * code + m.

    Attributes:
        codes: whole numbers [blocks, size].
        d: float32 [blocks, parts], each for size / parts codes.
        m: float32 of the same shape, or None.
    """

    codes: npt.NDArray[Any]
    d: Floats
    m: Floats | None = None


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
    codes, d, m = _parts(raw, scheme, shape)
    values = d[:, :, None] * codes.astype(np.float32).reshape(*d.shape, -1)
    if m is not None:
        values += m[:, :, None]
    return values.reshape(shape)


def as_blocks(raw: memoryview | bytes, scheme: QuantScheme, shape: tuple[int, int]) -> Blocks:
    """A packed [N, K] tensor as blocks of 32 or halves of them; scales are rounded to float16.

    Raises:
        CheckpointError: as `unpack`.
    """
    codes, d, m = _parts(raw, scheme, shape)
    form = scheme_format(scheme)
    assert form is not None
    n, k = shape
    most = HALF if form.halves else BLOCK
    repeat = codes.shape[1] // d.shape[1] // most

    def facts(values: Floats) -> npt.NDArray[np.float16]:
        return np.asarray(values, np.float16).repeat(repeat, axis=1).reshape(n, k // most)

    small = codes.astype(np.int8).reshape(n, k)
    return Blocks(form, small, facts(d), None if m is None else facts(m))


def _parts(raw: memoryview | bytes, scheme: QuantScheme, shape: tuple[int, ...]) -> _Parts:
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


# Made of float32 --------------------------------------------------------------------------------


def quantise(rows: npt.NDArray[np.float32], scheme: QuantScheme) -> Blocks:
    """Float32 [N, K] as blocks, by a scheme that weights are quantised to here.

    `gguf_q8_0` and `int8/N`: symmetric, the largest magnitude of a block becomes 127. `gguf_q4_0`,
    `gguf_q5_0` and `int4/N`: the value of the largest magnitude becomes the least code. `gguf_q4_1`
    and `gguf_q5_1`: from the least to the largest value. `int8a/N`: the same with a whole zero
    point. `nvfp4/16`: E2M1 times an E4M3 scale of 16 weights times a float32 scale of the tensor.

    Raises:
        CheckpointError: the scheme is none of these, or K is no multiple of its block.
    """
    rule, form = _QUANTISE.get(scheme.display.partition("/")[0]), scheme_format(scheme)
    size = scheme_block(scheme)
    n, k = rows.shape
    if rule is None or form is None or k % size:
        raise CheckpointError(
            f"weights of {k} columns cannot be quantised to {scheme}.",
            f"Use one of {', '.join(_QUANTISE)}; a block (N of int8/N, int8a/N and int4/N, else "
            "32) is a multiple of 32 and divides the columns.",
        )
    each = HALF if form.halves else size
    codes, d, m = rule(rows.reshape(n, k // each, each).astype(np.float32), form.bits)
    repeat = max(1, size // BLOCK) if not form.halves else 1
    d, m = d.repeat(repeat, axis=1), None if m is None else m.repeat(repeat, axis=1)
    return Blocks(form, codes.astype(np.int8).reshape(n, k), d, m)


_Quantised = tuple[Floats, npt.NDArray[np.float16], npt.NDArray[np.float16] | None]


def _symmetric(blocks: Floats, bits: int) -> _Quantised:
    d = (np.abs(blocks).max(2) / 127).astype(np.float16)
    return np.rint(blocks * _inverse(d)).clip(-127, 127), d, None


def _from_least(blocks: Floats, bits: int) -> _Quantised:
    least = 1 << bits >> 1
    most = np.take_along_axis(blocks, np.abs(blocks).argmax(2)[:, :, None], 2)[:, :, 0]
    d = (most / -least).astype(np.float16)
    return np.rint(blocks * _inverse(d)).clip(-least, least - 1), d, None


def _between(blocks: Floats, bits: int) -> _Quantised:
    low, top = blocks.min(2), (1 << bits) - 1
    d, m = ((blocks.max(2) - low) / top).astype(np.float16), low.astype(np.float16)
    codes = np.rint((blocks - m[:, :, None].astype(np.float32)) * _inverse(d))
    return codes.clip(0, top), d, m


def _zero_point(blocks: Floats, bits: int) -> _Quantised:
    low, high = blocks.min(2).clip(max=0), blocks.max(2).clip(min=0)
    d = ((high - low) / 255).astype(np.float16)
    zero = np.rint(-128 - low[:, :, None] * _inverse(d)).clip(-128, 127)
    codes = np.rint(blocks * _inverse(d)) + zero
    return codes.clip(-128, 127), d, (-zero[:, :, 0] * d.astype(np.float32)).astype(np.float16)


def _nvfp4(blocks: Floats, bits: int) -> _Quantised:
    most = np.abs(blocks).max(2)
    whole = np.float32(most.max() / (E4M3.largest * E2M1.largest)) or np.float32(1)
    scale = E4M3.decode(E4M3.encode(most / E2M1.largest / whole)) * whole
    codes = E2M1.decode(E2M1.encode(blocks * _inverse(scale))) * 2
    return codes, (scale / 2).astype(np.float16), None


_QUANTISE: dict[str, Callable[[Floats, int], _Quantised]] = {
    "gguf_q8_0": _symmetric,
    "gguf_q5_1": _between,
    "gguf_q5_0": _from_least,
    "gguf_q4_1": _between,
    "gguf_q4_0": _from_least,
    "int8": _symmetric,
    "int8a": _zero_point,
    "int4": _from_least,
    "nvfp4": _nvfp4,
}


def _inverse(d: npt.NDArray[Any]) -> Floats:
    wide = d.astype(np.float32)[:, :, None]
    return np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0)


# Read from GGUF ---------------------------------------------------------------------------------


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


def _q4_0(b: Bytes) -> _Parts:
    return _Parts(_nibbles(b[:, 2:]) - 8, _f16(b, 0))


def _q4_1(b: Bytes) -> _Parts:
    return _Parts(_nibbles(b[:, 4:]), _f16(b, 0), _f16(b, 2))


def _q5_0(b: Bytes) -> _Parts:
    return _Parts((_nibbles(b[:, 6:]) | _fifth_bits(b, 2)) - 16, _f16(b, 0))


def _q5_1(b: Bytes) -> _Parts:
    return _Parts(_nibbles(b[:, 8:]) | _fifth_bits(b, 4), _f16(b, 0), _f16(b, 2))


def _q8_0(b: Bytes) -> _Parts:
    return _Parts(b[:, 2:].view(np.int8), _f16(b, 0))


def _pairs_of_bits(data: Bytes) -> Any:
    """[blocks, 64] bytes as [blocks, 2, 4, 32]: bits 2 s, 2 s + 1 of each half's 32 bytes."""
    halves = data.reshape(-1, 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    return ((halves >> shifts) & 3).astype(np.int16)


def _q2_k(b: Bytes) -> _Parts:
    scales, codes = b[:, :16], _pairs_of_bits(b[:, 16:80]).reshape(-1, 256)
    return _Parts(codes, _f16(b, 80) * (scales & 15), -_f16(b, 82) * (scales >> 4))


def _q3_k(b: Bytes) -> _Parts:
    mask, quants, packed = b[:, :32], _pairs_of_bits(b[:, 32:96]), b[:, 96:108]
    high = (mask[:, None, :] >> np.arange(8, dtype=np.uint8)[None, :, None]) & 1
    codes = quants.reshape(-1, 8, 32) - 4 * (1 - high.astype(np.int16))
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    top = np.concatenate([(packed[:, 8:] >> s) & 3 for s in (0, 2, 4, 6)], axis=1)
    scales = (low | (top << 4)).astype(np.float32) - 32
    return _Parts(codes.reshape(-1, 256), _f16(b, 108) * scales)


def _scales_and_mins(packed: Bytes) -> tuple[Floats, Floats]:
    """Eight 6-bit scales and eight 6-bit minimums from the twelve bytes of Q4_K and Q5_K."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
    mins = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scales.astype(np.float32), mins.astype(np.float32)


def _q4_k(b: Bytes) -> _Parts:
    scales, mins = _scales_and_mins(b[:, 4:16])
    pairs = b[:, 16:].reshape(-1, 4, 1, 32)
    codes = np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(-1, 256)
    return _Parts(codes, _f16(b, 0) * scales, -_f16(b, 2) * mins)


def _q5_k(b: Bytes) -> _Parts:
    scales, mins = _scales_and_mins(b[:, 4:16])
    pairs = b[:, 48:].reshape(-1, 4, 1, 32)
    low = np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(-1, 8, 32)
    high = (b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[None, :, None]) & 1
    codes = (low | (high << 4)).reshape(-1, 256)
    return _Parts(codes, _f16(b, 0) * scales, -_f16(b, 2) * mins)


def _q6_k(b: Bytes) -> _Parts:
    low = b[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    codes = (low.astype(np.int16) | (_pairs_of_bits(b[:, 128:192]) << 4)) - 32
    return _Parts(codes.reshape(-1, 256), _f16(b, 208) * b[:, 192:208].view(np.int8))


def _q8_k(b: Bytes) -> _Parts:
    d = np.ascontiguousarray(b[:, :4]).view(np.float32)
    return _Parts(b[:, 4:260].view(np.int8), d)


_RULES: dict[str, Callable[[Bytes], _Parts]] = {
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
