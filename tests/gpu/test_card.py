"""A real card does what the runtime asks of a device: copies, products, graphs, release, errors."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from rlx_ray.artifact.launch_plan import NULL, GemmStep
from rlx_ray.compiler.cuda.kernel_table import instance
from rlx_ray.dtype import DType
from rlx_ray.errors import ArtifactError, DeviceError, DeviceMemoryError
from rlx_ray.runtime.cuda_device import CudaDevice
from tests.support.card_unit import CardUnit
from tests.support.cuda_emulator import NUMPY
from tests.support.needs import needs_card

needs_card()

BOUND = {DType.F32: 1e-5, DType.F16: 2e-3, DType.BF16: 1e-2}


def test_copies_there_and_back(card: CudaDevice) -> None:
    rng = np.random.default_rng(0)
    for nbytes in (1, 1000, (4 << 20) + 1, 33 << 20):
        values = rng.integers(0, 256, nbytes, np.uint8)
        memory = card.allocate(nbytes)
        card.write(memory.address, values)
        out = np.zeros(nbytes, np.uint8)
        card.read(memory.address, out)
        np.testing.assert_array_equal(out, values)
        card.zero(memory.address, nbytes)
        card.read(memory.address, out)
        assert not out.any()


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16], ids=str)
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("captured", [False, True])
def test_products(
    card: CudaDevice, dtype: DType, transposed: bool, batch: int, captured: bool
) -> None:
    m, n, k = 48, 80, 64
    rng = np.random.default_rng(0)
    a = rng.normal(size=(batch, m, k)).astype(NUMPY[dtype])
    b = rng.normal(size=(batch, n, k) if transposed else (batch, k, n)).astype(NUMPY[dtype])
    c = np.zeros((batch, m, n), NUMPY[dtype])
    places = [card.allocate(x.nbytes) for x in (a, b, c)]
    for place, values in zip(places, (a, b, c), strict=True):
        card.write(place.address, values)
    step = GemmStep(
        *(NULL, NULL, NULL, m, n, k, k, b.shape[2], n, batch, m * k, n * k, m * n),
        transposed=transposed,
        dtype=dtype,
        out=dtype,
    )

    def enqueue() -> None:
        card.gemm(step, *(place.address for place in places))

    enqueue()
    if captured:
        graph = card.capture(enqueue)
        card.zero(places[2].address, c.nbytes)
        graph.replay()
    card.read(places[2].address, c)
    right = b.swapaxes(1, 2) if transposed else b
    want = a.astype(np.float64) @ right.astype(np.float64)
    error = np.linalg.norm(c.astype(np.float64) - want) / np.linalg.norm(want)
    assert error <= BOUND[dtype]


def test_memory_is_given_back_at_once(card: CudaDevice) -> None:
    def free() -> int:
        return int(card._cuda.runtime.memGetInfo()[0])

    gc.collect()
    before = free()
    memory = card.allocate(256 << 20)
    assert before - free() >= 256 << 20
    del memory
    gc.collect()
    assert abs(free() - before) <= 4 << 20


def test_a_full_card_is_a_typed_error_and_the_next_call_works(card: CudaDevice) -> None:
    with pytest.raises(DeviceMemoryError, match="no room"):
        card.allocate(1 << 50)
    memory = card.allocate(8)
    card.write(memory.address, np.arange(2, dtype=np.int32))
    out = np.zeros(2, np.int32)
    card.read(memory.address, out)
    assert out.tolist() == [0, 1]


def test_broken_code_and_missing_kernels_are_refused(card: CudaDevice) -> None:
    with pytest.raises(DeviceError, match="refused the code"):
        card.module(b"no cubin", {})
    unit = CardUnit(card, [instance("iota", "count", rows=4, period=2)])
    with pytest.raises(ArtifactError, match="kernel 'other'"):
        card.module(unit.code, {"other": 0})
    assert unit.run("count", y=np.zeros(4, np.int32))["y"].tolist() == [0, 1, 0, 1]
