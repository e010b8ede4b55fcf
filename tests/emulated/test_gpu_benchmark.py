"""What of benchmarks/gpu.py needs no card: its models are right, and its rows are whole."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlx_ray.compiler.cpu import zig
from rlx_ray.compiler.cuda import nvrtc
from rlx_ray.errors import DeviceError, DeviceLost
from rlx_ray.runtime.device_context import DeviceContext
from rlx_ray.target import target
from tests.support.cuda_device import EmulatedDevice
from tests.support.needs import needs

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    needs(zig.installed_version(), "the C compiler is missing: pip install 'rlx_ray[build]'")
    needs(nvrtc.installed_version(), "NVRTC is missing: pip install 'rlx_ray[cuda13]'")
    monkeypatch.syspath_prepend(FOLDER)
    import gpu

    return gpu


def on_host(gpu, device: EmulatedDevice):
    """Loading that tells the emulated device what each cubin is made of."""

    def load(model, artifact, resident):
        code, text = (gpu.blob_of(artifact, role) for role in ("code", "text"))
        device.made_of(code, text.decode())
        return gpu.Model.load(model, artifact, resident)

    return load


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["f32", "f16", "bf16"])
def test_the_small_models_are_right(gpu, tmp_path: Path, monkeypatch, precision: str) -> None:
    monkeypatch.setattr(gpu, "LIMIT", {precision: gpu.LIMIT[precision]})
    device = EmulatedDevice(tmp_path, level="-O1")
    errors, wrong = gpu.correct(DeviceContext(device), target("cuda-sm_90"), on_host(gpu, device))
    names = {f"tiny-bert {precision}", f"tiny-llama {precision}"}
    assert (set(errors), wrong) == (names, {})
    monkeypatch.setattr(gpu, "LIMIT", {precision: 1e-9})
    _, wrong = gpu.correct(DeviceContext(device), target("cuda-sm_90"), on_host(gpu, device))
    assert set(wrong) == names
    assert all(reason.startswith("relative error") for reason in wrong.values())


def test_a_measured_case_makes_a_whole_row(gpu, tmp_path: Path) -> None:
    device = EmulatedDevice(tmp_path, level="-O1")
    case = gpu.Case("tiny-llama", "bf16", "decode:b1:s1:p63", 32)
    model = gpu.Model(case.model, target("cuda-sm_90"), case.precision)
    own = gpu.measure(case, model, DeviceContext(device), 0.01, on_host(gpu, device))
    assert own["ms"] > 0
    assert own["first_answer_ms"] > 0
    hidden, inner, vocab = 64, 96, 320
    layer = hidden * (64 + 2 * 32) + hidden * hidden + 3 * hidden * inner
    assert own["matrix_numbers"] == 2 * layer
    assert own["read_bytes"] == 2 * (2 * layer + hidden * vocab) + 4 * 5 * hidden
    big = gpu.Case("llama-1b", "bf16", "decode:b1:s1:p1023", 512)
    torch = {"torch_eager": 3.0, "torch_compile": 2.0, "torch_compile_warm": 900.0}
    made = gpu.row(big, {**own, "ms": 1.0, "read_bytes": 1e9}, torch, {"copy_gb_s": 2000.0})
    assert made["ratio"] == 2.0
    assert made["share_of_bandwidth"] == 0.5
    assert made["torch_compile_warm_ms"] == 900.0
    json.dumps(made)


def test_a_case_that_fails_takes_no_row_from_the_others(gpu, monkeypatch) -> None:
    met = iter([DeviceError("no"), None, ZeroDivisionError("odd"), DeviceLost("gone"), None])

    def measure(*_: object) -> dict[str, float]:
        error = next(met)
        if error:
            raise error
        return {"ms": 1.0}

    monkeypatch.setattr(gpu, "measure", measure)
    given = (list(gpu.CASES[:5]), None, target("cuda-sm_90"), 0.01)
    own, failed = gpu.measured(*given, time.monotonic() + 60)
    assert list(own) == [gpu.CASES[1]]
    said = ["DeviceError: no", "ZeroDivisionError: odd", "DeviceLost: gone"]
    assert list(failed.values()) == [*said, "the device was lost before"]
    own, failed = gpu.measured(*given, time.monotonic() - 1)
    assert (own, set(failed.values())) == ({}, {"the time was over"})


def test_every_case_is_one_that_can_be_built(gpu) -> None:
    for case in gpu.CASES:
        model = gpu.Model(case.model, target("cuda-sm_90"), case.precision)
        assert model.info.params


def test_without_a_device_it_ends_with_the_reason() -> None:
    from rlx_ray.runtime import cuda

    if cuda.visible_devices().archs:
        pytest.skip("a CUDA device is here")
    done = subprocess.run(
        [sys.executable, FOLDER / "gpu.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("benchmarks/gpu.py: CUDA device 0 is not there: ")
    assert len(done.stderr.splitlines()) == 1
