"""A CUDA device: memory, a stream, modules and graphs, by CuPy; see `runtime.device`."""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from rlx_ray.artifact.launch_plan import GemmStep, KernelStep
from rlx_ray.errors import ArtifactError, DeviceError, DeviceLost, DeviceMemoryError
from rlx_ray.runtime import cuda
from rlx_ray.runtime.cublas import WORKSPACE, Blas

_ALIGNMENT = 256
_STAGING = 4 << 20
"""Bytes of pinned memory that copies go through, in each direction."""

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation, CUDA_ERROR_OUT_OF_MEMORY
_LOST = frozenset({214, 220, 700, 702, 709, 710, *range(714, 720), 721})
"""Statuses after which every call of the process fails: ECC and NVLink errors, illegal addresses
and instructions, time-outs, assertions, failed launches."""


class CudaModule:
    """A loaded cubin, or PTX that the driver has compiled.

    CuPy unloads it with its last function, and to unload needs the device's context in the thread
    that happens to do so, which may never have called CUDA: the finalizer sees to that.

    Args:
        device: whose stream it launches on.
        functions: CuPy's, by name; each holds the module.
    """

    def __init__(self, device: CudaDevice, functions: dict[str, Any]) -> None:
        self._device = device
        self._functions = functions
        weakref.finalize(self, _unload, device.current, device.errors, functions)

    def launch(self, step: KernelStep, arguments: Sequence[int]) -> None:
        """Enqueue a kernel; arguments are addresses, and go over as 64-bit numbers."""
        function = self._functions[step.kernel]
        block = (step.block, 1, 1)
        with self._device.calling(f"kernel {step.kernel!r} of {step.origin!r}"):
            function(step.grid, block, tuple(arguments), step.shared, self._device.stream)


def _unload(current: Any, errors: tuple[type[Exception], ...], functions: dict[str, Any]) -> None:
    """Drop a module's functions where the device's context is this thread's."""
    with contextlib.suppress(*errors):  # the device is lost, and the module with it
        current.use()
    functions.clear()


class CudaGraph:
    """Captured work, instantiated."""

    def __init__(self, device: CudaDevice, graph: Any) -> None:
        self._device = device
        self._graph = graph

    def replay(self) -> None:
        """Enqueue it all."""
        with self._device.calling("a graph"):
            self._graph.launch(self._device.stream)


@dataclass(frozen=True, slots=True)
class CudaMemory:
    """Memory of a device, given back when nobody holds this object.

    Allocations are few and large, so each is one of CUDA's own: what nobody holds is at once free
    for other processes too, and no pool needs to be emptied when memory runs short.
    """

    address: int
    nbytes: int
    held: Any


