"""Packing: the parameters of a graph in one buffer, in the layout that kernels read.

Layouts (little-endian):

* `plain`: float32, row-major.
* `panelP` and its kin: a (K, N) matrix of a precision in panels of P columns, as
  `weights.formats` says. A kernel that computes P columns of y = x W walks one panel from its
  first byte to its last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rlx_ray.artifact.manifest import Binding
from rlx_ray.dtype import DType
from rlx_ray.target import Target
from rlx_ray.weights.formats import BLOCK, FORMATS, QUANT_ROWS, MatrixFormat
from rlx_ray.weights.params import ParamSpec
from rlx_ray.weights.small_floats import FP8, SmallFloat
from rlx_ray.weights.sources import (
    LINE,
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

TAIL = 256
"""Zero bytes behind the last parameter: a kernel may read a few vectors past the end."""


def pack(
    params: Sequence[ParamSpec],
    read: Read,
    panel: int,
    precision: str = "f32",
    formats: Mapping[str, str] | None = None,
    read_blocks: ReadBlocks | None = None,
) -> tuple[npt.NDArray[np.uint8], tuple[Binding, ...]]:
    """All parameters in one buffer.

    Args:
        params: what to pack, in this order.
        read: gives a checkpoint tensor by name as float32.
        panel: columns of one panel of a matrix.
        precision: of the matrices: `f32`, `bf16` (rounded to nearest, ties to even) or `int8` (each
            column scaled so that its largest magnitude is 127).
        formats: of parameters that have one of their own: a quantised one of `weights.formats`.
        read_blocks: gives a checkpoint tensor [N, K] as blocks that a format, given by its name,
            holds; `q8rows` holds those of `b8`.

    Returns:
        The buffer (uint8, 64-byte-aligned in memory), and for each parameter a binding with its
        logical shape, its layout and its offset in bytes (a multiple of 64).

    Raises:
        CheckpointError: a source has another shape or type than its parameter needs, or a matrix
            that is to be quantised holds an infinity or NaN.
    """
    own = [(formats or {}).get(p.name, precision) for p in params]
    bindings, nbytes = places(params, panel, precision, formats)
    buffer = zeros(nbytes)
    for param, name, binding in zip(params, own, bindings, strict=True):
        place = buffer[binding.offset : binding.offset + _stored_bytes(param, name, panel)]
        if name == QUANT_ROWS or (param.layout == "matrix" and FORMATS[name].block_bytes):
            assert read_blocks is not None
            _fill_blocks(place, param, name, read_blocks, panel)
        else:
            _fill(place, param, read, panel, FORMATS[name])
    return buffer, bindings


def pack_model(
    params: Sequence[ParamSpec],
    tensors: SourceTensors,
    target: Target,
    precision: str,
    formats: Mapping[str, str],
) -> tuple[npt.NDArray[np.uint8], tuple[Binding, ...]]:
    """`pack` of a checkpoint for a target, in a profile's `precision.compute`."""
    return pack(params, tensors.read, target.panel, precision, formats, tensors.read_blocks)


def model_bytes(
    params: Sequence[ParamSpec], target: Target, precision: str, formats: Mapping[str, str]
) -> int:
    """The bytes of what `pack_model` gives."""
    return places(params, target.panel, precision, formats)[1]


