"""The door to CuPy, against a CuPy of host memory: what is called, in which order, with what."""

from __future__ import annotations

import ctypes
import gc
import importlib
import threading

import numpy as np
import pytest

from rlx_ray.artifact.launch_plan import NULL, GemmStep, KernelStep
from rlx_ray.dtype import DType
from rlx_ray.errors import ArtifactError, DeviceError, DeviceLost, DeviceMemoryError
from rlx_ray.runtime import cuda
from rlx_ray.runtime.cublas import WORKSPACE
from rlx_ray.runtime.cuda_device import _STAGING, CudaDevice
from tests.support.cuda_emulator import NUMPY
from tests.support.fake_cupy import FakeCupy

STEP = KernelStep("norm", (3, 2, 1), 128, 60000, (NULL, NULL), "layer.0")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    made = FakeCupy("90", "86")
    monkeypatch.setattr(cuda, "has_driver", lambda: True)
    monkeypatch.setattr(cuda, "cupy", lambda: made)
    monkeypatch.setattr(cuda, "blas_library", lambda _: made.blas)
    return made


@pytest.fixture
def device(fake: FakeCupy) -> CudaDevice:
    made = CudaDevice()
    fake.calls.clear()
    return made


def test_devices_are_found_in_order(fake: FakeCupy) -> None:
    assert cuda.visible_devices() == cuda.Visible(("sm_90", "sm_86"))
    host = cuda.this_host()
    assert host.devices == ("sm_90", "sm_86")
    assert [t.name for t in host.ladder()[:3]] == ["cuda-sm_90", "cuda-sm_86", "cuda-sm_80"]
    assert CudaDevice(1).arch == "sm_86"


def test_versions_and_devices_are_told_with_and_without_a_driver(fake: FakeCupy) -> None:
    cards = tuple((arch, "Card", 80 << 30) for arch in ("sm_90", "sm_86"))
    assert cuda.installation() == cuda.Installation("13.2", "13.0", cards)
    fake.driver = 0
    assert cuda.installation() == cuda.Installation("13.2", "", ())
    assert cuda.this_host().no_device == "no NVIDIA driver is loaded"


def test_what_is_missing_is_a_reason_and_never_an_exception(
    fake: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.fails["count"] = 35
    assert cuda.visible_devices() == cuda.Visible((), "CUDA does not start: status 35")
    fake.archs = ()
    assert cuda.visible_devices().reason == "no CUDA device is visible"
    assert cuda.this_host().devices == ()
    with pytest.raises(DeviceError, match="device 0 is not there: no CUDA device is visible"):
        CudaDevice()
    monkeypatch.undo()

    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(cuda, "has_driver", lambda: True)
    monkeypatch.setattr(importlib, "import_module", absent)
    reason = cuda.visible_devices().reason
    assert "No module named 'cupy'" in reason
    assert "pip install 'rlx_ray[gpu13]'" in reason


def test_a_missing_cublas_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    made = FakeCupy("90")  # it has no attribute cublas, as CuPy when the library is missing
    made.cuda.runtime.runtimeGetVersion = lambda: 99000
    made.cuda.cublas = None
    monkeypatch.setattr(cuda, "has_driver", lambda: True)
    monkeypatch.setattr(cuda, "cupy", lambda: made)
    assert "cuBLAS 99 does not load: libcublas.so.99" in cuda.visible_devices().reason


def test_without_a_driver_cupy_is_not_even_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "has_driver", lambda: False)
    monkeypatch.setattr(cuda, "cupy", lambda: pytest.fail("it was loaded"))
    assert cuda.visible_devices() == cuda.Visible((), "no NVIDIA driver is loaded")


def test_the_machine_of_these_tests_says_what_it_has() -> None:
    found = cuda.visible_devices()
    assert bool(found.archs) != bool(found.reason)


def test_cublas_has_one_stream_and_one_workspace(fake: FakeCupy) -> None:
    device = CudaDevice()
    named = [call[0] for call in fake.calls if call[0].startswith("cublas")]
    assert named == ["cublasSetStream_v2", "cublasSetWorkspace_v2", "cublasSetMathMode"]
    assert fake.of("cublasSetStream_v2") == [(5, device.stream.ptr)]
    ((_, address, nbytes),) = fake.of("cublasSetWorkspace_v2")
    assert nbytes == WORKSPACE == fake.of("malloc")[-1][0]
    assert address % 256 == 0
    assert fake.of("cublasSetMathMode") == [(5, 16)]


