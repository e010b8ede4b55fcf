"""LIR to one C unit: constants, offsets and calls. Loops and arithmetic live in kernels/c/*.h.

The only arithmetic printed here is the expression of an elementwise region, for one element.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlx_ray.compiler.cpu.c_regions import print_regions
from rlx_ray.compiler.cpu.lir import Lir, Packing
from rlx_ray.compiler.cpu.templates import Kernel, expressions
from rlx_ray.compiler.ir.expr import Acc
from rlx_ray.compiler.passes.operands import OperandAccess
from rlx_ray.compiler.passes.print_expr import print_expr
from rlx_ray.shape import PAGE
from rlx_ray.target import Target
from rlx_ray.weights.formats import BLOCK, ROW_FACTS

COUNTER_THREADS = 64
"""Most threads whose calls are counted."""

_INPUTS = "abcdegh"


def emit(lir: Lir, target: Target, *, counters: bool = False) -> str:
    """The C unit of a program for a target.

    Args:
        lir: the program.
        target: what it is for.
        counters: count the time of each call, in the order of the regions and their calls.
    """
    names = {kernel: f"k{i}" for i, kernel in enumerate(lir.kernels)}
    headers = ["span.h"]
    if any(kernel.expr is not None for kernel in names):
        headers.append("vmath.h")
    headers += [kernel.template.header for kernel in names]
    parts = [_counters(lir)] if counters else []
    parts.append(head(target, headers, lir.packing))
    parts += dict.fromkeys(kernel.unit for kernel in names if kernel.unit)
    parts += _pages(lir)
    parts += [_kernel(kernel, name) for kernel, name in names.items()]
    parts.append(print_regions(lir, names, counters=counters))
    return "\n".join(parts)


def head(target: Target, headers: Sequence[str], packing: Packing | None = None) -> str:
    """What a unit begins with: the numbers that kernels/c/*.h want to be told, and the headers.

    Args:
        target: what the unit is for.
        headers: files of kernels/c; one that is named twice is included once.
        packing: of a packed program.
    """
    defines = {
        "RLX_LANES": target.lanes,
        "RLX_TILE_ROWS": target.tile_rows,
        "RLX_TILE_VECTORS": target.tile_vectors,
        "CACHE_PAGE": PAGE,
        "BLOCK": BLOCK,
        "BLOCK_FACTS": ROW_FACTS,
    }
    if packing is not None:
        defines |= {
            "SPAN_BATCH": packing.sequences,
            "SPAN_CAP": packing.cap,
            "SPAN_ROWS": packing.rows,
        }
    return "\n".join([_defines(defines), *(f'#include "{h}"' for h in dict.fromkeys(headers)), ""])


def _defines(values: dict[str, int]) -> str:
    return "\n".join(f"#define {name} {value}" for name, value in values.items())


def _counters(lir: Lir) -> str:
    calls = sum(len(region.all_calls) for region in lir.regions)
    sizes = {"COUNTER_THREADS": COUNTER_THREADS, "COUNTER_CALLS": calls}
    return f'{_defines(sizes)}\n#include "counters.h"'


def _pages(lir: Lir) -> list[str]:
    """A check that kernels find their keys and values in pages of the size that callers make."""
    cached = [kernel.sizes for kernel in lir.kernels if kernel.template.cache]
    pages = (f"CACHE_HEAD({c['dim']}) * {c['layers'] * c['kv_heads'] * c['size']}" for c in cached)
    return [
        f'_Static_assert({page} == {lir.page}, "bytes of a page");' for page in dict.fromkeys(pages)
    ]


def _kernel(kernel: Kernel, name: str) -> str:
    template = kernel.template
    arguments = ", ".join(f"const void *{letter}" for letter in _INPUTS[: template.inputs])
    arguments += ", char *cache, long layer" if template.cache else ""
    functions, named = _expressions(kernel, name)
    return (
        f"{functions}RLX_KERNEL void {name}(float *y, {arguments},\n"
        f"    const float *const *x, float *t, const rlx_span *s, long tile) {{\n"
        f"    (void)a, (void)b, (void)c, (void)x, (void)t, (void)s, (void)tile;\n"
        f"    {kernel.body(named)};\n}}\n"
    )


def _expressions(kernel: Kernel, name: str) -> tuple[str, dict[str, str]]:
    """The functions of a kernel's expression, and what its body calls them."""
    used, plain = expressions(kernel.template), kernel.expr is None
    function, micro = f"{name}_f", f"{name}_e"
    named = {
        "function": function,
        "epilogue": "0" if plain else function,
        "micro": "micro" if plain else micro,
    }
    text = ""
    if "function" in used or (used and not plain):
        text += _function(kernel, function)
    if "micro" in used and not plain:
        text += _micro(micro, function)
    return text, {key: named[key] for key in used}


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


def _micro(name: str, function: str) -> str:
    """A matmul's micro-kernel with its epilogue."""
    return (
        f"RLX_INLINE void {name}(const rlx_micro *t, long rows) {{\n"
        f"    micro_with(t, rows, {function});\n}}\n"
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
