"""A stable text of each level, for `explain`, golden tests and reports."""

from __future__ import annotations

from rlx_ray.ir import expr
from rlx_ray.ir.cuda_kernels import Instance
from rlx_ray.ir.cuda_launch import Value
from rlx_ray.ir.hir import Hir
from rlx_ray.ir.launches import Launches
from rlx_ray.ir.lir import Call, Lir, Slot
from rlx_ray.ir.mir import Mir
from rlx_ray.launch_plan import GemmStep


def hir_text(hir: Hir) -> str:
    """One line per tensor and node, blocks as headings."""
    lines = [
        f"{what} {t.name}: {t.dtype}[{', '.join(map(str, t.shape))}]"
        for what, tensors in (("input", hir.inputs), ("param", hir.params))
        for t in tensors
    ]
    block = ""
    for node in hir.nodes:
        if node.block != block:
            block = node.block
            lines.append(f"{block}:")
        attrs = "".join(f" {k}={v}" for k, v in node.attrs)
        inputs = ", ".join(i or "-" for i in node.inputs)
        shape = ", ".join(map(str, node.shape))
        lines.append(f"  {node.name} = {node.op.value}({inputs}){attrs} -> [{shape}]")
    return "\n".join([*lines, f"output {', '.join(hir.outputs)}"]) + "\n"


def mir_text(mir: Mir) -> str:
    """One line per node: index, operation, inputs, attributes, shape, origin."""
    lines = []
    for index, node in enumerate(mir.nodes):
        attrs = "".join(
            f" {k}={expr.text(v) if isinstance(v, expr.Fn | expr.In | expr.Acc | expr.Lit) else v}"
            for k, v in node.attrs
        )
        inputs = ", ".join(f"%{i}" for i in node.inputs)
        lines.append(
            f"%{index} = {node.op.value}({inputs}){attrs} -> {node.dtype}{list(node.shape)}"
            f"  ; {node.origin}"
        )
    return "\n".join([*lines, "output " + ", ".join(f"%{i}" for i in mir.outputs)]) + "\n"


def lir_text(lir: Lir) -> str:
    """Tensors, then each region with its calls, then the memory plan."""
    names = {kernel: f"k{i}" for i, kernel in enumerate(lir.kernels)}
    lines = []
    for what, tensors in (("input", lir.inputs), ("output", lir.outputs)):
        lines += [f"{what} {t.name}: {t.dtype}{list(t.shape)} at {t.offset}" for t in tensors]
    for kernel, name in names.items():
        constants = " ".join(f"{k}={v}" for k, v in kernel.constants)
        tail = f" epilogue={expr.text(kernel.expr)}" if kernel.expr is not None else ""
        lines.append(f"kernel {name} = {kernel.template} {constants}{tail}")
    for i, region in enumerate(lir.regions):
        lines.append(f"region {i}: {region.tiles} tiles of {region.axis}; {region.reason}")
        lines += [f"  {_call_text(call, names[call.kernel])}" for call in region.all_calls]
    for what, plan in (("arena", lir.arena), ("scratch per thread", lir.scratch)):
        share = plan.size / plan.bound if plan.bound else 1.0
        lines.append(
            f"{what}: {plan.size} bytes, liveness bound {plan.bound} bytes ({share:.3f} x)"
        )
    return "\n".join(lines) + "\n"


def _call_text(call: Call, name: str) -> str:
    inputs = ", ".join(_slot_text(s) for s in (*call.inputs, *call.operands))
    return f"{_slot_text(call.output)} = {name}({inputs})  ; {call.origin}"


def _slot_text(slot: Slot | None) -> str:
    if slot is None:
        return "-"
    steps = ((slot.stride, "tile"), (slot.row, "row"), (slot.sequence, "sequence"))
    moves = f"+{slot.shift}" if slot.shift else ""
    moves += "".join(f"+{n}*{name}" for n, name in steps if n)
    return f"{slot.space.value}[{slot.offset}{moves}]"


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
