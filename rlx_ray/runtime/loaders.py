"""From an artifact on local disk to something that runs: the one choice by kind of target."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from rlx_ray import host as hosts
from rlx_ray.artifact.manifest import BindingManifest
from rlx_ray.host import Host
from rlx_ray.runtime import cuda
from rlx_ray.runtime.cpu import ArenaPool, CpuExecutable, ThreadPool
from rlx_ray.runtime.cuda_device import CudaDevice
from rlx_ray.runtime.device import Device
from rlx_ray.runtime.device_context import DeviceContext
from rlx_ray.runtime.executable import Executable
from rlx_ray.runtime.free_memory import free_bytes
from rlx_ray.runtime.launch_executable import LaunchExecutable
from rlx_ray.runtime.weights import Weights
from rlx_ray.target import Target


class Loader(Protocol):
    """What a process loads the artifacts of one target with; thread-safe."""

    def load(
        self, binding: BindingManifest, blobs: Mapping[str, Path], weights: Weights
    ) -> Executable:
        """A variant, ready to run.

        Args:
            binding: how to call it.
            blobs: a verified local copy of each blob, by role.
            weights: the model's packed weights.

        Raises:
            ArtifactError: a blob is not what its role says, or does not fit the weights.
            DeviceError: the device does not take it, such as a cubin that is newer than the
                driver; DeviceMemoryError: it has no room.
        """
        ...

    def room(self, share: float) -> int:
        """Bytes that weights, variants and caches may take, as things are now.

        Args:
            share: of a device that is this process's, at most 1; CPUs do not heed it.
        """
        ...

    def close(self) -> None:
        """Stop the threads, if there are any; nothing can run after it."""
        ...


def loader_for(target: Target, threads: int = 0) -> Loader:
    """The loader of a target's artifacts.

    Args:
        target: one that this host can run.
        threads: of the CPU's pool; 0 means the processors of this process.

    Raises:
        DeviceError: the target is a CUDA one and the device does not start.
    """
    return _LOADERS[target.kind](threads)


def host_for(wanted: Iterable[Target]) -> Host:
    """This host; its CUDA devices are looked for only if some target needs one."""
    looked_for = any(target.can.gpus for target in wanted)
    return cuda.this_host() if looked_for else hosts.this_host()


class CpuLoader:
    """Loads shared objects: one thread pool and one set of arenas for all.

    Args:
        threads: of the pool; 0 means the processors of this process.
    """

    def __init__(self, threads: int = 0) -> None:
        self._threads = threads
        self._arenas = ArenaPool()
        self._pool: ThreadPool | None = None
        self._lock = threading.Lock()

    def load(
        self, binding: BindingManifest, blobs: Mapping[str, Path], weights: Weights
    ) -> CpuExecutable:
        """A variant on the process's pool; see `Loader.load`."""
        pool = self._threads_from(blobs["pool"])
        return CpuExecutable(blobs["code"], binding, weights, pool, self._arenas)

    def room(self, share: float) -> int:
        """Half of the free memory: other replicas and builds want some too."""
        return free_bytes() // 2

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.close()

    def _threads_from(self, library: Path) -> ThreadPool:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPool(library, self._threads)
            return self._pool


class DeviceLoader:
    """Loads cubins with their launch plans onto one device."""

    def __init__(self, device: Device) -> None:
        self._context = DeviceContext(device)

    def load(
        self, binding: BindingManifest, blobs: Mapping[str, Path], weights: Weights
    ) -> LaunchExecutable:
        """A variant on the device, its model's weights uploaded if they are not there yet."""
        code, plan = (blobs[role].read_bytes() for role in ("code", "plan"))
        uploaded = self._context.upload(weights)
        return LaunchExecutable(code, plan, binding, uploaded, self._context)

    def room(self, share: float) -> int:
        """Of the free memory nine tenths, or nine tenths of this process's share of all of it.

        The rest is for what grows unasked: modules, graphs, and the gaps between allocations.
        """
        free, total = self._context.device.memory()
        return int(min(free, total * share) * 0.9)

    def close(self) -> None:
        """Nothing to stop: what lies on the device goes with the executables."""


_LOADERS: Mapping[str, Callable[[int], Loader]] = {
    "cpu": CpuLoader,
    "cuda": lambda threads: DeviceLoader(CudaDevice()),
}
"""By a target's kind, what loads its artifacts, given the threads of a pool."""
