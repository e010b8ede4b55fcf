"""A stable text of LIR, for `explain`, golden tests and reports."""

from __future__ import annotations

from rlx_ray.compiler.cpu.lir import KernelCall, Lir, TileArgument
from rlx_ray.compiler.cpu.templates import Argument, Extent
from rlx_ray.compiler.ir import expr


def lir_text(lir: Lir) -> str:
    """Tensors, then each region with its calls, then the memory plan."""
    names = {kernel: f"k{i}" for i, kernel in enumerate(lir.kernels)}
    lines = []
    for what, tensors in (("input", lir.inputs), ("output", lir.outputs)):
        lines += [f"{what} {t.name}: {t.dtype}{list(t.shape)} at {t.offset}" for t in tensors]
    for kernel, name in names.items():
        arguments = " ".join(f"{k}={_argument_text(v)}" for k, v in kernel.arguments)
        tail = f" epilogue={expr.text(kernel.expr)}" if kernel.expr is not None else ""
        lines.append(f"kernel {name} = {kernel.template.name} {arguments}{tail}")
    for i, region in enumerate(lir.regions):
        lines.append(f"region {i}: {region.tiles} tiles of {region.axis}; {region.reason}")
        lines += [f"  {_call_text(call, names[call.kernel])}" for call in region.all_calls]
    for what, plan in (("arena", lir.arena), ("scratch per thread", lir.scratch)):
        share = plan.size / plan.bound if plan.bound else 1.0
        lines.append(
            f"{what}: {plan.size} bytes, liveness bound {plan.bound} bytes ({share:.3f} x)"
        )
    return "\n".join(lines) + "\n"


def _argument_text(value: Argument) -> str:
    return value.value if isinstance(value, Extent) else str(value)


def _call_text(call: KernelCall, name: str) -> str:
    inputs = ", ".join(_tile_argument_text(s) for s in (*call.inputs, *call.operands))
    return f"{_tile_argument_text(call.output)} = {name}({inputs})  ; {call.origin}"


def _tile_argument_text(argument: TileArgument | None) -> str:
    if argument is None:
        return "-"
    steps = ((argument.stride, "tile"), (argument.row, "row"), (argument.sequence, "sequence"))
    moves = f"+{argument.shift}" if argument.shift else ""
    moves += "".join(f"+{n}*{name}" for n, name in steps if n)
    return f"{argument.space.value}[{argument.offset}{moves}]"
