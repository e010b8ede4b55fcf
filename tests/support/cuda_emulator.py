"""CUDA kernels run on the host: their own sources, compiled as C++ with cuda_shim.

Buffers stand between guards of bytes that read as NaN in every type: a kernel that reads behind an
end gives NaN, and one that writes there is found out.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from rlx_ray.compiler.cpu import zig
from rlx_ray.compiler.cuda.kernel_table import Instance
from rlx_ray.compiler.cuda.source import KERNELS, unit
from rlx_ray.dtype import DType

SHIM = Path(__file__).parent / "cuda_shim"
NUMPY = {
    DType.F32: np.dtype(np.float32),
    DType.F16: np.dtype(np.float16),
    DType.BF16: np.dtype(ml_dtypes.bfloat16),
}
"""Element types as NumPy has them."""

ORDERS = {"ascending": 0, "descending": 1, "shuffled": 7}
"""Orders in which threads go on behind a barrier."""

_GUARD = 256
_FLAGS = (
    *("-std=c++17", "-g0", "-shared", "-fPIC", "-nostdlib", "-fvisibility=hidden"),
    *("-fno-exceptions", "-fno-rtti", "-fno-strict-aliasing", "-ffp-contract=off"),
    *("-fno-sanitize=all", "-fsanitize=alignment", "-fsanitize-minimal-runtime"),
    *("-Wall", "-Werror", "-Wno-unused-function", "-Wno-unknown-pragmas"),
)


class LaunchError(Exception):
    """What a kernel did that no device would bear."""


class Buffer:
    """An array in emulated device memory, aligned to 256 bytes, between two guards."""

    def __init__(self, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values)
        self._raw = np.full(values.nbytes + 3 * _GUARD, 0xFF, np.uint8)
        self._start = _GUARD + -self._raw.ctypes.data % _GUARD
        self._end = self._start + values.nbytes
        own = self._raw[self._start : self._end]
        self.array = own.view(values.dtype).reshape(values.shape)
        self.array[...] = values

    @property
    def address(self) -> int:
        """Where it begins."""
        return self._raw.ctypes.data + self._start

    @property
    def whole(self) -> bool:
        """Both guards are as they were."""
        outside = (self._raw[: self._start], self._raw[self._end :])
        return all((part == 0xFF).all() for part in outside)


class Unit:
    """Kernels compiled for the host.

    Args:
        folder: where the source and the library go.
        instances: the kernels.
        level: how well the compiler is to optimise: small cases run faster than -O1 compiles.
    """

    def __init__(self, folder: Path, instances: Iterable[Instance], level: str = "-O0") -> None:
        self.instances = {one.name: one for one in instances}
        exports = "".join(f"RLX_EXPORT({name})\n" for name in self.instances)
        text = f'#include "cuda_shim.h"\n{unit(self.instances.values())}\n{exports}'
        self._library = compile_host(folder, text, level)

    def run(
        self,
        name: str,
        order: str = "shuffled",
        alias: Mapping[str, str] | None = None,
        **arrays: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Run a kernel with the launch of its instance.

        Args:
            name: the instance's.
            order: of the threads, one of ORDERS.
            alias: arguments that point to what another argument points to.
            arrays: arguments by name; those not given are null.

        Returns:
            The arrays as they are afterwards, of equal names.

        Raises:
            LaunchError: it went wrong, or wrote outside its buffers.
        """
        one = self.instances[name]
        assert not set(arrays) - set(one.arguments), set(arrays) - set(one.arguments)
        buffers = {key: Buffer(array) for key, array in arrays.items()}
        for key, other in (alias or {}).items():
            buffers[key] = buffers[other]
        geometry = (*one.launch.grid, one.launch.block, 1, 1)
        arguments = [buffers.get(key) for key in one.arguments]
        start(self._library, name, geometry, one.launch.shared, arguments, order)
        return {key: buffer.array for key, buffer in buffers.items()}


def compile_host(folder: Path, text: str, level: str = "-O0") -> ctypes.CDLL:
    """The library of a C++ text that includes cuda_shim.h."""
    source = folder / "unit.cpp"
    source.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [zig._zig(), "c++", *_FLAGS, level, f"-I{SHIM}", f"-I{KERNELS}", source, "-o", "unit.so"],
        cwd=folder,
        env={"ZIG_GLOBAL_CACHE_DIR": zig._cache_dir(), "ZIG_LOCAL_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[:4000]
    return ctypes.CDLL(str(folder / "unit.so"))


def start(
    library: ctypes.CDLL,
    name: str,
    geometry: Sequence[int],
    shared: int,
    arguments: Sequence[Buffer | int | None],
    order: str = "shuffled",
) -> None:
    """Run an exported kernel of a library.

    Args:
        library: what `compile_host` gave.
        name: the kernel's.
        geometry: the grid's and the block's extents.
        shared: bytes of dynamic shared memory.
        arguments: buffers, addresses (whose bounds are the caller's care) and nulls.
        order: of the threads, one of ORDERS.

    Raises:
        LaunchError: it went wrong, or wrote outside its buffers.
    """
    function = getattr(library, f"{name}_launch")
    function.restype = ctypes.c_char_p
    pointers = [one.address if isinstance(one, Buffer) else one for one in arguments]
    error = function(
        (ctypes.c_uint * 6)(*geometry),
        ctypes.c_uint(shared),
        (ctypes.c_void_p * len(pointers))(*pointers),
        ctypes.c_uint(len(pointers)),
        ctypes.c_uint(ORDERS[order]),
    )
    if error:
        raise LaunchError(f"{name}: {error.decode()}")
    for i, one in enumerate(arguments):
        if isinstance(one, Buffer) and not one.whole:
            raise LaunchError(f"{name}: argument {i} was written outside its bounds")
