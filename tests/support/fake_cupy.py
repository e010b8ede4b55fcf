"""CuPy's driver, runtime and memory over host memory, and cuBLAS by column-major NumPy.

It has of each what `rlx_ray.runtime.cuda` and `cublas` use, notes every call in order, and fails
with a status where it is told to.
"""

from __future__ import annotations

import ctypes
import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np

from rlx_ray.dtype import DType
from tests.support.cuda_emulator import NUMPY, Buffer

_KINDS = {0: NUMPY[DType.F32], 2: NUMPY[DType.F16], 14: NUMPY[DType.BF16]}


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class CUDADriverError(CUDARuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


class FakeCupy:
    """The module `cupy`.

    Args:
        archs: compute capabilities of the devices, such as "90".
    """

    def __init__(self, *archs: str) -> None:
        self.archs = archs
        self.driver = 13000
        self.calls: list[tuple[Any, ...]] = []
        self.fails: dict[str, int] = {}
        """Statuses by the call's name, used up by it."""
        self.held: Counter[str] = Counter()
        self.lost = 0
        """The status that every later call has, as after a fault."""
        self.contexts: set[int] = set()
        """Threads in which a device's context is current."""
        self.blas = FakeBlas(self)
        fake = self

        class Memory:
            def __init__(self, size: int) -> None:
                fake.call("malloc", size)
                self.buffer = Buffer(np.zeros(size, np.uint8))
                self.ptr = self.buffer.address
                self.size = size
                fake.held["memory"] += size

            def __del__(self) -> None:
                fake.held["memory"] -= getattr(self, "size", 0)

        class PinnedMemory(Memory):
            pass

        class Device:
            def __init__(self, index: int) -> None:
                self.compute_capability = fake.archs[index]
                self.index = index

            def __enter__(self) -> None:
                fake.held["current"] += 1

            def __exit__(self, *_: object) -> None:
                fake.held["current"] -= 1
                if fake.lost:
                    raise CUDARuntimeError(fake.lost)

            def use(self) -> None:
                fake.contexts.add(threading.get_ident())

        class Stream:
            ptr = 77

            def __init__(self, non_blocking: bool = False) -> None:
                assert non_blocking
                self.capturing = False

            def begin_capture(self) -> None:
                fake.call("begin_capture")
                self.capturing = True

            def end_capture(self) -> SimpleNamespace:
                self.capturing = False
                fake.call("end_capture")
                return SimpleNamespace(launch=lambda stream: fake.call("graph", stream.ptr))

            def synchronize(self) -> None:
                fake.call("synchronize")

        class Module:
            def load(self, code: bytes) -> None:
                fake.contexts.add(threading.get_ident())  # CuPy sees to that when it loads
                fake.call("load", code, error=CUDADriverError)

            def __del__(self) -> None:
                fake.call("unload", threading.get_ident() in fake.contexts)

            def get_function(self, name: str) -> Function:
                fake.call("get_function", name, error=CUDADriverError)
                return Function(self, name)

        class Function:
            def __init__(self, module: Module, name: str) -> None:
                self.module, self.name, self.ptr = module, name, len(name)

            def __call__(self, *arguments: Any) -> None:
                fake.call("launch", self.name, *arguments[:-1], arguments[-1].ptr)

        runtime = SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDeviceCount=lambda: fake.call("count") or len(fake.archs),
            getDeviceProperties=lambda index: {"name": b"Card", "totalGlobalMem": 80 << 30},
            memGetInfo=self._memory,
            runtimeGetVersion=lambda: 13020,
            driverGetVersion=lambda: fake.driver,
            memcpyHostToDevice=1,
            memcpyDeviceToHost=2,
            memcpyAsync=self._copy,
            memsetAsync=self._set,
        )
        driver = SimpleNamespace(
            CUDADriverError=CUDADriverError,
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8,
            funcSetAttribute=lambda *a: fake.call("attribute", *a, error=CUDADriverError),
        )
        self.cuda = SimpleNamespace(
            runtime=runtime,
            driver=driver,
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            function=SimpleNamespace(Module=Module),
            Memory=Memory,
            PinnedMemory=PinnedMemory,
            Device=Device,
            Stream=Stream,
        )

    def call(
        self, name: str, *arguments: Any, error: type[CUDARuntimeError] = CUDARuntimeError
    ) -> None:
        """Note a call, and fail it if that was asked for."""
        self.calls.append((name, *arguments))
        if name in self.fails:
            raise error(self.fails.pop(name))

    def of(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of all calls of a name."""
        return [call[1:] for call in self.calls if call[0] == name]

    def _memory(self) -> tuple[int, int]:
        assert self.held["current"] == 1
        self.call("memory")
        return 60 << 30, 80 << 30

    def _copy(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        assert self.held["current"] == 1
        self.call("copy", size, kind, stream)
        ctypes.memmove(to, source, size)

    def _set(self, address: int, value: int, size: int, stream: int) -> None:
        self.call("set", value, size, stream)
        ctypes.memset(address, value, size)


class FakeBlas:
    """libcublas: matrices are column-major, handles are 5."""

    def __init__(self, fake: FakeCupy) -> None:
        def plain(name: str) -> Any:
            def call(*arguments: Any) -> int:
                fake.calls.append((name, *arguments))
                return fake.fails.pop(name, 0)

            return call

        def create(handle: Any) -> int:
            handle._obj.value = 5
            return fake.fails.pop("cublasCreate_v2", 0)

        def single(*a: Any) -> int:
            fake.calls.append(("cublasGemmEx", *a))
            sizes, one, x, w, zero, y, rest = (
                a[:6],
                a[6],
                a[7:10],
                a[10:13],
                a[13],
                a[14:17],
                a[17:],
            )
            return product(sizes, one, (*x, 0), (*w, 0), zero, (*y, 0), (1, *rest))

        def strided(*a: Any) -> int:
            fake.calls.append(("cublasGemmStridedBatchedEx", *a))
            return product(a[:6], a[6], a[7:11], a[11:15], a[15], a[16:20], a[20:])

        self.cublasCreate_v2 = create
        self.cublasGemmEx, self.cublasGemmStridedBatchedEx = single, strided
        for name in ("Destroy_v2", "SetStream_v2", "SetWorkspace_v2", "SetMathMode"):
            setattr(self, f"cublas{name}", plain(f"cublas{name}"))


def product(sizes, one, first, second, zero, third, rest) -> int:
    """C = op(A) op(B) for each matrix of a batch, in column-major order."""
    _, turn_a, turn_b, m, n, k = sizes
    assert ctypes.c_float.from_address(one).value == 1
    assert ctypes.c_float.from_address(zero).value == 0
    batch, _compute, _algorithm = rest
    a = columns(first, batch, (k, m) if turn_a else (m, k))
    b = columns(second, batch, (n, k) if turn_b else (k, n))
    c = columns(third, batch, (m, n))
    for x, w, y in zip(a, b, c, strict=True):
        x, w = x.T if turn_a else x, w.T if turn_b else w
        y[...] = x.astype(np.float64) @ w.astype(np.float64)
    return 0


def columns(matrix, batch: int, shape: tuple[int, int]) -> list[np.ndarray]:
    """Views of column-major matrices (address, type, leading dimension, stride)."""
    address, kind, pitch, stride = matrix
    assert pitch >= shape[0], "the leading dimension is less than a column"
    dtype = _KINDS[kind]
    count = (shape[1] - 1) * pitch + shape[0]
    found = []
    for i in range(batch):
        raw = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(
            address + i * stride * dtype.itemsize
        )
        flat = np.frombuffer(raw, dtype)
        steps = (dtype.itemsize, pitch * dtype.itemsize)
        found.append(np.lib.stride_tricks.as_strided(flat, shape, steps))
    return found
