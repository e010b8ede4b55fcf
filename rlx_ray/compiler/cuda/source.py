"""CUDA text of kernel instances.

A unit includes each kernel's file (kernels/cuda) once per instance, with the instance's constants
defined around it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rlx_ray.compiler.cuda.constants import Value
from rlx_ray.compiler.cuda.kernel_table import Instance
from rlx_ray.compiler.ir.expr import Fn, In, Lit
from rlx_ray.compiler.passes.print_expr import print_expr
from rlx_ray.dtype import DType

KERNELS = Path(__file__).parent.parent / "kernels" / "cuda"

TYPES = {DType.F32: "float", DType.F16: "__half", DType.BF16: "__nv_bfloat16"}
"""Element types of kernels as CUDA spells them."""


def unit(instances: Iterable[Instance]) -> str:
    """The CUDA text of some kernels, which have different names."""
    parts = []
    for one in instances:
        defines = [f"NAME {one.name}", *(_define(key, value) for key, value in one.constants)]
        names = ["NAME", *(key.upper() for key, _ in one.constants)]
        lines = [f"#define RLX_{text}" for text in defines]
        ends = [f"#undef RLX_{name}" for name in names]
        parts.append("\n".join([*lines, f'#include "{one.template}.cu"', *ends, ""]))
    return "\n".join(parts)


def sources() -> dict[str, str]:
    """Every file of kernels/cuda by its name."""
    files = sorted(f for f in KERNELS.iterdir() if f.suffix in (".cu", ".cuh"))
    return {f.name: f.read_text(encoding="utf-8") for f in files}


def _define(key: str, value: Value) -> str:
    match value:
        case DType():
            text = TYPES[value]
        case float():
            text = f"{value!r}f"
        case In() | Lit() | Fn():  # an accumulator is an epilogue's alone
            text = print_expr(value)
        case tuple():
            each = (f"X({k}, {TYPES[o.t]}, {o.at}, {o.step})" for k, o in enumerate(value))
            return f"{key.upper()}(X) {' '.join(each)}"
        case _:
            text = str(value)
    return f"{key.upper()} {text}"
