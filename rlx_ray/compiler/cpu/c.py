"""LIR to one C unit: constants, offsets and calls. Loops and arithmetic live in kernels/c/*.h.

The only arithmetic printed here is the expression of an elementwise region, for one element.
"""

from __future__ import annotations

from rlx_ray.compiler.cpu.c_regions import print_regions
from rlx_ray.compiler.cpu.lir import Kernel, Lir
from rlx_ray.compiler.cpu.templates import TEMPLATES
from rlx_ray.compiler.ir.expr import Acc
from rlx_ray.compiler.passes.operands import OperandAccess
from rlx_ray.compiler.passes.print_expr import number, print_expr
from rlx_ray.errors import CompileError
from rlx_ray.target import Target

_HEADERS = ("span.h", "gemm.h", "map.h", "norm.h", "attention.h", "gather.h", "pooling.h", "prim.h")
_DECODER = ("rms_norm", "rope_cache", "attention_cached")
_INPUTS = "abcdegh"


def emit(lir: Lir, target: Target, *, counters: bool = False) -> str:
    """The C unit of a program for a target.

    Args:
        lir: the program.
        target: what it is for.
        counters: count the time of each call, in the order of the regions and their calls.

    Raises:
        CompileError: a kernel template is not known to this backend.
    """
    names = {kernel: f"k{i}" for i, kernel in enumerate(lir.kernels)}
    parts = ['#include "counters.h"'] if counters else []
    parts.append(_head(target, lir))
    parts += [_kernel(kernel, name) for kernel, name in names.items()]
    parts.append(print_regions(lir, names, counters=counters))
    return "\n".join(parts)


def _head(target: Target, lir: Lir) -> str:
    packing = lir.packing
    defines = [
        ("RLX_LANES", target.lanes),
        ("RLX_TILE_ROWS", target.tile_rows),
        ("RLX_TILE_VECTORS", target.tile_vectors),
    ]
    if packing is not None:
        defines += [
            ("SPAN_BATCH", packing.sequences),
            ("SPAN_CAP", packing.cap),
            ("SPAN_ROWS", packing.rows),
        ]
    lines = [f"#define {name} {value}" for name, value in defines]
    headers = [*_HEADERS]
    if any(k.template in ("quantize_int8", "quantize_bf16") for k in lir.kernels):
        headers.append("quantize.h")
    if any(k.template == "quantize_blocks" for k in lir.kernels):
        headers.append("gemm_blocks.h")
    if any(k.template.startswith("gemm_fp8") for k in lir.kernels):
        headers.append("gemm_fp8.h")
    if any(k.template.startswith(_DECODER) for k in lir.kernels):
        headers.append("decoder.h")
    if any(k.template.startswith("cache_") for k in lir.kernels):
        headers.append("cache.h")
    lines += [f'#include "{header}"' for header in headers]
    return "\n".join([*lines, *_block_tiles(lir), ""])


def _block_tiles(lir: Lir) -> list[str]:
    """The micro tiles of weights in blocks: all matmuls of one depth and format share them."""
    names = ("k", "pitch", "bits", "halves", "offsets")
    blocks = [dict(k.constants) for k in lir.kernels if k.template.startswith("gemm_blocks")]
    sizes = dict.fromkeys(tuple(str(c[name]) for name in names) for c in blocks)
    return [f"BLOCK_TILES({'_'.join(size)}, {', '.join(size)})" for size in sizes]


def _kernel(kernel: Kernel, name: str) -> str:
    template = TEMPLATES.get(kernel.template)
    if template is None:
        raise CompileError(f"kernel template {kernel.template!r} is not known to the C backend.")
    constants: dict[str, int | float | str] = dict(kernel.constants)
    if "dim" in constants:
        constants["scale"] = float(dict(kernel.constants)["dim"] ** -0.5)
    body = template.body
    arguments = ", ".join(f"const void *{letter}" for letter in _INPUTS[: template.inputs])
    arguments += ", char *cache, long layer" if template.cache else ""
    span: int | float | str = "s->seqs" if constants.get("per_sequence") else "s->rows"
    constants = {"m": span, "rows": span, "outer": span} | constants
    for key in sorted(constants, key=len, reverse=True):
        value = constants[key]
        body = body.replace(f"${key}", value if isinstance(value, str) else number(value))
    function = ""
    if "$f" in body or ("$e" in body and kernel.expr is not None):
        function = _function(kernel, f"{name}_f")
        body = body.replace("$f", f"{name}_f")
    if "$g" in body:
        function = "" if kernel.expr is None else _function(kernel, f"{name}_f")
        body = body.replace("$g", "0" if kernel.expr is None else f"{name}_f")
    if "$e" in body:
        function += "" if kernel.expr is None else _finish(name)
        body = body.replace("$e", "micro" if kernel.expr is None else f"{name}_e")
    return (
        f"{function}RLX_KERNEL void {name}(float *y, {arguments},\n"
        f"    const float *const *x, float *t, const rlx_span *s, long tile) {{\n"
        f"    (void)a, (void)b, (void)c, (void)x, (void)t, (void)s, (void)tile;\n"
        f"    {body};\n}}\n"
    )


def _function(kernel: Kernel, name: str) -> str:
    """The region's function of one register of elements at (row, col)."""
    expr = Acc() if kernel.expr is None else kernel.expr
    lines = [f"    const vf v{i} = {_read(i, view)};" for i, view in enumerate(kernel.operands)]
    return (
        f"RLX_INLINE vf {name}(vf acc, const float *const *x, long row, long col) {{\n"
        + "    (void)acc, (void)x, (void)row, (void)col;\n"
        + "".join(f"{line}\n" for line in lines)
        + f"    return {print_expr(expr)};\n}}\n"
    )


def _finish(name: str) -> str:
    """A matmul's micro-kernel with its epilogue."""
    return (
        f"RLX_INLINE void {name}_e(const rlx_micro *t, long rows) {{\n"
        f"    micro_with(t, rows, {name}_f);\n}}\n"
    )


def _read(index: int, view: OperandAccess) -> str:
    terms = []
    for div, mod, step in view.terms:
        row = "row" if div == 1 else f"row / {div}"
        row = f"{row} % {mod}" if mod else row
        terms.append(f"({row}) * {step}" if step != 1 else f"({row})")
    if view.column_step:
        return f"ld({' + '.join([f'x[{index}]', *terms, 'col'])})"
    return f"splat(x[{index}][{' + '.join(terms) or '0'}])"