class CudaDevice:
    """One device, with a stream of its own; see `runtime.device.Device`.

    Args:
        index: which of the visible devices.

    Raises:
        DeviceError: CuPy, cuBLAS, the driver or the device is not there.
    """

    def __init__(self, index: int = 0) -> None:
        found = cuda.visible_devices()
        if index >= len(found.archs):
            raise DeviceError(f"CUDA device {index} is not there: {found.reason or found.archs}.")
        self._cuda = cuda.cupy().cuda
        self.errors: tuple[type[Exception], ...] = (
            self._cuda.runtime.CUDARuntimeError,
            self._cuda.driver.CUDADriverError,
            self._cuda.memory.OutOfMemoryError,
        )
        self.current = self._cuda.Device(index)
        with self.calling("its start"):
            self.arch = found.archs[index]
            self.name = cuda.text(self._cuda.runtime.getDeviceProperties(index)["name"])
            self.stream = self._cuda.Stream(non_blocking=True)
            self._outbound = _Pinned(self._cuda, _STAGING)
            self._inbound = _Pinned(self._cuda, _STAGING)
        self._used = 0
        self._workspace = self.allocate(WORKSPACE)
        with self.calling("cuBLAS"):
            library = cuda.blas_library(self._cuda)
            self._blas = Blas(library, self.stream.ptr, self._workspace.address)

    def calling(self, what: str) -> _Calling:
        """A context in which the device is current, and CUDA's errors are this package's."""
        return _Calling(self.current, self.errors, what)

    def memory(self) -> tuple[int, int]:
        """Free bytes and all of them; see `Device.memory`."""
        with self.calling("how much memory it has"):
            free, total = self._cuda.runtime.memGetInfo()
        return int(free), int(total)

    def allocate(self, nbytes: int) -> CudaMemory:
        """Memory; see `Device.allocate`."""
        with self.calling(f"{nbytes} bytes of memory"):
            held = self._cuda.Memory(max(nbytes, 1))
        assert held.ptr % _ALIGNMENT == 0, held.ptr
        return CudaMemory(int(held.ptr), nbytes, held)

    def zero(self, address: int, nbytes: int) -> None:
        """Enqueue the setting of bytes to zero."""
        with self.calling("zeroes"):
            self._cuda.runtime.memsetAsync(address, 0, nbytes, self.stream.ptr)

    def write(self, address: int, values: np.ndarray) -> None:
        """Copy to the device by way of pinned memory, which is filled again only once it is read.

        What has been staged since the last wait is not overwritten, so the copies overlap with
        work until the pinned memory is full.
        """
        flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        kind = self._cuda.runtime.memcpyHostToDevice
        done = 0
        with self.calling("a copy to the device"):
            while done < flat.nbytes:
                if self._used == _STAGING:
                    self._wait()
                size = min(flat.nbytes - done, _STAGING - self._used)
                source, staged = self._outbound.part(self._used, size)
                staged[:] = flat[done : done + size]
                self._cuda.runtime.memcpyAsync(address + done, source, size, kind, self.stream.ptr)
                done += size
                self._used += size

    def read(self, address: int, out: np.ndarray) -> None:
        """Copy from the device by way of pinned memory, after all that was enqueued before."""
        assert out.flags.c_contiguous, "the array must be contiguous"
        flat = out.reshape(-1).view(np.uint8)
        kind = self._cuda.runtime.memcpyDeviceToHost
        with self.calling("a copy from the device"):
            for done in range(0, flat.nbytes, _STAGING):
                size = min(flat.nbytes - done, _STAGING)
                place, staged = self._inbound.part(0, size)
                self._cuda.runtime.memcpyAsync(place, address + done, size, kind, self.stream.ptr)
                self._wait()
                flat[done : done + size] = staged

    def module(self, code: bytes, kernels: Mapping[str, int]) -> CudaModule:
        """Load a cubin or PTX; see `Device.module`."""
        driver = self._cuda.driver
        asked = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        with self.calling(f"the code for {self.arch}"):
            module = self._cuda.function.Module()
            module.load(code)
        functions = {}
        for name, shared in kernels.items():
            try:
                with self.calling(f"kernel {name!r} with {shared} bytes of shared memory"):
                    functions[name] = module.get_function(name)
                    driver.funcSetAttribute(functions[name].ptr, asked, shared)
            except (DeviceMemoryError, DeviceLost):
                raise
            except DeviceError as error:
                raise ArtifactError(f"the code does not fit its plan: {error.message}") from error
        return CudaModule(self, functions)

    def gemm(self, step: GemmStep, a: int, b: int, c: int) -> None:
        """Enqueue a matrix product; see `cublas.Blas.gemm`."""
        with self.calling(f"the product of {step.origin!r}"):
            self._blas.gemm(step, a, b, c)

    def capture(self, enqueue: Callable[[], None]) -> CudaGraph:
        """What a function enqueues, as a graph."""
        with self.calling("a capture"):
            self.stream.begin_capture()
            try:
                enqueue()
            except BaseException:
                self._abandon()
                raise
            return CudaGraph(self, self.stream.end_capture())

    def _abandon(self) -> None:
        """End a capture that went wrong: until then the stream takes no other work."""
        with contextlib.suppress(*self.errors):  # it was invalid: the cause is being raised
            self.stream.end_capture()

    def _wait(self) -> None:
        self.stream.synchronize()
        self._used = 0


class _Pinned:
    """Pinned memory of the host."""

    def __init__(self, cuda: Any, nbytes: int) -> None:
        self._held = cuda.PinnedMemory(nbytes)
        raw = (ctypes.c_uint8 * nbytes).from_address(self._held.ptr)
        self._bytes = np.ctypeslib.as_array(raw)

    def part(self, offset: int, nbytes: int) -> tuple[int, np.ndarray]:
        """Address and bytes of a part."""
        return int(self._held.ptr) + offset, self._bytes[offset : offset + nbytes]


class _Calling:
    """See `CudaDevice.calling`; around every call a class costs less than a generator does."""

    __slots__ = ("_current", "_errors", "_what")

    def __init__(self, current: Any, errors: tuple[type[Exception], ...], what: str) -> None:
        self._current, self._errors, self._what = current, errors, what

    def __enter__(self) -> None:
        try:
            self._current.__enter__()
        except self._errors as error:
            raise device_error(error, self._what) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._current.__exit__(kind, error, trace)
        except self._errors as late:  # after a fault this fails like every call
            error = error if isinstance(error, self._errors) else late
        if isinstance(error, self._errors):
            raise device_error(error, self._what) from error


def device_error(error: BaseException, what: str) -> DeviceError:
    """This package's error for one of CuPy's.

    Args:
        error: CUDA's status in CuPy's clothes, or its lack of memory.
        what: that was asked for, for the message.
    """
    status = getattr(error, "status", None)
    if isinstance(error, MemoryError) or status == _OUT_OF_MEMORY:
        return DeviceMemoryError(
            f"the device has no room for {what}: {error}", "Load fewer variants or models."
        )
    if status in _LOST:
        return DeviceLost(
            f"the device failed at {what} or before: {error}", "Start this process anew."
        )
    return DeviceError(f"the device refused {what}: {error}")