def test_copies_there_and_back_are_whole_whatever_their_size(
    fake: FakeCupy, device: CudaDevice
) -> None:
    rng = np.random.default_rng(0)
    for nbytes in (0, 1, 1000, _STAGING, 2 * _STAGING + 7):
        values = rng.integers(0, 256, nbytes, np.uint8)
        values.flags.writeable = False
        memory = device.allocate(nbytes)
        device.write(memory.address, values)
        out = np.zeros(nbytes, np.uint8)
        device.read(memory.address, out)
        np.testing.assert_array_equal(out, values)
        assert memory.held.buffer.whole
    assert {stream for _, _, stream in fake.of("copy")} == {device.stream.ptr}


def test_small_copies_do_not_wait_and_staged_bytes_stay(fake: FakeCupy, device: CudaDevice) -> None:
    memory = device.allocate(1 << 20)
    for _ in range(4):
        device.write(memory.address, np.zeros(1 << 20, np.uint8))
    assert fake.of("synchronize") == []
    device.write(memory.address, np.zeros(1, np.uint8))
    assert len(fake.of("synchronize")) == 1
    whole = np.zeros((2, 3), np.int32)
    device.zero(memory.address, whole.nbytes)
    device.read(memory.address, whole)
    assert fake.of("set") == [(0, 24, device.stream.ptr)]
    assert len(fake.of("synchronize")) == 2
    with pytest.raises(AssertionError, match="contiguous"):
        device.read(memory.address, whole.T)


def test_memory_is_given_back_with_its_holder(fake: FakeCupy, device: CudaDevice) -> None:
    before = fake.held["memory"]
    memory = device.allocate(1000)
    assert fake.held["memory"] == before + 1000
    del memory
    gc.collect()
    assert fake.held["memory"] == before


def test_kernels_get_addresses_on_the_devices_stream(fake: FakeCupy, device: CudaDevice) -> None:
    module = device.module(b"cubin", {"norm": 60000, "add": 0})
    assert fake.of("load") == [(b"cubin",)]
    assert fake.of("attribute") == [(4, 8, 60000), (3, 8, 0)]
    module.launch(STEP, [4096, 0])
    assert fake.of("launch") == [("norm", (3, 2, 1), (128, 1, 1), (4096, 0), 60000, 77)]


@pytest.mark.parametrize(
    ("call", "status", "kind", "message"),
    [
        ("load", 209, DeviceError, "the device refused the code for sm_90: status 209"),
        ("get_function", 500, ArtifactError, "does not fit its plan: .* kernel 'norm'"),
        ("attribute", 1, ArtifactError, "kernel 'norm' with 100 bytes of shared memory"),
    ],
)
def test_code_that_is_refused_says_by_whom(
    fake: FakeCupy, device: CudaDevice, call: str, status: int, kind: type, message: str
) -> None:
    fake.fails[call] = status
    with pytest.raises(kind, match=message) as caught:
        device.module(b"cubin", {"norm": 100})
    assert type(caught.value) is kind


def test_code_is_unloaded_under_the_context_on_any_thread(
    fake: FakeCupy, device: CudaDevice
) -> None:
    held = [device.module(b"cubin", {"norm": 0, "other": 0})]
    assert fake.of("unload") == []
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert fake.of("unload") == [(True,)]


def test_after_a_fault_leaving_a_call_fails_too_and_is_typed(
    fake: FakeCupy, device: CudaDevice
) -> None:
    memory = device.allocate(8)
    fake.lost = fake.fails["copy"] = 700
    with pytest.raises(DeviceLost, match="a copy to the device"):
        device.write(memory.address, np.zeros(8, np.uint8))
    with pytest.raises(DeviceLost, match="zeroes"):
        device.zero(memory.address, 8)


@pytest.mark.parametrize(
    ("status", "kind"), [(2, DeviceMemoryError), (700, DeviceLost), (1, DeviceError)]
)
def test_statuses_are_typed(
    fake: FakeCupy, device: CudaDevice, status: int, kind: type[DeviceError]
) -> None:
    module = device.module(b"cubin", {"norm": 0})
    memory = device.allocate(8)
    graph = device.capture(lambda: None)
    calls = {
        "malloc": lambda: device.allocate(8),
        "launch": lambda: module.launch(STEP, [0, 0]),
        "copy": lambda: device.write(memory.address, np.zeros(8, np.uint8)),
        "synchronize": lambda: device.read(memory.address, np.zeros(8, np.uint8)),
        "set": lambda: device.zero(memory.address, 8),
        "graph": graph.replay,
        "end_capture": lambda: device.capture(lambda: None),
    }
    for name, call in calls.items():
        fake.fails[name] = status
        with pytest.raises(DeviceError) as caught:
            call()
        assert type(caught.value) is kind, name
    for name in ("load", "get_function") if kind is not DeviceError else ("load",):
        fake.fails[name] = status
        with pytest.raises(kind):
            device.module(b"cubin", {"norm": 0})
    assert fake.held["current"] == 0


