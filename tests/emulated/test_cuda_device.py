"""The emulated device is as strict as a card."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from rlx_ray.artifact.launch_plan import NULL, Address, GemmStep, KernelStep
from rlx_ray.compiler.cpu.zig import installed_version
from rlx_ray.compiler.cuda.kernel_table import instance
from rlx_ray.compiler.cuda.source import unit
from rlx_ray.dtype import DType
from rlx_ray.errors import ArtifactError
from tests.support.cuda_device import EmulatedDevice
from tests.support.cuda_emulator import NUMPY
from tests.support.needs import needs

IOTA = instance("iota", "count", rows=100, period=10)
STEP = KernelStep("count", IOTA.launch.grid, IOTA.launch.block, 0, (NULL, Address("arena")))


@pytest.fixture
def device(tmp_path: Path) -> EmulatedDevice:
    needs(installed_version(), "the C compiler is missing: pip install 'rlx_ray[build]'")
    return EmulatedDevice(tmp_path, unit([IOTA]), level="-O0")


def numbers(device: EmulatedDevice, address: int, count: int) -> np.ndarray:
    out = np.zeros(count, np.int32)
    device.read(address, out)
    return out


def test_captured_work_runs_when_it_is_replayed_and_not_before(device: EmulatedDevice) -> None:
    memory = device.allocate(400)
    module = device.module(b"", {"count": 0})
    device.zero(memory.address, 400)
    graph = device.capture(lambda: module.launch(STEP, [0, memory.address]))
    assert not numbers(device, memory.address, 100).any()
    graph.replay()
    assert numbers(device, memory.address, 100).tolist() == [i % 10 for i in range(100)]


def test_a_kernel_that_writes_behind_its_memory_is_found_out(device: EmulatedDevice) -> None:
    memory = device.allocate(396)
    module = device.module(b"", {"count": 0})
    with pytest.raises(AssertionError, match="count wrote outside of 396 bytes"):
        module.launch(STEP, [0, memory.address])


def test_memory_that_nobody_holds_is_gone(device: EmulatedDevice) -> None:
    memory = device.allocate(400)
    address = memory.address
    assert device.held == 400
    del memory
    assert device.held == 0
    module = device.module(b"", {"count": 0})
    with pytest.raises(AssertionError, match=hex(address)):
        module.launch(STEP, [0, address])


def test_a_kernel_that_the_cubin_lacks_is_an_error(device: EmulatedDevice) -> None:
    with pytest.raises(ArtifactError, match="no kernel 'other'"):
        device.module(b"", {"other": 0})


def test_memory_is_not_taken_while_work_is_captured(device: EmulatedDevice) -> None:
    with pytest.raises(AssertionError, match="memory was asked for while work is captured"):
        device.capture(lambda: device.allocate(8))


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16], ids=str)
@pytest.mark.parametrize("transposed", [True, False])
def test_products_of_parts_of_matrices(
    device: EmulatedDevice, dtype: DType, transposed: bool
) -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2, 3, 9)).astype(NUMPY[dtype])
    b = rng.normal(size=(2, 5, 8) if transposed else (2, 7, 6)).astype(NUMPY[dtype])
    c = np.full((2, 3, 6), -1, NUMPY[dtype])
    places = [device.allocate(x.nbytes) for x in (a, b, c)]
    for place, values in zip(places, (a, b, c), strict=True):
        device.write(place.address, values)
    none = Address("null")
    step = GemmStep(
        *(none, none, none, 3, 5, 7, 9, b.shape[2], 6, 2, 27, b[0].size, 18),
        transposed=transposed,
        dtype=dtype,
        out=dtype,
    )
    device.gemm(step, *(place.address for place in places))
    device.read(places[2].address, c)
    right = b[:, :5, :7].swapaxes(1, 2) if transposed else b[:, :7, :5]
    want = a[:, :, :7].astype(np.float64) @ right.astype(np.float64)
    bound = {DType.F32: 1e-6, DType.F16: 1e-3, DType.BF16: 8e-3}[dtype]
    np.testing.assert_allclose(c[:, :, :5].astype(np.float64), want, rtol=bound, atol=bound)
    assert (c[:, :, 5] == ml_dtypes.bfloat16(-1)).all()
