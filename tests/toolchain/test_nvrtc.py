"""CUDA kernels compiled by NVRTC for every architecture, on a machine without a GPU."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from rlx_ray.compiler.cuda import nvrtc
from rlx_ray.compiler.cuda.kernel_table import TEMPLATES, Instance, instance
from rlx_ray.compiler.cuda.source import KERNELS, sources, unit
from rlx_ray.dtype import DType
from rlx_ray.errors import CompileError, ToolchainMismatch, ToolchainMissing
from rlx_ray.target import CUDA_TARGETS, target, toolchain_for
from tests.support.cuda_instances import every, sets
from tests.support.needs import needs

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "compute_80")
ALL = [one for t in (DType.F32, DType.F16, DType.BF16) for one in every(t)]
SMALL = instance("rms_norm", "small", t=DType.F16, rows=4, n=64, eps=1e-5)


@pytest.fixture(autouse=True, scope="module")
def _nvrtc() -> None:
    needs(nvrtc.installed_version(), "NVRTC is missing: pip install 'rlx_ray[cuda13]'")


@pytest.fixture(scope="module")
def built() -> dict[str, bytes]:
    """One unit of all kernels for each architecture, as many at a time as there are processors."""
    text, headers = unit(ALL), sources()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(lambda arch: nvrtc.compile(text, arch, headers), ARCHITECTURES)
        return dict(zip(ARCHITECTURES, made, strict=True))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_compiles_for_every_architecture(built: dict[str, bytes], arch: str) -> None:
    for one in ALL:
        assert one.name.encode() in built[arch]
    assert built[arch].startswith(b"//" if arch == "compute_80" else b"\x7fELF")
    assert b"site-packages" not in built[arch]
    assert b"unit.cu" not in built[arch]


@pytest.mark.parametrize("one", every(DType.F16), ids=lambda one: one.name)
def test_every_kernel_compiles_alone(one: Instance) -> None:
    assert one.name.encode() in nvrtc.compile(unit([one]), "compute_80", sources())


@pytest.mark.parametrize("t", [DType.F32, DType.F16, DType.BF16], ids=str)
def test_launches_are_within_what_every_architecture_has(t: DType) -> None:
    for one in every(t):
        assert one.launch.block % 32 == 0
        assert 32 <= one.launch.block <= 1024
        assert one.launch.shared <= 99 << 10, one.name
        assert min(one.launch.grid) >= 1
        assert max(one.launch.grid[1:]) < 1 << 16


def test_every_kernel_has_instances_and_says_what_it_takes() -> None:
    assert set(TEMPLATES) == {f.stem for f in KERNELS.glob("*.cu")} == set(sets(DType.F16))
    for one in every(DType.F16):
        text = (KERNELS / f"{one.template}.cu").read_text(encoding="utf-8")
        head, _, _ = text.partition("*/")
        for name, _ in one.constants:
            macro = f"RLX_{name.upper()}".partition("(")[0]
            assert re.search(rf"\b{macro}\b", head), f"{one.template}: {macro} is not explained"
        described = re.search(r"Arguments: (.*?)Launch: ", head, re.S)
        assert described, one.template
        for argument in one.arguments:
            assert re.search(rf"\b{argument}\b", described[1]), f"{one.template}: {argument}"


def test_ptx_is_for_every_driver_of_its_major(built: dict[str, bytes]) -> None:
    head = built["compute_80"][:2000].decode().splitlines()
    assert [line for line in head if line.startswith(".version")] == [".version 9.0"]
    assert ".target sm_80" in head


@pytest.mark.parametrize("arch", ["sm_90", "compute_80"])
def test_two_compilations_give_equal_bytes(arch: str) -> None:
    one, two = (nvrtc.compile(unit([SMALL]), arch, sources()) for _ in range(2))
    assert one == two


def test_nvrtc_says_what_it_is_and_knows() -> None:
    assert nvrtc.version() >= (12, 8)
    assert str(nvrtc.installed_version()).startswith("{}.{}.".format(*nvrtc.version()))
    assert set(ARCHITECTURES) <= set(nvrtc.supported())


def test_an_error_names_the_kernel_and_the_line() -> None:
    files = sources()
    lines = files["rms_norm.cu"].splitlines()
    line = next(i for i, text in enumerate(lines) if "const float scale" in text)
    lines[line] = lines[line].replace("float", "flot")
    files["rms_norm.cu"] = "\n".join(lines)
    other = instance("layer_norm", "other", t=DType.F16, rows=4, n=64, eps=1e-5)
    with pytest.raises(CompileError) as found:
        nvrtc.compile(unit([other, SMALL]), "sm_80", files)
    message = str(found.value)
    assert f"kernel 'small' for sm_80, rms_norm.cu line {line + 1}" in message
    assert '"flot" is undefined' in message


def test_an_error_in_the_unit_names_the_kernel_before_it() -> None:
    text = unit([SMALL]) + "\nsurprise\n"
    with pytest.raises(CompileError, match=r"kernel 'small' for sm_80, unit\.cu line \d+"):
        nvrtc.compile(text, "sm_80", sources())


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(CompileError, match=r"'sm_42' is not one of NVRTC .*sm_80"):
        nvrtc.compile(unit([SMALL]), "sm_42", sources())


def test_constants_are_checked_when_an_instance_is_made() -> None:
    with pytest.raises(CompileError, match=r"'rms_nrm' is not known.*'rms_norm'"):
        instance("rms_nrm", "k")
    with pytest.raises(CompileError, match="needs the constants rows, eps"):
        instance("rms_norm", "k", t=DType.F16, n=64)
    with pytest.raises(CompileError, match="no constant 'keys'"):
        instance("rms_norm", "k", t=DType.F16, rows=1, n=64, eps=1e-5, keys=16)
    with pytest.raises(CompileError, match=r"no constant 'residul'.*'residual'"):
        instance("rms_norm", "k", t=DType.F16, rows=1, n=64, eps=1e-5, residul=1)


def test_constants_that_disagree_are_refused_with_the_reason() -> None:
    wrong = instance("matvec", "wrong", t=DType.F16, rows=1, n=64, k=72, bits=4)
    with pytest.raises(CompileError, match=r"kernel 'wrong'(?s:.*)K is not whole blocks"):
        nvrtc.compile(unit([wrong]), "sm_80", sources())


def test_a_machine_without_nvrtc_is_told_what_to_install(monkeypatch) -> None:
    nvrtc._library.cache_clear()
    monkeypatch.setattr(nvrtc, "installed_version", lambda: None)
    with pytest.raises(
        ToolchainMissing, match=r"'nvrtc' is not on this machine.*rlx_ray\[cuda13\]"
    ):
        nvrtc.compile("", "sm_80", {})
    nvrtc._library.cache_clear()


def test_the_pinned_toolchain_is_told_from_another() -> None:
    wanted = target("cuda-sm_90")
    toolchain = toolchain_for(wanted, {})
    nvrtc.check(toolchain)
    old = toolchain_for(wanted, {"cuda": 12})
    with pytest.raises(ToolchainMismatch, match=r"'nvrtc' is 13.*pins 12.*nvrtc-cu12=="):
        nvrtc.check(old)
    other = replace(toolchain, flags=(*toolchain.flags[:-1], "headers=13.0.1"))
    with pytest.raises(ToolchainMismatch, match=r"headers is 13.*nvidia-cuda-runtime==13\.0\.1"):
        nvrtc.check(other)


def test_targets_unknown_to_nvrtc_are_refused_with_the_reason(monkeypatch) -> None:
    assert [nvrtc.refusal(one) for one in CUDA_TARGETS] == [""] * len(CUDA_TARGETS)
    old = replace(CUDA_TARGETS[0], cpu="sm_50")
    assert re.fullmatch(r"NVRTC 13\.\S+ does not compile for sm_50", nvrtc.refusal(old))
    nvrtc._library.cache_clear()
    monkeypatch.setattr(nvrtc, "installed_version", lambda: None)
    assert "rlx_ray[cuda13]" in nvrtc.refusal(CUDA_TARGETS[0])
    nvrtc._library.cache_clear()
