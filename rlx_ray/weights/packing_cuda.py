"""Packing for CUDA: parameters as kernels and the device's library read them.

Layouts (little-endian; T is the precision's element type):

* `plain`: row-major; embedding tables of T, all else float32.
* `rows`: a matrix (K, N), as in y = x W, as N rows of K numbers of T.
* `tiles-` and a format: a quantised matrix in the one layout that kernels/cuda/blocks.cuh reads. It
  is cut into tiles of 16 outputs and these into chunks of 64 terms. A lane of the warp that reads a
  chunk finds there the codes that it multiplies, in the order in which it does.
* `q8rows`: an embedding table of 8 bits (rlx_ray.weights.formats).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rlx_ray.artifact.manifest import Binding
from rlx_ray.dtype import DType
from rlx_ray.errors import CheckpointError
from rlx_ray.target import Target
from rlx_ray.weights.blocks import Blocks
from rlx_ray.weights.formats import (
    BLOCK,
    CHUNK,
    FORMATS,
    HALF,
    QUANT_ROWS,
    ROWS_LAYOUT,
    TILE,
    tiles_layout,
)
from rlx_ray.weights.params import ParamSpec
from rlx_ray.weights.sources import (
    Read,
    ReadBlocks,
    SourceTensors,
    check_finite,
    fill_coded_rows,
    fill_floats,
    joined_blocks,
    sources,
    to_bf16,
    zeros,
)

ALIGN = 256
"""Bytes that every parameter is aligned to; one whose size is a multiple is followed closely."""

_F16_OVERFLOW = 65520.0
"""Magnitudes from here on round to infinity in f16."""

Bytes = npt.NDArray[np.uint8]


def pack(
    params: Sequence[ParamSpec],
    read: Read,
    t: DType,
    formats: Mapping[str, str],
    read_blocks: ReadBlocks,
) -> tuple[npt.NDArray[np.uint8], tuple[Binding, ...]]:
    """All parameters in one buffer.

    Args:
        params: what to pack, in this order.
        read: gives a checkpoint tensor by name as float32.
        t: of matrices and embedding tables that are not quantised: f32, f16 or bf16.
        formats: of parameters that stay quantised, or are quantised (rlx_ray.weights.formats).
        read_blocks: gives a checkpoint tensor [N, K] as blocks that a format holds.

    Returns:
        The buffer (uint8), and for each parameter a binding with its logical shape, its layout and
        its offset in bytes (a multiple of 256).

    Raises:
        CheckpointError: a source has another shape or type than its parameter needs, or numbers
            that its element type cannot hold.
    """
    bindings, nbytes = places(params, t, formats)
    buffer = zeros(nbytes)
    for param, binding in zip(params, bindings, strict=True):
        _, size = _binding(param, t, formats.get(param.name), 0)
        place = buffer[binding.offset : binding.offset + size]
        form = formats.get(param.name)
        if form is None:
            _fill(place, param, read, binding.dtype)
        elif form == QUANT_ROWS:
            fill_coded_rows(place, joined_blocks(param, form, read_blocks))
        else:
            place[:] = tiled(joined_blocks(param, form, read_blocks)).reshape(-1)
    return buffer, bindings


def pack_model(
    params: Sequence[ParamSpec],
    tensors: SourceTensors,
    target: Target,
    precision: str,
    formats: Mapping[str, str],
) -> tuple[npt.NDArray[np.uint8], tuple[Binding, ...]]:
    """`pack` of a checkpoint for a target, in a profile's `precision.compute`."""
    return pack(params, tensors.read, DType.parse(precision), formats, tensors.read_blocks)


def model_bytes(
    params: Sequence[ParamSpec], target: Target, precision: str, formats: Mapping[str, str]
) -> int:
    """The bytes of what `pack_model` gives."""
    return places(params, DType.parse(precision), formats)[1]


