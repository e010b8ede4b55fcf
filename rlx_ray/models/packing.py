"""Packing: the parameters of a graph in one buffer, in the layout that kernels read.

Layouts (all float32, little-endian):

* `plain`: row-major.
* `panelP` of a (K, N) matrix: ceil(N / P) panels, each [K][P]: row k of panel p holds the columns
  p P ... p P + P - 1 of row k, with zeros for columns beyond N. A kernel that computes P columns
  of y = x W walks one panel from its first byte to its last.

A change to the bytes written here must bump `target.PACK_VERSION`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rlx_ray.artifact import Binding
from rlx_ray.dtype import DType
from rlx_ray.errors import CheckpointError
from rlx_ray.models.family import ParamSpec

ALIGN = 64
"""Bytes: one cache line, and the widest vector register."""

TAIL = 256
"""Zero bytes behind the last parameter: a kernel may read a few vectors past the end."""

Read = Callable[[str], npt.NDArray[Any]]


def pack(
    params: Sequence[ParamSpec], read: Read, panel: int
) -> tuple[npt.NDArray[np.uint8], tuple[Binding, ...]]:
    """All parameters in one buffer.

    Args:
        params: what to pack, in this order.
        read: gives a checkpoint tensor by name as float32.
        panel: columns of one panel of a matrix.

    Returns:
        The buffer (uint8, 64-byte-aligned in memory), and for each parameter a binding with its
        logical shape, its layout and its offset in bytes (a multiple of 64).

    Raises:
        CheckpointError: a source has another shape or type than its parameter needs.
    """
    bindings: list[Binding] = []
    end = 0
    for param in params:
        start = -(-end // ALIGN) * ALIGN
        layout = f"panel{panel}" if param.layout == "matrix" else "plain"
        bindings.append(Binding(param.name, DType.F32, param.shape, start, layout))
        end = start + 4 * math.prod(_stored(param, panel))
    buffer = _zeros(end + TAIL)
    for param, binding in zip(params, bindings, strict=True):
        shape = _stored(param, panel)
        place = buffer[binding.offset : binding.offset + 4 * math.prod(shape)]
        _fill(place.view(np.float32).reshape(shape), param, read)
    return buffer, tuple(bindings)


def _zeros(size: int) -> npt.NDArray[np.uint8]:
    raw = np.zeros(size + ALIGN, np.uint8)
    skip = -raw.ctypes.data % ALIGN
    return raw[skip : skip + size]


def _stored(param: ParamSpec, panel: int) -> tuple[int, ...]:
    """The shape in the buffer: panels, K and columns for a matrix."""
    if param.layout == "matrix":
        k, n = param.shape
        return -(-n // panel), k, panel
    return param.shape


def _fill(place: npt.NDArray[np.float32], param: ParamSpec, read: Read) -> None:
    arrays = [(name, read(name)) for name in param.sources]
    for name, array in arrays:
        if array.dtype != np.float32:
            raise CheckpointError(
                f"parameter {param.name!r}: tensor {name!r} is {array.dtype}, expected float32.",
                "Convert it with checkpoint.to_f32.",
            )
    _check_shapes(param, [(name, array.shape) for name, array in arrays])
    match param.layout:
        case "plain":
            place[...] = arrays[0][1]
        case "vector":
            np.concatenate([array for _, array in arrays], out=place)
        case _:
            column = 0
            for _, array in arrays:
                _fill_columns(place, column, array)
                column += array.shape[0]


def _fill_columns(
    place: npt.NDArray[np.float32], column: int, source: npt.NDArray[np.float32]
) -> None:
    """Write a [N_i, K] source as the columns from `column` on of a panel-packed matrix."""
    panel = place.shape[2]
    row = 0
    while row < source.shape[0]:
        index, first = divmod(column + row, panel)
        count = min(panel - first, source.shape[0] - row)
        place[index, :, first : first + count] = source[row : row + count].T
        row += count


def _check_shapes(param: ParamSpec, shapes: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    found = [shape for _, shape in shapes]
    match param.layout:
        case "plain":
            fits = found == [param.shape]
        case "vector":
            fits = all(len(s) == 1 for s in found) and (sum(s[0] for s in found),) == param.shape
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
