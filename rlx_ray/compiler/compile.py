"""compile(BuildSpec) -> Artifact: the one place where the stages meet."""

from __future__ import annotations

import platform
import resource
import time
from pathlib import Path

from rlx_ray.artifact.manifest import Artifact, BuildRecord
from rlx_ray.compiler import pipeline
from rlx_ray.compiler.backend import backend_for
from rlx_ray.compiler.graphs import BUILT_IN, builder
from rlx_ray.compiler.ir.program import Order
from rlx_ray.errors import CompileError
from rlx_ray.identity import build_id, packing_id
from rlx_ray.models.distribution import source as source_of
from rlx_ray.spec import SAYS, BuildSpec
from rlx_ray.target import ABI

OUTPUTS = ("embedding", "logits")
"""What a graph's outputs are called: a vector for each text, or the scores of the next token."""


def stages(spec: BuildSpec) -> pipeline.Stages:
    """The program after each stage, without building it.

    Raises:
        CompileError: the family's graph is not known here, or its outputs are not OUTPUTS.
    """
    hir = builder(spec.family)(spec.config_json)
    for name in hir.outputs:
        if name not in OUTPUTS:
            raise CompileError(
                f"the graph of family {spec.family!r} has an output {name!r}.",
                f"Call it {' or '.join(OUTPUTS)}.",
            )
    order = Order(
        spec.profile, spec.component.dispatch, spec.target, dict(spec.matrices), hir.outputs
    )
    binding = dict(spec.component.dim_binding)
    return pipeline.run(hir, binding, order, backend_for(spec.target))


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
    return Artifact.make(spec, backend.binding(program), blobs, record)


def _check(spec: BuildSpec) -> None:
    """Check that a spec was made by this compiler and by the families that are here."""
    here = {
        "build_id": build_id(),
        "abi": ABI,
        "packing": packing_id(spec.target.can.packing),
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
