"""A tensor where it lies in a checkpoint's file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rlx_ray.checkpoint.folder import RangedFile
from rlx_ray.component.quant import QuantScheme
from rlx_ray.dtype import DType
from rlx_ray.errors import CheckpointError
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


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor where it lies in its file.

    Attributes:
        dtype: of an element; of a packed tensor that of its bytes, u8.
        shape: row-major, in weights.
        start: the first byte in the file.
        stop: the byte behind the last.
        scheme: how the weights are packed; None for plain elements.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: RangedFile
    start: int
    stop: int
    scheme: QuantScheme | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.stop - self.start

    def raw(self) -> memoryview:
        """The tensor's bytes, row-major and little-endian.

        Raises:
            CheckpointError: the file gives fewer bytes than its header promises.
        """
        data = self.file.read(self.start, self.stop)
        if data.nbytes != self.nbytes:
            raise CheckpointError(
                f"{self.file.name}: tensor {self.name!r} has {self.nbytes} bytes, "
                f"{data.nbytes} were read.",
                "The file is damaged or incomplete: fetch it again.",
            )
        return data

    def read(self) -> npt.NDArray[Any]:
        """The tensor as a read-only array of its shape; bf16 comes as uint16 bit patterns.

        Of a local file this is a view of the mapped file. A packed tensor comes as its bytes, flat.
        """
        if self.scheme is not None:
            return np.frombuffer(self.raw(), np.uint8)
        array = np.frombuffer(self.raw(), _NUMPY[self.dtype]).reshape(self.shape)
        array.flags.writeable = False
        return array

    def f32(self) -> npt.NDArray[np.float32]:
        """The tensor as float32 of its shape, unpacked and widened as need be.

        Raises:
            CheckpointError: the file gives fewer bytes than its header promises.
        """
        if self.scheme is not None:
            unpacked: npt.NDArray[np.float32] = unpack(self.raw(), self.scheme, self.shape)
            return unpacked
        return to_f32(self.read(), self.dtype)


def to_f32(array: npt.NDArray[Any], dtype: DType) -> npt.NDArray[np.float32]:
    """A tensor as float32: bf16 bit patterns are widened, float32 is passed through.

    Args:
        array: as `StoredTensor.read` gives it, any shape.
        dtype: the stored type.
    """
    if dtype is DType.BF16:
        # bf16 is the upper half of a float32.
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32, copy=False)
