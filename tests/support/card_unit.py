"""Kernels on a card, called as `cuda_emulator.Unit` calls them on the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from rlx_ray.artifact.launch_plan import NULL, KernelStep
from rlx_ray.compiler.cuda import nvrtc
from rlx_ray.compiler.cuda.kernel_table import Instance
from rlx_ray.compiler.cuda.source import sources, unit
from rlx_ray.runtime.device import Device

_GUARD = 256


class CardUnit:
    """Kernels compiled and loaded for a device.

    Args:
        device: the device.
        instances: the kernels.
    """

    def __init__(self, device: Device, instances: Iterable[Instance]) -> None:
        self.instances = {one.name: one for one in instances}
        self._device = device
        self.text = unit(self.instances.values())
        self.code = nvrtc.compile(self.text, device.arch, sources())
        shared = {name: one.launch.shared for name, one in self.instances.items()}
        self._module = device.module(self.code, shared)

    def run(
        self,
        name: str,
        order: str = "",
        alias: Mapping[str, str] | None = None,
        **arrays: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Run a kernel; the arguments are those of `Unit.run`. A card has its own order."""
        one = self.instances[name]
        assert not set(arrays) - set(one.arguments), set(arrays) - set(one.arguments)
        held = {key: _Guarded(self._device, array) for key, array in arrays.items()}
        places = {key: held[(alias or {}).get(key, key)] for key in {*arrays, *(alias or {})}}
        arguments = [places[key].address if key in places else 0 for key in one.arguments]
        how = one.launch
        step = KernelStep(name, how.grid, how.block, how.shared, (NULL,) * len(arguments), name)
        self._module.launch(step, arguments)
        found = {key: place.read() for key, place in held.items()}
        return {key: found[(alias or {}).get(key, key)] for key in places}


class _Guarded:
    """An array on the device between two guards."""

    def __init__(self, device: Device, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values)
        self._like, self._device = values, device
        whole = np.full(values.nbytes + 2 * _GUARD, 0xFF, np.uint8)
        whole[_GUARD : _GUARD + values.nbytes] = values.reshape(-1).view(np.uint8)
        self._memory = device.allocate(whole.nbytes)
        self.address = self._memory.address + _GUARD
        device.write(self._memory.address, whole)

    def read(self) -> np.ndarray:
        """What it is now, once both guards are found whole."""
        like = self._like
        whole = np.empty(like.nbytes + 2 * _GUARD, np.uint8)
        self._device.read(self._memory.address, whole)
        outside = (whole[:_GUARD], whole[_GUARD + like.nbytes :])
        assert all((part == 0xFF).all() for part in outside), "written outside its bounds"
        return whole[_GUARD : _GUARD + like.nbytes].view(like.dtype).reshape(like.shape)
