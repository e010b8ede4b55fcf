"""A device that is the host: kernels run by the shim, matrix products by NumPy.

It holds its user to what a card would: memory is taken in pieces between guards, every address must
lie in a piece that is still held, and nothing but launches, products and zeroes may be captured.
"""

from __future__ import annotations

import ctypes
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from rlx_ray.artifact.launch_plan import GemmStep, KernelStep
from rlx_ray.dtype import DType
from rlx_ray.errors import ArtifactError, DeviceMemoryError
from tests.support.cuda_emulator import NUMPY, Buffer, compile_host, start

_KERNEL = re.compile(r"^#define RLX_NAME (\w+)$", re.M)
_STATIC_SHARED = 48 << 10
"""Bytes of dynamic shared memory that a kernel may have without asking."""


class HostMemory:
    """A piece of emulated device memory, aligned to 256 bytes, between two guards."""

    def __init__(self, nbytes: int) -> None:
        self.buffer = Buffer(np.full(nbytes, 0xFF, np.uint8))
        self.address = self.buffer.address
        self.nbytes = nbytes


class HostModule:
    """The kernels of a unit, compiled for the host.

    Args:
        device: whose work it enqueues.
        library: the unit.
        kernels: those that may be launched, with their most bytes of shared memory.
    """

    def __init__(
        self, device: EmulatedDevice, library: ctypes.CDLL, kernels: Mapping[str, int]
    ) -> None:
        self._device, self._library, self._kernels = device, library, dict(kernels)

    def launch(self, step: KernelStep, arguments: Sequence[int]) -> None:
        """Run a kernel, or remember it while something is captured."""
        assert len(arguments) == len(step.arguments), step
        most = max(self._kernels[step.kernel], _STATIC_SHARED)
        assert step.shared <= most, f"{step.kernel} has not asked for so much shared memory"
        geometry = (*step.grid, step.block, 1, 1)

        def run() -> None:
            for address in arguments:
                assert not address or self._device.holds(address), f"{step}: {address:#x}"
            addresses = [address or None for address in arguments]
            start(self._library, step.kernel, geometry, step.shared, addresses)
            self._device.check_guards(step.origin or step.kernel)

        self._device.enqueue(run)


class HostGraph:
    """What was captured, to be run again."""

    def __init__(self, device: EmulatedDevice, work: Sequence[Callable[[], None]]) -> None:
        self._device, self._work = device, tuple(work)

    def replay(self) -> None:
        """Run it all."""
        for one in self._work:
            self._device.enqueue(one)