def places(
    params: Sequence[ParamSpec], t: DType, formats: Mapping[str, str]
) -> tuple[tuple[Binding, ...], int]:
    """Where `pack` puts each parameter, and the bytes of its buffer; the arguments are its own."""
    bindings: list[Binding] = []
    end = 0
    for param in params:
        start = -(-end // ALIGN) * ALIGN
        binding, size = _binding(param, t, formats.get(param.name), start)
        bindings.append(binding)
        end = start + size
    return tuple(bindings), end


def _binding(param: ParamSpec, t: DType, form: str | None, start: int) -> tuple[Binding, int]:
    """Where a parameter goes, and its bytes."""
    shape, count = param.shape, math.prod(param.shape)
    if form == QUANT_ROWS:
        extent, n = shape
        wide = n + n // BLOCK * 2
        return Binding(param.name, DType.U8, (extent, wide), start, QUANT_ROWS), extent * wide
    if form is not None:
        size = FORMATS[form].tiled_bytes(*shape)
        return Binding(param.name, DType.U8, shape, start, tiles_layout(form)), size
    if param.layout == "matrix":
        return Binding(param.name, t, shape, start, ROWS_LAYOUT), count * t.size
    kind = t if param.layout == "plain" and len(shape) == 2 else DType.F32
    return Binding(param.name, kind, shape, start), count * kind.size


def _fill(place: npt.NDArray[np.uint8], param: ParamSpec, read: Read, kind: DType) -> None:
    """Write a parameter that is not quantised."""
    arrays = sources(param, read)
    if param.layout == "matrix" or kind is not DType.F32:
        row = 0
        rows = place.reshape(sum(len(array) for _, array in arrays), -1)
        for name, array in arrays:
            rows[row : row + len(array)] = _narrow(param, name, array, kind)
            row += len(array)
    else:
        fill_floats(place, param, arrays)


def _narrow(
    param: ParamSpec, name: str, values: npt.NDArray[np.float32], kind: DType
) -> npt.NDArray[np.uint8]:
    """The bytes of a source's rows in an element type, rounded to nearest, ties to even."""
    made: npt.NDArray[Any] = np.ascontiguousarray(values)
    if kind is not DType.F32:
        check_finite(param, name, values, kind.text)
    if kind is DType.BF16:
        made = to_bf16(values)
    if kind is DType.F16:
        if np.abs(values).max(initial=0) >= _F16_OVERFLOW:
            raise CheckpointError(
                f"parameter {param.name!r}: tensor {name!r} holds numbers beyond those of f16.",
                "Use precision.compute bf16 or f32.",
            )
        made = values.astype(np.float16)
    return made.view(np.uint8)


def tiled(blocks: Blocks) -> Bytes:
    """A matrix of blocks as bytes [tiles, chunks, bytes of a chunk]."""
    form = blocks.form
    codes = _chunks(blocks.codes.view(np.uint8) + np.uint8(form.centre), 1)
    kinds = [blocks.d] if blocks.m is None else [blocks.d, blocks.m]
    per = HALF if form.halves else BLOCK
    facts = np.stack([_chunks(kind, per) for kind in kinds], axis=2)  # tile, chunk, kind, row, part
    tiles, chunks = facts.shape[:2]
    parts = facts.reshape(tiles, chunks, len(kinds), 2, 8, -1).transpose(0, 1, 4, 2, 3, 5)
    pieces = [np.ascontiguousarray(parts).view(np.uint8).reshape(tiles, chunks, -1)]
    pieces += [plane.reshape(tiles, chunks, -1) for plane in _planes(_pairs(codes), form.bits)]
    return np.concatenate(pieces, axis=2)


def _chunks(values: npt.NDArray[Any], per: int) -> npt.NDArray[Any]:
    """[N, K / per] as [tiles, chunks, 16, 64 / per], zero behind the end."""
    n, k = values.shape
    wide = CHUNK // per
    whole = np.pad(values, ((0, -n % TILE), (0, -k % wide)))
    return whole.reshape(-1, TILE, whole.shape[1] // wide, wide).swapaxes(1, 2)


def _pairs(codes: Bytes) -> Bytes:
    """Codes of chunks as [tiles, chunks, lane, product, pair, 2]."""
    split = codes.reshape(*codes.shape[:2], 2, 8, 4, 4, 2, 2)  # row, g, product, t, late, two
    lanes = split.transpose(0, 1, 3, 5, 4, 6, 2, 7)  # g, t, product, late, row, two
    return lanes.reshape(*codes.shape[:2], 32, 4, 4, 2)


def _planes(pairs: Bytes, bits: int) -> list[Bytes]:
    """The planes of codes, the low bits first, as bytes."""
    planes = []
    lead = pairs.shape[:3]
    for plane in (8, 4, 2, 1):
        if not bits & plane:
            continue
        if plane == 8:
            own = pairs.reshape(*lead[:2], 32, 2, 16).swapaxes(2, 3)
            planes.append(np.ascontiguousarray(own))
        else:
            # A word has 32 / plane codes: pair i in bits plane * i and 16 + plane * i.
            words = pairs.reshape(*lead, plane, 16 // plane, 2).astype(np.uint32)
            words &= (1 << plane) - 1
            i = np.arange(16 // plane, dtype=np.uint32)[:, None]
            shifts = plane * i + np.array([0, 16], np.uint32)
            planes.append(np.bitwise_or.reduce(words << shifts, axis=(4, 5)).view(np.uint8))
        pairs = pairs >> np.uint8(plane) if plane < 8 else pairs
    return planes