def places(
    params: Sequence[ParamSpec],
    panel: int,
    precision: str = "f32",
    formats: Mapping[str, str] | None = None,
) -> tuple[tuple[Binding, ...], int]:
    """Where `pack` puts each parameter, and the bytes of its buffer; the arguments are its own."""
    bindings: list[Binding] = []
    end = 0
    for param in params:
        name = (formats or {}).get(param.name, precision)
        start = -(-end // LINE) * LINE
        bindings.append(_binding(param, name, start, panel))
        end = start + _stored_bytes(param, name, panel)
    return tuple(bindings), end + TAIL


def _binding(param: ParamSpec, name: str, start: int, panel: int) -> Binding:
    if name == QUANT_ROWS:
        extent, n = param.shape
        return Binding(param.name, DType.U8, (extent, n + n // BLOCK * 2), start, QUANT_ROWS)
    if param.layout != "matrix":
        return Binding(param.name, DType.F32, param.shape, start, "plain")
    form = FORMATS[name]
    return Binding(param.name, form.dtype, param.shape, start, form.layout(panel))


def _stored_bytes(param: ParamSpec, name: str, panel: int) -> int:
    if name == QUANT_ROWS:
        extent, n = param.shape
        return extent * (n + n // BLOCK * 2)
    if param.layout == "matrix":
        k, n = param.shape
        return FORMATS[name].nbytes(k, n, panel)
    return 4 * math.prod(param.shape)


def _fill_blocks(
    place: npt.NDArray[np.uint8], param: ParamSpec, name: str, read: ReadBlocks, panel: int
) -> None:
    """Write the blocks of a parameter's sources."""
    blocks = joined_blocks(param, name, read)
    if name == QUANT_ROWS:
        fill_coded_rows(place, blocks)
        return
    stored = blocks.codes.view(np.uint8) + np.uint8(blocks.form.centre)
    facts = [blocks.d] if blocks.m is None else [blocks.d, blocks.m]
    _fill_panels(place, stored, facts, panel, blocks.form)


def _fill_panels(
    place: npt.NDArray[np.uint8],
    codes: npt.NDArray[np.uint8],
    facts: Sequence[npt.NDArray[np.float16]],
    panel: int,
    form: MatrixFormat,
) -> None:
    """Write stored codes [N, K] and scales and offsets [N, ...] as kernels/c/gemm_blocks.h says."""
    n, k = codes.shape
    extra, blocks = -n % panel, k // BLOCK
    panels = place.reshape(-1, blocks, panel * form.block_bytes)
    at = 0
    for values in facts:
        parts = np.pad(values, ((0, extra), (0, 0))).reshape(len(panels), panel, blocks, -1)
        whole = np.ascontiguousarray(parts.transpose(0, 2, 3, 1)).reshape(*panels.shape[:2], -1)
        panels[:, :, at : at + whole.shape[2] * 2] = whole.view(np.uint8)
        at += whole.shape[2] * 2
    padded = np.pad(codes, ((0, extra), (0, 0))).reshape(len(panels), panel, blocks, 8, 4)
    groups: npt.NDArray[np.uint8] = padded.transpose(0, 2, 3, 1, 4)
    for bits in (8, 4, 2, 1):
        if not form.bits & bits:
            continue
        shared = groups.reshape(*panels.shape[:2], bits, 8 // bits, panel, 4) & ((1 << bits) - 1)
        plane = np.bitwise_or.reduce(
            shared << (np.arange(8 // bits, dtype=np.uint8) * bits).reshape(-1, 1, 1), axis=3
        )
        panels[:, :, at : at + bits * panel * 4] = plane.reshape(*panels.shape[:2], -1)
        at += bits * panel * 4
        groups = groups >> np.uint8(bits)


def _fill(
    place: npt.NDArray[np.uint8], param: ParamSpec, read: Read, panel: int, form: MatrixFormat
) -> None:
    arrays = sources(param, read)
    if param.layout != "matrix":
        fill_floats(place, param, arrays)
        return
    panels = place.reshape(-(-param.shape[1] // panel), -1)
    column = 0
    for name, array in arrays:
        if form.name != "f32":
            check_finite(param, name, array, form.name)
        _fill_columns(panels, column, array, panel, form)
        column += array.shape[0]


def _fill_columns(
    panels: npt.NDArray[np.uint8],
    column: int,
    source: npt.NDArray[np.float32],
    panel: int,
    form: MatrixFormat,
) -> None:
    """Write a [N_i, K] source as the columns from `column` on of a matrix's panels."""
    k = source.shape[1]
    terms = form.groups(k) * form.group
    dtype = {"f32": np.float32, "bf16": np.uint16, "int8": np.int8}.get(form.name, np.uint8)
    body = terms * panel * form.dtype.size
    row = 0
    while row < source.shape[0]:
        index, first = divmod(column + row, panel)
        count = min(panel - first, source.shape[0] - row)
        part: npt.NDArray[Any] = source[row : row + count]
        place = panels[index, :body].view(dtype).reshape(-1, panel, form.group)
        own = slice(first, first + count)
        if form.name == "int8":
            part, scales = _int8(part)
            facts = panels[index, body:].reshape(2, panel * 4)
            facts[0].view(np.float32)[own] = scales
            facts[1].view(np.int32)[own] = part.sum(1, dtype=np.int32)
        elif form.name == "bf16":
            part = to_bf16(part)
        elif form.name in FP8:
            part, scales = _fp8(part, FP8[form.name])
            panels[index, body:].view(np.float32)[own] = scales
        padded = np.zeros((count, terms), dtype)
        padded[:, :k] = part
        place[:, own] = padded.reshape(count, -1, form.group).swapaxes(0, 1)
        row += count


def _int8(rows: npt.NDArray[np.float32]) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """Rows as int8 from -127 to 127, and each one's scale; a row of zeros has scale 1."""
    most = np.abs(rows).max(1, initial=0)
    scales = np.where(most > 0, most / np.float32(127), np.float32(1)).astype(np.float32)
    return np.rint(rows / scales[:, None]).clip(-127, 127).astype(np.int8), scales


def _fp8(
    rows: npt.NDArray[np.float32], kind: SmallFloat
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Rows as floats of 8 bits, the largest magnitude as the largest number, and their scales."""
    most = np.abs(rows).max(1, initial=0)
    scales = np.where(most > 0, most / np.float32(kind.largest), np.float32(1)).astype(np.float32)
    return kind.encode(rows / scales[:, None]), scales
