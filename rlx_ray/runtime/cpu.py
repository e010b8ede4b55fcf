"""The CPU runtime: the process's one thread pool, its arenas, and compiled variants.

A variant's forward pass is one foreign call with the GIL released. Jobs of several variants are
admitted to the pool one after the other, first come first served (kernels/c/pool.c).
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from rlx_ray.artifact.manifest import Binding, BindingManifest
from rlx_ray.errors import ArtifactError, DeviceMemoryError, InputError
from rlx_ray.runtime.executable import NUMPY, Cache, check_inputs, check_tables, select
from rlx_ray.runtime.weights import Weights
from rlx_ray.target import ABI

_LINE = 64


class Frame(ctypes.Structure):
    """`rlx_frame` of kernels/c/rlx_abi.h."""

    _fields_ = (
        ("params", ctypes.c_void_p),
        ("arena", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("scratch_stride", ctypes.c_long),
        ("threads", ctypes.c_long),
        ("cache", ctypes.c_void_p),
    )


def aligned(nbytes: int) -> np.ndarray:
    """Zeroed bytes whose address is a multiple of 64."""
    raw = np.zeros(nbytes + _LINE, np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + nbytes]


class ThreadPool:
    """The threads that all variants of a process run on.

    Args:
        library: the `pool` blob of any artifact for this host's architecture.
        threads: how many, the caller of a job included; 0 means the processors of this process.

    Raises:
        ArtifactError: the library is not a pool of this ABI.
    """

    def __init__(self, library: Path, threads: int = 0) -> None:
        self.threads = threads or len(os.sched_getaffinity(0))
        try:
            lib = ctypes.CDLL(str(library))
            abi = int(lib.rlx_pool_abi())
        except (OSError, AttributeError) as error:
            raise ArtifactError(f"{library} is not a thread pool: {error}.") from error
        if abi != ABI:
            raise ArtifactError(f"the thread pool has abi {abi}, this runtime has {ABI}.")
        lib.rlx_pool_bytes.restype = ctypes.c_long
        self._memory = aligned(int(lib.rlx_pool_bytes(ctypes.c_long(self.threads))))
        self.address = self._memory.ctypes.data
        lib.rlx_pool_init(ctypes.c_void_p(self.address), self.threads)
        self.run_address = ctypes.cast(lib.rlx_pool_run, ctypes.c_void_p).value
        self._workers = [
            threading.Thread(
                target=lib.rlx_pool_worker,
                args=(ctypes.c_void_p(self.address), ctypes.c_long(i)),
                name=f"rlx-{i}",
                daemon=True,
            )
            for i in range(1, self.threads)
        ]
        for worker in self._workers:
            worker.start()
        self._finalizer = weakref.finalize(
            self, _stop, lib.rlx_pool_stop, self.address, self._memory, self._workers
        )

    def close(self) -> None:
        """Let the running job end and send the workers home; jobs after it are refused."""
        self._finalizer()


def _stop(
    stop: ctypes._NamedFuncPointer,
    address: int,
    memory: np.ndarray,
    workers: Sequence[threading.Thread],
) -> None:
    stop(ctypes.c_void_p(address))
    for worker in workers:
        worker.join(timeout=5)
    del memory


class ArenaPool:
    """Memory that variants borrow for one forward pass; all variants of a process share it."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> np.ndarray:
        """An arena of at least `nbytes` bytes: the smallest free one that fits, or a new one.

        A new one replaces the largest free one, which is too small, so that the pool never holds
        more arenas than forward passes ran at once.
        """
        with self._lock:
            fitting = [a for a in self._free if a.nbytes >= nbytes]
            if fitting:
                best = min(fitting, key=lambda a: a.nbytes)
            elif self._free:
                best = max(self._free, key=lambda a: a.nbytes)
            else:
                return aligned(nbytes)
            self._free = [a for a in self._free if a is not best]
        return best if best.nbytes >= nbytes else aligned(nbytes)

    def give(self, arena: np.ndarray) -> None:
        """Hand an arena back."""
        with self._lock:
            self._free.append(arena)

    @property
    def nbytes(self) -> int:
        """Bytes of the arenas that nobody uses now."""
        with self._lock:
            return sum(a.nbytes for a in self._free)


