"""What a launch plan needs of a device.

A real one is in `runtime/cuda_device.py`; tests have one that runs the kernels' own sources on the
CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from rlx_ray.artifact.launch_plan import GemmStep, KernelStep


class Memory(Protocol):
    """Memory of a device; it is given back when nobody holds this object."""

    @property
    def address(self) -> int:
        """Where it begins."""
        ...

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        ...


class Module(Protocol):
    """A loaded cubin."""

    def launch(self, step: KernelStep, arguments: Sequence[int]) -> None:
        """Enqueue a kernel on the device's stream of this thread's run; arguments are addresses."""
        ...


class Graph(Protocol):
    """Steps that were captured once; a device may run them without looking at each."""

    def replay(self) -> None:
        """Enqueue them all."""
        ...


class Device(Protocol):
    """One device, and one stream of work on it.

    Work is in order: what is enqueued sees what was enqueued before. Reading waits for the stream.

    Attributes:
        arch: its architecture, such as `sm_90`.
        name: what its maker calls it.
    """

    arch: str
    name: str

    def memory(self) -> tuple[int, int]:
        """Bytes of memory that are free now, whoever has the rest, and of all memory."""
        ...

    def allocate(self, nbytes: int) -> Memory:
        """Memory of at least `nbytes` bytes, at an address that is a multiple of 256.

        Raises:
            DeviceMemoryError: it has no room.
        """
        ...

    def zero(self, address: int, nbytes: int) -> None:
        """Enqueue the setting of bytes to zero."""
        ...

    def write(self, address: int, values: np.ndarray) -> None:
        """Enqueue a copy to the device; the array may be changed as soon as this returns."""
        ...

    def read(self, address: int, out: np.ndarray) -> None:
        """Copy from the device into an array, after all that was enqueued before."""
        ...

    def module(self, code: bytes, kernels: Mapping[str, int]) -> Module:
        """Load a cubin or PTX.

        Args:
            code: its bytes.
            kernels: those that will be launched, with their most bytes of dynamic shared memory.

        Raises:
            DeviceError: the device does not take it: it is for others, or newer than the driver.
            ArtifactError: it lacks a kernel, or one asks for more shared memory than there is.
        """
        ...

    def gemm(self, step: GemmStep, a: int, b: int, c: int) -> None:
        """Enqueue a matrix product of what lies at three addresses."""
        ...

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """What a function enqueues, as a graph; nothing of it runs before it is replayed."""
        ...
