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
from rlx_ray.weights.decode import as_array, as_f32


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

        A packed tensor comes as its bytes, flat.
        """
        return as_array(self.raw(), self.dtype, self.shape, self.scheme)

    def f32(self) -> npt.NDArray[np.float32]:
        """The tensor as float32 of its shape, unpacked and widened as need be.

        Raises:
            CheckpointError: the file gives fewer bytes than its header promises.
        """
        return as_f32(self.raw(), self.dtype, self.shape, self.scheme)
