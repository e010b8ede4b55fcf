"""A host with an emulated card: what `runtime.loaders` makes there, and what its driver refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from rlx_ray.artifact.launch_plan import LaunchPlan
from rlx_ray.artifact.manifest import BindingManifest
from rlx_ray.errors import DeviceError
from rlx_ray.runtime import cuda, loaders
from rlx_ray.runtime.launch_executable import LaunchExecutable
from rlx_ray.runtime.weights import Weights
from tests.support.cuda_device import EmulatedDevice


class EmulatedLoader(loaders.DeviceLoader):
    """A device loader that tells its emulated device the text of each cubin.

    Args:
        device: the device.
        refused: targets whose code the device's driver does not take.
    """

    def __init__(self, device: EmulatedDevice, refused: tuple[str, ...]) -> None:
        super().__init__(device)
        self._emulated, self._refused = device, refused

    def load(
        self, binding: BindingManifest, blobs: Mapping[str, Path], weights: Weights
    ) -> LaunchExecutable:
        arch = LaunchPlan.loads(blobs["plan"].read_bytes()).arch
        if f"cuda-{arch}" in self._refused:
            raise DeviceError(f"the device refused the code for {arch}: status 222")
        text = blobs["text"].read_text(encoding="utf-8")
        self._emulated.made_of(blobs["code"].read_bytes(), text)
        return super().load(binding, blobs, weights)


def put_in_card(
    monkeypatch: pytest.MonkeyPatch, folder: Path, refused: tuple[str, ...] = ()
) -> EmulatedDevice:
    """Have this process see one emulated sm_90 device."""
    device = EmulatedDevice(folder, level="-O1")
    monkeypatch.setattr(cuda, "visible_devices", lambda: cuda.Visible(("sm_90",)))
    monkeypatch.setattr(loaders, "CudaDevice", lambda: device)
    monkeypatch.setattr(loaders, "DeviceLoader", lambda found: EmulatedLoader(found, refused))
    return device
