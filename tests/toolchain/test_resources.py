"""What CUDA kernels take of a multiprocessor: none spills, and blocks fit as CUDA says."""

from __future__ import annotations

import pytest

from rlx_ray.compiler.cuda import nvrtc
from rlx_ray.compiler.cuda.constants import Value
from rlx_ray.compiler.cuda.kernel_table import Instance, named
from rlx_ray.compiler.cuda.resources import LIMITS, Resources, blocks, parse, usage
from rlx_ray.dtype import DType
from rlx_ray.errors import CompileError
from tests.support.needs import needs

SPILLS = 64
"""Bytes of local memory of a thread that are borne: ptxas spills a few numbers that loops do not
touch where that lets one more block onto a multiprocessor."""

F32, F16, BF16 = DType.F32, DType.F16, DType.BF16
WIDE: dict[str, Value] = {"n": 8192, "k": 2048, "gated": 1}
NARROW: dict[str, Value] = {"n": 2560, "k": 2048, "norm": 1, "eps": 1e-5}
LLAMA: dict[str, Value] = {"heads": 32, "kv_heads": 8, "table": 64, "page_stride": 1 << 20}
TURNED: dict[str, Value] = {"positions": 2048, "bias": 1, "gains": 1, "eps": 1e-6}


def _kernels() -> list[Instance]:
    """Of the encoders and decoders that configs name, those that hold most in registers."""
    encoder: dict[str, Value] = {"batch": 32, "seq": 128, "heads": 12, "kv_heads": 12, "bias": 1}
    norm: dict[str, Value] = {"eps": 1e-5, "residual": 1, "bias": 1, "sum": 1}
    prompt: dict[str, Value] = {"batch": 1, "seq": 512, **LLAMA}
    q4: dict[str, Value] = {"bits": 4, "offsets": 1}
    return [
        *(named("attention", t=t, dim=64, **encoder) for t in (F32, F16)),
        named("attention_cached", t=F32, dim=64, **prompt),
        named("attention_cached", t=BF16, dim=128, **prompt),
        *(named("attention_decode", t=BF16, dim=d, batch=4, seq=4, **LLAMA) for d in (128, 256)),
        named("attention_step", t=BF16, dim=128, batch=4, **LLAMA, **TURNED),
        *(named("matvec", t=F32, rows=32, **WIDE, **form) for form in ({}, q4)),
        *(named("matvec", t=BF16, rows=32, **WIDE, **form) for form in ({}, q4)),
        *(named("matvec", t=BF16, rows=1, **NARROW, bits=bits) for bits in (0, 4, 8)),
        named("matvec", t=BF16, rows=1, **NARROW, bits=6, halves=1),
        named("matvec", t=BF16, rows=1, **NARROW, bits=2, halves=1, offsets=1),
        *(named("layer_norm", t=F16, rows=rows, n=4096, **norm) for rows in (8, 4096)),
        named("sample", t=F32, rows=8, n=49152),
    ]


@pytest.fixture(autouse=True, scope="module")
def _nvrtc() -> None:
    needs(nvrtc.installed_version(), "NVRTC is missing: pip install 'rlx_ray[cuda13]'")


@pytest.mark.parametrize(
    "arch", ["sm_90", *(pytest.param(a, marks=pytest.mark.slow) for a in ("sm_80", "sm_120"))]
)
def test_no_kernel_of_a_model_spills_its_registers(arch: str) -> None:
    found = usage(_kernels(), arch)
    assert {one.kernel: one.resources for one in found if one.resources.stack > SPILLS} == {}
    assert all(one.blocks >= 1 and 0 < one.occupancy <= 1 for one in found)
    assert max(one.resources.registers for one in found) > 128


def test_blocks_fit_as_registers_warps_and_memory_allow() -> None:
    ampere, ada, hopper = (LIMITS[arch] for arch in ("sm_80", "sm_89", "sm_90"))
    assert blocks(ampere, 32, 256, 0) == 8  # 64 warps
    assert blocks(ada, 32, 256, 0) == 6  # 48 warps
    assert blocks(ampere, 16, 32, 0) == 32
    assert blocks(ada, 16, 32, 0) == 24
    assert blocks(hopper, 128, 256, 0) == 2
    assert blocks(hopper, 72, 288, 0) == 3  # 28 warps of 2304 registers
    assert blocks(hopper, 168, 288, 0) == 1
    assert blocks(hopper, 32, 128, 100 << 10) == 2
    assert blocks(ada, 32, 128, 99 << 10) == 1


def test_a_log_is_read_by_kernel_and_unknown_forms_are_refused() -> None:
    log = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_90'
ptxas info    : Function properties for one
ptxas         .     16 bytes stack frame, 24 bytes spill stores, 32 bytes spill loads
ptxas info    : Used 72 registers, used 1 barriers, 16 bytes cumulative stack size, 144 bytes smem
ptxas info    : Compiling entry function 'two' for 'sm_90'
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 0 barriers
"""
    assert parse(log) == {"one": Resources(72, 16, 24, 144), "two": Resources(30, 0, 0, 0)}
    with pytest.raises(CompileError, match="does not say what kernel 'two' takes"):
        parse(log.replace("Used 30", "Took 30"))


def test_ptx_and_unknown_architectures_are_refused() -> None:
    with pytest.raises(CompileError, match=r"registers of 'compute_80'.*sm_90"):
        usage(_kernels(), "compute_80")
