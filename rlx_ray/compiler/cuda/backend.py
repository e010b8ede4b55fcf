"""The CUDA backend: launches over one arena, one CUDA unit, and NVRTC."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlx_ray.artifact.manifest import BindingManifest
from rlx_ray.compiler.cuda import emit, nvrtc, resources
from rlx_ray.compiler.cuda.launches import ALIGNMENT, Launches
from rlx_ray.compiler.cuda.lower import drop_single_rows, lower
from rlx_ray.compiler.cuda.printer import launches_text
from rlx_ray.compiler.cuda.verify import verify_launches
from rlx_ray.compiler.ir.memory import MemoryPlan, bind
from rlx_ray.compiler.ir.mir import LOGICAL, Mir
from rlx_ray.compiler.ir.program import Backend, Order, Step
from rlx_ray.target import Target, Toolchain

_PROBE = """#include <cuda_fp16.h>
extern "C" __global__ void rlx_probe(__half *x) { x[threadIdx.x] = __float2half(1.0f); }
"""


def _passes(order: Order) -> tuple[Step, ...]:
    return (("drop_single_rows", drop_single_rows),)


def _lower(mir: Mir, order: Order) -> Launches:
    return lower(mir, order.profile, order.formats, order.names)


def _binding(program: Launches) -> BindingManifest:
    """A launch plan names its kernels itself, and has no memory for each thread."""
    tensors = bind(program.inputs), bind(program.params), bind(program.outputs)
    return BindingManifest(*tensors, program.arena.size, 0, ALIGNMENT, "", program.page)


def _emit(program: Launches, target: Target) -> str:
    return emit.emit(program)


def _beside(program: Launches, target: Target, toolchain: Toolchain) -> Mapping[str, bytes]:
    return {"plan": emit.plan(program, target).dumps()}


def _printer(program: Launches, target: Target) -> Mapping[str, Callable[[], Any]]:
    return {
        "launches": lambda: launches_text(program),
        "resources": lambda: resources.report(program.kernels, target),
    }


def _memory(program: Launches) -> Mapping[str, MemoryPlan]:
    return {"arena": program.arena}


def _probe(target: Target, toolchain: Toolchain) -> bytes:
    return nvrtc.compile(_PROBE, target.cpu, {})


BACKEND = Backend(
    supported=tuple(dict.fromkeys(LOGICAL.values())),
    passes=_passes,
    lower=_lower,
    verify=verify_launches,
    binding=_binding,
    emit=_emit,
    build=nvrtc.build,
    beside=_beside,
    printer=_printer,
    memory=_memory,
    check=nvrtc.check,
    refusal=nvrtc.refusal,
    probe=_probe,
)