def test_a_capture_holds_what_is_enqueued_and_ends_on_failure(
    fake: FakeCupy, device: CudaDevice
) -> None:
    module = device.module(b"cubin", {"norm": 0})
    fake.calls.clear()
    graph = device.capture(lambda: module.launch(STEP, [1, 2]))
    assert [call[0] for call in fake.calls] == ["begin_capture", "launch", "end_capture"]
    graph.replay()
    assert fake.of("graph") == [(device.stream.ptr,)]
    fake.fails["launch"] = 1
    with pytest.raises(DeviceError, match=r"refused kernel 'norm' of 'layer\.0'"):
        device.capture(lambda: module.launch(STEP, [1, 2]))
    assert not device.stream.capturing


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16], ids=str)
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_row_major_products_are_column_major_ones_turned_round(
    fake: FakeCupy, device: CudaDevice, dtype: DType, transposed: bool, batch: int
) -> None:
    m, n, k, lda, ldb, ldc = 3, 5, 7, 9, 8, 6
    rng = np.random.default_rng(0)
    a = rng.normal(size=(batch, m, lda)).astype(NUMPY[dtype])
    b = rng.normal(size=(batch, n if transposed else k, ldb)).astype(NUMPY[dtype])
    c = np.full((batch, m, ldc), -1, np.float32)
    places = [device.allocate(x.nbytes) for x in (a, b, c)]
    for place, values in zip(places, (a, b, c), strict=True):
        device.write(place.address, values)
    step = GemmStep(
        *(NULL, NULL, NULL, m, n, k, lda, ldb, ldc, batch, a[0].size, b[0].size, c[0].size),
        transposed=transposed,
        dtype=dtype,
    )
    device.gemm(step, *(place.address for place in places))
    device.read(places[2].address, c)
    right = b[:, :, :k].swapaxes(1, 2) if transposed else b[:, :, :n]
    want = a[:, :, :k].astype(np.float64) @ right.astype(np.float64)
    np.testing.assert_allclose(c[:, :, :n], want, rtol=1e-6, atol=1e-6)
    assert (c[:, :, n:] == -1).all()
    name = "cublasGemmEx" if batch == 1 else "cublasGemmStridedBatchedEx"
    assert len(fake.of(name)) == 1


def test_float32_factors_are_rounded_to_tf32_only_on_request(
    fake: FakeCupy, device: CudaDevice
) -> None:
    memory = device.allocate(4096)
    for dtype, tf32, compute in (
        (DType.F32, False, 68),
        (DType.F32, True, 77),
        (DType.F16, True, 68),
    ):
        step = GemmStep(NULL, NULL, NULL, 1, 1, 1, 1, 1, 1, dtype=dtype, tf32=tf32)
        device.gemm(step, *(memory.address,) * 3)
        assert fake.of("cublasGemmEx")[-1][-2:] == (compute, -1)


def test_what_cublas_refuses_is_typed(fake: FakeCupy, device: CudaDevice) -> None:
    def refuse(status: int) -> None:
        device._blas._library.cublasGemmEx = lambda *_: status
        device.gemm(GemmStep(NULL, NULL, NULL, 1, 1, 1, 1, 1, 1), 0, 0, 0)

    with pytest.raises(DeviceMemoryError, match="cublasGemmEx had no memory"):
        refuse(3)
    with pytest.raises(DeviceError, match="failed with status 15"):
        refuse(15)
    fake.fails["cublasCreate_v2"] = 1
    with pytest.raises(DeviceError, match="cublasCreate_v2 failed with status 1"):
        CudaDevice()


def test_the_argument_types_are_those_of_the_c_declarations() -> None:
    """A pointer passed as an int would lose its upper half."""
    from rlx_ray.runtime.cublas import _SIGNATURES

    pointers = {
        "cublasGemmEx": (0, 6, 7, 10, 13, 14),
        "cublasGemmStridedBatchedEx": (0, 6, 7, 11, 15, 16),
    }
    counts = {"cublasGemmEx": 19, "cublasGemmStridedBatchedEx": 23}
    for name, places in pointers.items():
        kinds = _SIGNATURES[name]
        assert len(kinds) == counts[name]
        assert tuple(i for i, k in enumerate(kinds) if k is ctypes.c_void_p) == places
    strides = _SIGNATURES["cublasGemmStridedBatchedEx"]
    assert [i for i, k in enumerate(strides) if k is ctypes.c_longlong] == [10, 14, 19]
