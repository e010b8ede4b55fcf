"""A stable text of launches, for `explain`, golden tests and reports."""

from __future__ import annotations

from rlx_ray.artifact.launch_plan import GemmStep
from rlx_ray.compiler.cuda.constants import Value
from rlx_ray.compiler.cuda.kernel_table import Instance
from rlx_ray.compiler.cuda.launches import Launches
from rlx_ray.compiler.ir import expr


def launches_text(program: Launches) -> str:
    """Tensors, then a line for each launch, then the memory plan."""
    lines = []
    for what, tensors in (("input", program.inputs), ("output", program.outputs)):
        lines += [f"{what} {t.name}: {t.dtype}{list(t.shape)} at {t.offset}" for t in tensors]
    for at, step in enumerate(program.steps):
        text = _gemm_text(step) if isinstance(step, GemmStep) else _kernel_text(step.kernel)
        lines.append(f"{at}: {step.origin}: {text}")
    plan = program.arena
    share = plan.size / plan.bound if plan.bound else 1.0
    lines.append(f"arena: {plan.size} bytes, liveness bound {plan.bound} bytes ({share:.3f} x)")
    return "\n".join(lines) + "\n"


def _gemm_text(step: GemmStep) -> str:
    batch = f"{step.batch} x " if step.batch > 1 else ""
    kinds = f"{step.dtype}" + (f" to {step.out}" if step.out is not step.dtype else "")
    return f"gemm {batch}[{step.m}, {step.k}] x [{step.k}, {step.n}] {kinds}" + (
        " tf32" if step.tf32 else ""
    )


def _kernel_text(kernel: Instance) -> str:
    constants = " ".join(
        f"{name}={_value_text(value)}"
        for name, value in kernel.constants
        if value not in (0, 0.0) and name != "block"
    )
    how = kernel.launch
    shared = f" shared {how.shared}" if how.shared else ""
    grid = ",".join(str(extent) for extent in how.grid)
    return f"{kernel.template} {constants} | grid {grid} block {how.block}{shared}"


def _value_text(value: Value) -> str:
    match value:
        case expr.In() | expr.Acc() | expr.Lit() | expr.Fn():
            return expr.text(value)
        case tuple():
            return "[" + ", ".join(f"{o.t}@{o.at}" + (" + i" * o.step) for o in value) + "]"
        case _:
            return str(value)
