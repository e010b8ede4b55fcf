"""Block formats of quantised weights: codes and scales, made of float32 or read from GGUF files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rlx_ray.component.quant import QuantScheme
from rlx_ray.errors import CheckpointError
from rlx_ray.weights.formats import BLOCK, HALF, MatrixFormat, scheme_block, scheme_format
from rlx_ray.weights.gguf_blocks import gguf_parts
from rlx_ray.weights.small_floats import E2M1, E4M3

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


def unpack(raw: memoryview | bytes, scheme: QuantScheme, shape: tuple[int, ...]) -> Floats:
    """A packed tensor as float32 of its shape; arguments and errors as `gguf_parts`."""
    codes, d, m = gguf_parts(raw, scheme, shape)
    values = d[:, :, None] * codes.astype(np.float32).reshape(*d.shape, -1)
    if m is not None:
        values += m[:, :, None]
    return values.reshape(shape)


def as_blocks(raw: memoryview | bytes, scheme: QuantScheme, shape: tuple[int, int]) -> Blocks:
    """A packed [N, K] tensor as blocks of 32 or halves of them; scales are rounded to float16.

    Raises:
        CheckpointError: as `gguf_parts`.
    """
    codes, d, m = gguf_parts(raw, scheme, shape)
    form = scheme_format(scheme)
    assert form is not None
    n, k = shape
    most = HALF if form.halves else BLOCK
    repeat = codes.shape[1] // d.shape[1] // most

    def facts(values: Floats) -> npt.NDArray[np.float16]:
        return np.asarray(values, np.float16).repeat(repeat, axis=1).reshape(n, k // most)

    small = codes.astype(np.int8).reshape(n, k)
    return Blocks(form, small, facts(d), None if m is None else facts(m))


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