class EmulatedDevice:
    """`rlx_ray.runtime.device.Device` over host memory.

    Args:
        folder: where units are compiled.
        text: the CUDA text of modules whose cubin `made_of` does not know: cubins are not run.
        arch: what it says that it is.
        level: how well the host's compiler is to optimise.

    Attributes:
        room: how many bytes of memory it has.
    """

    def __init__(
        self, folder: Path, text: str = "", arch: str = "sm_90", level: str = "-O2"
    ) -> None:
        self.arch, self.name = arch, f"emulated {arch}"
        self.room = 1 << 40
        self._folder, self._text, self._level = folder, text, level
        self._texts: dict[bytes, str] = {}
        self._libraries: dict[str, ctypes.CDLL] = {}
        self._pieces: weakref.WeakValueDictionary[int, HostMemory] = weakref.WeakValueDictionary()
        self._captured: list[Callable[[], None]] | None = None

    def made_of(self, code: bytes, text: str) -> None:
        """Say what CUDA text a cubin was compiled from."""
        self._texts[code] = text

    @property
    def held(self) -> int:
        """Bytes of memory that somebody holds."""
        return sum(piece.nbytes for piece in self._pieces.values())

    def holds(self, address: int, nbytes: int = 1) -> bool:
        """Whether some bytes lie within one piece of memory that is held."""
        return any(
            piece.address <= address and address + nbytes <= piece.address + piece.nbytes
            for piece in self._pieces.values()
        )

    def check_guards(self, what: str) -> None:
        """Check that nothing was written between the pieces of memory."""
        for piece in self._pieces.values():
            assert piece.buffer.whole, f"{what} wrote outside of {piece.nbytes} bytes"

    def enqueue(self, work: Callable[[], None]) -> None:
        """Run something, or remember it while something is captured."""
        if self._captured is None:
            work()
        else:
            self._captured.append(work)

    def memory(self) -> tuple[int, int]:
        """What is left of its room, and its room."""
        return self.room - self.held, self.room

    def allocate(self, nbytes: int) -> HostMemory:
        """Memory; its bytes are NaN in every type."""
        self._not_captured("memory")
        if self.held + nbytes > self.room:
            raise DeviceMemoryError(f"no room for {nbytes} bytes.")
        piece = HostMemory(nbytes)
        self._pieces[piece.address] = piece
        return piece

    def zero(self, address: int, nbytes: int) -> None:
        """Set bytes to zero."""
        self.enqueue(lambda: self._bytes(address, nbytes).fill(0))

    def write(self, address: int, values: np.ndarray) -> None:
        """Copy to the device."""
        self._not_captured("a copy")
        flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self._bytes(address, flat.nbytes)[...] = flat

    def read(self, address: int, out: np.ndarray) -> None:
        """Copy from the device."""
        self._not_captured("a copy")
        out[...] = self._bytes(address, out.nbytes).view(out.dtype).reshape(out.shape)

    def module(self, code: bytes, kernels: Mapping[str, int]) -> HostModule:
        """The unit that a cubin was compiled from, for the host."""
        self._not_captured("a module")
        text = self._texts.get(code, self._text)
        names = _KERNEL.findall(text)
        for kernel in kernels:
            if kernel not in names:
                raise ArtifactError(f"the cubin has no kernel {kernel!r}.")
        if text not in self._libraries:
            folder = self._folder / f"unit{len(self._libraries)}"
            folder.mkdir(parents=True)
            exports = "".join(f"RLX_EXPORT({name})\n" for name in names)
            whole = f'#include "cuda_shim.h"\n{text}\n{exports}'
            self._libraries[text] = compile_host(folder, whole, self._level)
        return HostModule(self, self._libraries[text], kernels)

    def gemm(self, step: GemmStep, a: int, b: int, c: int) -> None:
        """A matrix product in float32, rounded to the result's type."""

        def run() -> None:
            right = (step.n, step.k) if step.transposed else (step.k, step.n)
            x = self._matrices(a, step.batch, (step.m, step.k), step.lda, step.stride_a, step.dtype)
            w = self._matrices(b, step.batch, right, step.ldb, step.stride_b, step.dtype)
            y = self._matrices(c, step.batch, (step.m, step.n), step.ldc, step.stride_c, step.out)
            w = w.swapaxes(1, 2) if step.transposed else w
            with np.errstate(all="ignore"):  # rows that nobody reads may hold anything
                y[...] = x.astype(np.float32, copy=False) @ w.astype(np.float32, copy=False)

        self.enqueue(run)

    def capture(self, enqueue: Callable[[], None]) -> HostGraph:
        """Remember what a function enqueues."""
        self._not_captured("a capture")
        self._captured = []
        try:
            enqueue()
            return HostGraph(self, self._captured)
        finally:
            self._captured = None

    def _not_captured(self, what: str) -> None:
        assert self._captured is None, f"{what} was asked for while work is captured"

    def _bytes(self, address: int, nbytes: int) -> np.ndarray:
        assert self.holds(address, nbytes), f"{nbytes} bytes at {address:#x} are nobody's"
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def _matrices(
        self,
        address: int,
        batch: int,
        shape: tuple[int, int],
        pitch: int,
        stride: int,
        dtype: DType,
    ) -> np.ndarray:
        """[batch, *shape] at an address; its extent must lie within a piece of memory."""
        rows, columns = shape
        count = (batch - 1) * stride + (rows - 1) * pitch + columns
        flat = self._bytes(address, count * dtype.size).view(NUMPY[dtype])
        size = dtype.size
        return np.lib.stride_tricks.as_strided(
            flat, (batch, rows, columns), (stride * size, pitch * size, size)
        )