class CpuExecutable:
    """A loaded variant.

    Args:
        code: a local copy of the `code` blob whose hash has been checked.
        binding: how to call it.
        weights: the model's packed weights.
        pool: the process's thread pool.
        arenas: the process's arenas.

    Raises:
        ArtifactError: the code does not load or does not fit the weights.
    """

    def __init__(
        self,
        code: Path,
        binding: BindingManifest,
        weights: Weights,
        pool: ThreadPool,
        arenas: ArenaPool,
    ) -> None:
        self.binding = binding
        self._weights = weights
        self._pool = pool
        self._arenas = arenas
        try:
            self._lib = ctypes.CDLL(str(code))
            self._run = self._lib[binding.entry]
        except (OSError, AttributeError) as error:
            raise ArtifactError(f"{code} does not load: {error}.") from error
        self._run.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
        self._run.restype = ctypes.c_int
        addresses = weights.addresses(binding.params)
        self._params = (ctypes.c_void_p * len(addresses))(*addresses)
        self._scratch_at = (binding.arena + _LINE - 1) // _LINE * _LINE
        self.arena_bytes = self._scratch_at + pool.threads * binding.scratch

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        cache: Cache | None = None,
        wanted: Collection[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """One forward pass; see `Executable.run`. The cache is one of `make_cache`.

        Raises:
            InputError: an input, the cache or an output is not as the binding says.
            ArtifactError: the pool has been closed.
        """
        check_inputs(self.binding.inputs, inputs)
        outputs = select(self.binding.outputs, wanted)
        held = check_cache(self.binding.page, cache) if self.binding.page else None
        if held is not None:
            check_tables(inputs["pages"], len(held))
        arena = self._arenas.take(self.arena_bytes)
        try:
            for tensor in self.binding.inputs:
                view(arena, tensor)[...] = inputs[tensor.name]
            base = arena.ctypes.data
            frame = Frame(
                ctypes.addressof(self._params),
                base,
                base + self._scratch_at,
                self.binding.scratch,
                self._pool.threads,
                held.ctypes.data if held is not None else None,
            )
            if self._run(ctypes.addressof(frame), self._pool.run_address, self._pool.address):
                raise ArtifactError("the thread pool has been closed.")
            return {o.name: view(arena, o).copy() for o in outputs}
        finally:
            self._arenas.give(arena)

    def make_cache(self, pages: int) -> np.ndarray:
        """Zeroed pages, uint8 [pages, binding.page], 64-byte aligned; see `cache_pages`.

        Raises:
            DeviceMemoryError: the host does not give that much address space.
        """
        return cache_pages(pages, self.binding.page)


def cache_pages(count: int, size: int) -> np.ndarray:
    """Zeroed pages, uint8 [count, size], 64-byte aligned; memory is used as they are written.

    Raises:
        DeviceMemoryError: the host does not give that much address space.
    """
    try:
        return aligned(count * size).reshape(count, size)
    except MemoryError:
        raise DeviceMemoryError(
            f"this host has no room for a cache of {count * size} bytes.",
            "Lower serve.kv_cache_bytes.",
        ) from None


def check_cache(page: int, cache: Cache | None) -> np.ndarray:
    """A cache, if it has pages of a size in this process's memory.

    Raises:
        InputError: it does not.
    """
    if isinstance(cache, np.ndarray) and cache.dtype == np.uint8 and cache.shape[1:] == (page,):
        return cache
    found = "none" if cache is None else type(cache).__name__
    if isinstance(cache, np.ndarray):
        found = f"{cache.dtype}{list(cache.shape)}"
    raise InputError(f"the key-value cache is {found}, the variant takes uint8[pages, {page}].")


def view(arena: np.ndarray, tensor: Binding) -> np.ndarray:
    """A tensor inside an arena, as an array that shares its memory."""
    part = arena[tensor.offset : tensor.offset + tensor.nbytes]
    return part.view(NUMPY[tensor.dtype.text]).reshape(tensor.shape)
