"""The CPU backend: regions of tiles as LIR, one C unit, and the pinned C compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rlx_ray.artifact.manifest import BindingManifest
from rlx_ray.compiler.cpu import c, zig
from rlx_ray.compiler.cpu.c_regions import ENTRY
from rlx_ray.compiler.cpu.lir import Lir
from rlx_ray.compiler.cpu.precision import lower_precision
from rlx_ray.compiler.cpu.printer import lir_text
from rlx_ray.compiler.cpu.schedule import schedule
from rlx_ray.compiler.cpu.verify import verify_lir
from rlx_ray.compiler.ir.memory import MemoryPlan, bind
from rlx_ray.compiler.ir.mir import LOGICAL, Mir
from rlx_ray.compiler.ir.program import Backend, Order, Step
from rlx_ray.target import Target, Toolchain

ALIGNMENT = 64
"""Bytes that the arena and every buffer in it are aligned to: one line of a cache."""

TAIL = 256
"""Bytes behind every part of the arena: kernels may read one register past a buffer's end."""

_PROBE = '__attribute__((visibility("default"))) int rlx_probe(void) { return 1; }\n'


def _passes(order: Order) -> tuple[Step, ...]:
    """Matmuls of quantised rows and packed weights, where something is not float32."""
    rest = order.profile.precision.compute
    if not order.formats and rest == "f32":
        return ()
    lowered = partial(lower_precision, formats=order.formats, rest=rest, target=order.target)
    return (("lower_precision", lowered),)


def _lower(mir: Mir, order: Order) -> Lir:
    return schedule(mir, order.target, names=order.names)


def _binding(lir: Lir) -> BindingManifest:
    return BindingManifest(
        bind(lir.inputs),
        bind(lir.params),
        bind(lir.outputs),
        lir.arena.size + TAIL,
        (lir.scratch.size + TAIL + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT,
        ALIGNMENT,
        ENTRY,
        lir.page,
    )


def _beside(lir: Lir, target: Target, toolchain: Toolchain) -> Mapping[str, bytes]:
    return {"pool": zig.build_pool(target, toolchain)}


def _printer(lir: Lir, target: Target) -> Mapping[str, Callable[[], Any]]:
    return {"lir": lambda: lir_text(lir)}


def _memory(lir: Lir) -> Mapping[str, MemoryPlan]:
    return {"arena": lir.arena, "scratch_per_thread": lir.scratch}


def _probe(target: Target, toolchain: Toolchain) -> bytes:
    return zig.compile_c(_PROBE, toolchain)


BACKEND = Backend(
    supported=tuple(dict.fromkeys(LOGICAL.values())),
    passes=_passes,
    lower=_lower,
    verify=verify_lir,
    binding=_binding,
    emit=c.emit,
    build=zig.build,
    beside=_beside,
    printer=_printer,
    memory=_memory,
    check=zig.check,
    refusal=lambda target: "",
    probe=_probe,
)
