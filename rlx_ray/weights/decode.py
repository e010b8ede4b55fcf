"""A stored tensor's bytes as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rlx_ray.component.quant import QuantScheme
from rlx_ray.dtype import DType
from rlx_ray.weights.blocks import unpack

_NUMPY = {
    DType.F64: "<f8",
    DType.F32: "<f4",
    DType.F16: "<f2",
    DType.BF16: "<u2",
    DType.I64: "<i8",
    DType.I32: "<i4",
    DType.I16: "<i2",
    DType.I8: "i1",
    DType.U8: "u1",
    DType.BOOL: "?",
}
"""How NumPy has an element; of bf16 its bits."""


def as_array(
    raw: memoryview, dtype: DType, shape: tuple[int, ...], scheme: QuantScheme | None
) -> npt.NDArray[Any]:
    """A tensor as a read-only array of its shape; bf16 comes as uint16 bit patterns.

    Args:
        raw: its bytes, row-major and little-endian.
        dtype: of an element.
        shape: in weights.
        scheme: how they are packed; such a tensor comes as its bytes, flat. None for plain ones.
    """
    if scheme is not None:
        return np.frombuffer(raw, np.uint8)
    array = np.frombuffer(raw, _NUMPY[dtype]).reshape(shape)
    array.flags.writeable = False
    return array


def as_f32(
    raw: memoryview, dtype: DType, shape: tuple[int, ...], scheme: QuantScheme | None
) -> npt.NDArray[np.float32]:
    """A tensor as float32 of its shape, unpacked and widened as need be; see `as_array`."""
    if scheme is not None:
        unpacked: npt.NDArray[np.float32] = unpack(raw, scheme, shape)
        return unpacked
    return to_f32(as_array(raw, dtype, shape, None), dtype)


def to_f32(array: npt.NDArray[Any], dtype: DType) -> npt.NDArray[np.float32]:
    """A tensor as float32: bf16 bit patterns are widened, float32 is passed through.

    Args:
        array: as `as_array` gives it, any shape.
        dtype: the stored type.
    """
    if dtype is DType.BF16:
        # bf16 is the upper half of a float32.
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32, copy=False)
