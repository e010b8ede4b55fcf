"""Packing: the parameters of a graph in one buffer, in the layout that kernels read.

Layouts (little-endian):

* `plain`: float32, row-major.
* `panelP` and its kin: a (K, N) matrix of a precision in panels of P columns, as `rlx_ray.matrix`
  says. A kernel that computes P columns of y = x W walks one panel from its first byte to its last.

A change to the bytes written here must bump `target.PACK_VERSION`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rlx_ray.artifact import Binding
from rlx_ray.dtype import DType
from rlx_ray.errors import CheckpointError
from rlx_ray.matrix import FORMATS, MatrixFormat
from rlx_ray.models.family import ParamSpec
from rlx_ray.models.rope import turns

ALIGN = 64
"""Bytes: one cache line, and the widest vector register."""

TAIL = 256
"""Zero bytes behind the last parameter: a kernel may read a few vectors past the end."""

Read = Callable[[str], npt.NDArray[Any]]


def pack(
    params: Sequence[ParamSpec], read: Read, panel: int, precision: str = "f32"
) -> tuple[npt.NDArray[np.uint8], tuple[Binding, ...]]:
    """All parameters in one buffer.

    Args:
        params: what to pack, in this order.
        read: gives a checkpoint tensor by name as float32.
        panel: columns of one panel of a matrix.
        precision: of the matrices: `f32`, `bf16` (rounded to nearest, ties to even) or `int8` (each
            column scaled so that its largest magnitude is 127).

    Returns:
        The buffer (uint8, 64-byte-aligned in memory), and for each parameter a binding with its
        logical shape, its layout and its offset in bytes (a multiple of 64).

    Raises:
        CheckpointError: a source has another shape or type than its parameter needs, or a matrix
            that is to be quantised holds an infinity or NaN.
    """
    form = FORMATS[precision]
    bindings: list[Binding] = []
    end = 0
    for param in params:
        start = -(-end // ALIGN) * ALIGN
        matrix = param.layout == "matrix"
        layout = form.layout(panel) if matrix else "plain"
        dtype = form.dtype if matrix else DType.F32
        bindings.append(Binding(param.name, dtype, param.shape, start, layout))
        end = start + _stored_bytes(param, panel, form)
    buffer = _zeros(end + TAIL)
    for param, binding in zip(params, bindings, strict=True):
        place = buffer[binding.offset : binding.offset + _stored_bytes(param, panel, form)]
        _fill(place, param, read, panel, form)
    return buffer, tuple(bindings)


def _zeros(size: int) -> npt.NDArray[np.uint8]:
    raw = np.zeros(size + ALIGN, np.uint8)
    skip = -raw.ctypes.data % ALIGN
    return raw[skip : skip + size]


def _stored_bytes(param: ParamSpec, panel: int, form: MatrixFormat) -> int:
    if param.layout == "matrix":
        k, n = param.shape
        return form.nbytes(k, n, panel)
    return 4 * math.prod(param.shape)


def _fill(
    place: npt.NDArray[np.uint8], param: ParamSpec, read: Read, panel: int, form: MatrixFormat
) -> None:
    arrays = [(name, read(name)) for name in param.sources]
    if param.heads:
        arrays = [
            (name, in_halves(array, heads) if heads else array)
            for (name, array), heads in zip(arrays, param.heads, strict=True)
        ]
    for name, array in arrays:
        if array.dtype != np.float32:
            raise CheckpointError(
                f"parameter {param.name!r}: tensor {name!r} is {array.dtype}, expected float32.",
                "Convert it with checkpoint.to_f32.",
            )
    _check_shapes(param, [(name, array.shape) for name, array in arrays])
    match param.layout:
        case "plain":
            place.view(np.float32).reshape(param.shape)[...] = arrays[0][1]
        case "rope":
            factors = arrays[0][1] if arrays else None
            positions, dim = param.shape
            table = turns(positions, dim, json.loads(param.made), factors)
            place.view(np.float32).reshape(param.shape)[...] = table
        case "vector":
            np.concatenate([array for _, array in arrays], out=place.view(np.float32))
        case _:
            panels = place.reshape(-(-param.shape[1] // panel), -1)
            column = 0
            for name, array in arrays:
                if form.precision != "f32" and not np.isfinite(array).all():
                    raise CheckpointError(
                        f"parameter {param.name!r}: tensor {name!r} holds an infinity or NaN, "
                        f"which {form.precision} cannot be made of.",
                        "Use precision.compute f32, or repair the checkpoint.",
                    )
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
    dtype = {"f32": np.float32, "bf16": np.uint16, "int8": np.int8}[form.precision]
    body = terms * panel * form.dtype.size
    row = 0
    while row < source.shape[0]:
        index, first = divmod(column + row, panel)
        count = min(panel - first, source.shape[0] - row)
        part: npt.NDArray[Any] = source[row : row + count]
        place = panels[index, :body].view(dtype).reshape(-1, panel, form.group)
        own = slice(first, first + count)
        if form.precision == "int8":
            part, scales = _int8(part)
            facts = panels[index, body:].reshape(2, panel * 4)
            facts[0].view(np.float32)[own] = scales
            facts[1].view(np.int32)[own] = part.sum(1, dtype=np.int32)
        elif form.precision == "bf16":
            part = to_bf16(part)
        padded = np.zeros((count, terms), dtype)
        padded[:, :k] = part
        place[:, own] = padded.reshape(count, -1, form.group).swapaxes(0, 1)
        row += count


def in_halves(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows [heads * dim, ...] whose heads stand in rotary pairs, brought into halves."""
    split = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def _int8(rows: npt.NDArray[np.float32]) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """Rows as int8 from -127 to 127, and each one's scale; a row of zeros has scale 1."""
    most = np.abs(rows).max(1, initial=0)
    scales = np.where(most > 0, most / np.float32(127), np.float32(1)).astype(np.float32)
    return np.rint(rows / scales[:, None]).clip(-127, 127).astype(np.int8), scales


def to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bit patterns of finite float32 values rounded to bf16, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _check_shapes(param: ParamSpec, shapes: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    found = [shape for _, shape in shapes]
    match param.layout:
        case "plain":
            fits = found == [param.shape]
        case "vector":
            fits = all(len(s) == 1 for s in found) and (sum(s[0] for s in found),) == param.shape
        case "rope":
            fits = found in ([], [(param.shape[1] // 2,)])
        case "matrix":
            fits = all(len(s) == 2 and s[1] == param.shape[0] for s in found)
            fits = fits and sum(s[0] for s in found) == param.shape[1]
        case _:
            raise ValueError(f"parameter {param.name!r} has unknown layout {param.layout!r}")
    if not fits:
        raise CheckpointError(
            f"parameter {param.name!r} ({param.layout} {list(param.shape)}) cannot be made of "
            + ", ".join(f"{name!r} {list(shape)}" for name, shape in shapes)
            + ".",
            "Check that the checkpoint matches its config.json.",
        )
