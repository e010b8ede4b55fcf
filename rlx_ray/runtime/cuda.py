"""The one door to CuPy at run time, and what it finds behind it: libraries, a driver, devices."""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass, replace
from typing import Any

from rlx_ray import host as hosts
from rlx_ray.errors import DeviceError
from rlx_ray.host import Host

_INSTALL = "Install CuPy and cuBLAS: pip install 'rlx_ray[gpu13]' (or gpu12, as the driver allows)."


_NO_DRIVER = "no NVIDIA driver is loaded"


@dataclass(frozen=True, slots=True)
class Visible:
    """The devices that this process may use.

    Attributes:
        archs: their architectures in CUDA's order, such as `sm_90`.
        reason: why there are none; empty where there are.
    """

    archs: tuple[str, ...]
    reason: str = ""


def visible_devices() -> Visible:
    """Look for devices; never raises. CUDA itself heeds CUDA_VISIBLE_DEVICES."""
    if not has_driver():
        return Visible((), _NO_DRIVER)
    try:
        cuda = cupy().cuda
        if not cuda.runtime.driverGetVersion():  # CUDA itself would call it too old
            return Visible((), _NO_DRIVER)
        count = int(cuda.runtime.getDeviceCount())
        found = tuple(f"sm_{cuda.Device(i).compute_capability}" for i in range(count))
        if found:
            blas_library(cuda)
    except DeviceError as error:
        return Visible((), str(error))
    except Exception as error:  # whatever a driver, or the lack of one, leads to
        return Visible((), f"CUDA does not start: {error}")
    return Visible(found, "" if found else "no CUDA device is visible")


def has_driver() -> bool:
    """Whether there is a driver at all: to ask CuPy takes a quarter of a second for its import."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def this_host() -> Host:
    """The host that this process runs on, with the devices that it may use."""
    found = visible_devices()
    host = hosts.this_host()
    return replace(host, devices=found.archs, no_device=found.reason or host.no_device)


@dataclass(frozen=True, slots=True)
class Installation:
    """What CUDA is made of on this machine, for reports.

    Attributes:
        runtime: the version of the runtime that CuPy has, such as `13.2`.
        driver: the newest version that the driver runs; empty without a driver.
        devices: architecture, name and bytes of memory of each device.
    """

    runtime: str
    driver: str
    devices: tuple[tuple[str, str, int], ...]


def installation() -> Installation:
    """Look at CuPy, the driver and the devices.

    Raises:
        DeviceError: CuPy is not installed, or does not load.
    """
    cuda = cupy().cuda
    runtime = _version(cuda.runtime.runtimeGetVersion())
    driver = _version(cuda.runtime.driverGetVersion())
    found = []
    for index, arch in enumerate(visible_devices().archs):
        facts = cuda.runtime.getDeviceProperties(index)
        found.append((arch, text(facts["name"]), int(facts["totalGlobalMem"])))
    return Installation(runtime, driver, tuple(found))


def _version(number: int) -> str:
    """CUDA's number of a version, such as 13020, as people write it; empty for 0."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""


def text(name: object) -> str:
    """A name that CuPy gives as bytes, or as text."""
    return name.decode() if isinstance(name, bytes) else str(name)


def cupy() -> Any:
    """CuPy.

    Raises:
        DeviceError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module("cupy")
    except Exception as error:  # CuPy lets out whatever its libraries meet
        raise DeviceError(f"CuPy does not load: {error}.", _INSTALL) from error


def blas_library(cuda: Any) -> ctypes.CDLL:
    """CuBLAS, from wherever CuPy finds it: wheels, a toolkit, or the loader's path.

    Raises:
        DeviceError: it is not installed.
    """
    major = int(cuda.runtime.runtimeGetVersion()) // 1000
    try:
        _ = cuda.cublas  # CuPy loads it, and from then on its name alone finds it
        return ctypes.CDLL(f"libcublas.so.{major}")
    except (ImportError, OSError) as error:
        raise DeviceError(f"cuBLAS {major} does not load: {error}.", _INSTALL) from error
