"""compile(BuildSpec) -> Artifact: the one place where the stages meet."""

from __future__ import annotations

import platform
import resource
import time
from pathlib import Path

from rlx_ray.artifact import Artifact, Binding, BindingManifest, BuildRecord
from rlx_ray.compiler import pipeline
from rlx_ray.compiler.backend import Program, backend_for
from rlx_ray.compiler.cpu.c_regions import ENTRY
from rlx_ray.compiler.cpu.lir import Lir
from rlx_ray.compiler.cuda import launches
from rlx_ray.compiler.graphs import BUILT_IN, builder
from rlx_ray.compiler.ir.memory import Tensor
from rlx_ray.errors import CompileError
from rlx_ray.identity import build_id, packing_id
from rlx_ray.models.distribution import source as source_of
from rlx_ray.spec import SAYS, BuildSpec
from rlx_ray.target import ABI

ALIGNMENT = 64
TAIL = 256
"""Bytes behind every part of the arena: kernels may read one register past a buffer's end."""


def stages(spec: BuildSpec) -> pipeline.Stages:
    """The program after each stage, without building it."""
    backend = backend_for(spec.target)
    hir = builder(spec.family)(spec.config_json)
    return pipeline.run(
        hir,
        dict(spec.component.dim_binding),
        spec.profile,
        spec.component.dispatch,
        backend.supported,
        spec.target,
        dict(spec.matrices),
    )


def source(spec: BuildSpec, program: Program) -> str:
    """The source text of a variant."""
    return backend_for(spec.target).emit(program, spec.target)


def compile(spec: BuildSpec) -> Artifact:
    """Compile one variant: the same spec gives the same blobs, byte for byte, anywhere.

    Args:
        spec: all that the result depends on.

    Raises:
        CompileError: the spec is for another compiler, the family is unknown here, the toolchain
            is not the pinned one, or the variant does not compile.
    """
    started = time.monotonic()
    _check(spec)
    backend = backend_for(spec.target)
    program = stages(spec).program
    text = backend.emit(program, spec.target)
    blobs = {
        "code": backend.build(text, spec.target, spec.toolchain),
        **backend.beside(program, spec.target, spec.toolchain),
        "text": text.encode(),
    }
    record = BuildRecord(
        round(time.monotonic() - started, 3),
        _peak_memory(),
        f"{platform.machine()} {platform.system()}",
    )
    return Artifact.make(spec, binding(program), blobs, record)


def _check(spec: BuildSpec) -> None:
    """Check that a spec was made by this compiler and by the families that are here."""
    here = {
        "build_id": build_id(),
        "abi": ABI,
        "packing": packing_id(spec.target.kind),
        "family_source": None if spec.family in BUILT_IN else source_of(spec.family),
    }
    for name, own in here.items():
        wanted = getattr(spec, name)
        if wanted != own:
            raise CompileError(
                f"the spec was made where {name} is {wanted}, here it is {own}: {SAYS[name]}.",
                "Install the same version on the node that plans and on the node that builds.",
            )


def _peak_memory() -> int:
    """Most resident bytes of this process, where NVRTC runs, or of a child, where zig does."""
    # ru_maxrss of this process begins with what its parent had when it forked.
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    own = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return max(int(own), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024


def binding(program: Program) -> BindingManifest:
    """The binding manifest of a program; one of launches has neither scratch nor entry point."""
    tensors = (program.inputs, program.params, program.outputs)
    inputs, params, outputs = (tuple(_bind(t) for t in group) for group in tensors)
    if not isinstance(program, Lir):
        size = program.arena.size
        return BindingManifest(
            inputs, params, outputs, size, 0, launches.ALIGNMENT, "", program.page
        )
    return BindingManifest(
        inputs,
        params,
        outputs,
        program.arena.size + TAIL,
        (program.scratch.size + TAIL + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT,
        ALIGNMENT,
        ENTRY,
        program.page,
    )


def _bind(tensor: Tensor) -> Binding:
    return Binding(tensor.name, tensor.dtype, tensor.shape, tensor.offset, tensor.layout)
