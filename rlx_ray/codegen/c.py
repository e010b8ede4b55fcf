"""LIR to one C unit: constants, offsets and calls. Loops and arithmetic live in kernels/c/*.h.

The only arithmetic printed here is the expression of an elementwise region, for one element.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlx_ray.codegen.backend import ENTRY
from rlx_ray.errors import CompileError
from rlx_ray.ir.expr import Acc, Expr, Fn, In, Lit
from rlx_ray.ir.lir import Call, Kernel, Lir, Operand, Region, Slot, Space
from rlx_ray.ir.mir import SCALAR_FUNCTIONS
from rlx_ray.target import Target

_HEADERS = ("gemm.h", "map.h", "norm.h", "attention.h", "gather.h", "pooling.h", "prim.h")


@dataclass(frozen=True, slots=True)
class Template:
    """How a kernel template is called: its body from constants; `$name` is a constant.

    In a body `y` is the output, `a`, `b`, `c` the inputs (const void *), `x` the operands,
    `t` the kernel's own scratch and `tile` the tile's number; `$f` is the region's function.
    """

    body: str


TEMPLATES: dict[str, Template] = {
    "gemm": Template("gemm($m, $n, $k, a, $k, b, y, $n, $f, x)"),
    "map": Template("map($rows, $columns, y, $f, x)"),
    "layer_norm": Template("layer_norm($rows, $columns, $eps, a, b, c, y)"),
    "softmax": Template("softmax($rows, $columns, a, y)"),
    "attention": Template("attention($sequences, $keys, $heads, $dim, $scale, a, b, y, t)"),
    "attention_queries": Template(
        "attention_sequence($queries, $keys, $heads, $dim, $scale, tile % $pieces * $queries, "
        "((const int *)b)[tile / $pieces], "
        "(const float *)a + tile / $pieces * ($keys * 3 * $heads * $dim), y, t)"
    ),
    "gather": Template(
        "gather($rows, $columns, a, b, $period, $first + tile * $rows % $period, $extent, c, y)"
    ),
    "pool_rows": Template("pool_rows($sequences, $tokens, $columns, $kind, a, b, y)"),
    "dot_panels": Template("dot_panels($m, $n, $k, a, b, y)"),
    "dot_batched": Template("dot_batched($batch, $m, $n, $k, a, b, y)"),
    "take": Template("take($rows, $columns, $extent, a, b, y)"),
    "iota": Template("iota($rows, $period, $first, (int *)y)"),
    "length_mask": Template("length_mask($sequences, $tokens, a, y)"),
    "strided": Template(
        "strided($n0, $n1, $n2, $n3, $s0, $s1, $s2, $s3, (const float *)a + $shift, y)"
    ),
    "reduce": Template("reduce($outer, $extent, $inner, $kind, a, y)"),
}
"""Kernel templates by name, as `passes/kernels.py` asks for them."""


def emit(lir: Lir, target: Target) -> str:
    """The C unit of a program for a target.

    Raises:
        CompileError: a kernel template is not known to this backend.
    """
    names = {kernel: f"k{i}" for i, kernel in enumerate(lir.kernels)}
    parts = [_head(target)]
    parts += [_kernel(kernel, name) for kernel, name in names.items()]
    parts += [_region(region, i, names) for i, region in enumerate(lir.regions)]
    parts.append(_entry(lir))
    return "\n".join(parts)


def _head(target: Target) -> str:
    defines = (
        ("RLX_LANES", target.lanes),
        ("RLX_TILE_ROWS", target.tile_rows),
        ("RLX_TILE_VECTORS", target.tile_vectors),
    )
    lines = [f"#define {name} {value}" for name, value in defines]
    return "\n".join([*lines, *(f'#include "{header}"' for header in _HEADERS), ""])


def number(value: float) -> str:
    """A C literal that reads back as the float32 nearest to the value."""
    if isinstance(value, int):
        return str(value)
    return f"{value!r}f" if "e" in repr(value) or "." in repr(value) else f"{value!r}.0f"


def _kernel(kernel: Kernel, name: str) -> str:
    template = TEMPLATES.get(kernel.template)
    if template is None:
        raise CompileError(f"kernel template {kernel.template!r} is not known to the C backend.")
    constants = dict(kernel.constants)
    if "dim" in constants:
        constants["scale"] = float(constants["dim"] ** -0.5)
    body = template.body
    for key in sorted(constants, key=len, reverse=True):
        body = body.replace(f"${key}", number(constants[key]))
    function = ""
    if "$f" in body:
        function = _function(kernel, f"{name}_f")
        body = body.replace("$f", f"{name}_f")
    return (
        f"{function}RLX_KERNEL void {name}(float *y, const void *a, const void *b, const void *c,\n"
        f"    const float *const *x, float *t, long tile) {{\n"
        f"    (void)a, (void)b, (void)c, (void)x, (void)t, (void)tile;\n"
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


def _read(index: int, view: Operand) -> str:
    terms = []
    for div, mod, step in view.terms:
        row = "row" if div == 1 else f"row / {div}"
        row = f"{row} % {mod}" if mod else row
        terms.append(f"({row}) * {step}" if step != 1 else f"({row})")
    if view.column_step:
        return f"ld({' + '.join([f'x[{index}]', *terms, 'col'])})"
    return f"splat(x[{index}][{' + '.join(terms) or '0'}])"


def print_expr(expr: Expr) -> str:
    """C for an expression over `acc` and the operands `v0`, `v1` ..."""
    match expr:
        case In(index):
            return f"v{index}"
        case Acc():
            return "acc"
        case Lit(value):
            return f"splat({number(float(value))})"
        case Fn(name, args):
            return SCALAR_FUNCTIONS[name].c.format(*(print_expr(a) for a in args))


def _region(region: Region, index: int, names: dict[Kernel, str]) -> str:
    lines = [f"static void region{index}(const rlx_frame *f, char *s, long tile) {{"]
    lines += ["    const float *const *p = f->params;", "    (void)p, (void)s, (void)tile;"]
    lines += [_call(call, names[call.kernel]) for call in region.calls]
    return "\n".join([*lines, "}", ""])


def _call(call: Call, name: str) -> str:
    inputs = [_slot(s) for s in call.inputs]
    inputs += ["0"] * (3 - len(inputs))
    operands = ", ".join(_slot(s) for s in call.operands)
    table = f"(const float *const[]){{{operands}}}" if operands else "0"
    scratch = _slot(call.scratch)
    scratch = scratch if scratch == "0" else f"(float *)({scratch})"
    arguments = ", ".join([f"(float *)({_slot(call.output)})", *inputs, table, scratch, "tile"])
    return f"    {name}({arguments}); /* {call.origin} */"


def _slot(slot: Slot | None) -> str:
    if slot is None:
        return "0"
    moves = f" + tile * {slot.stride}" if slot.stride else ""
    match slot.space:
        case Space.PARAM:
            return f"p[{slot.offset}]"
        case Space.ARENA:
            return f"(const void *)(f->arena + {slot.offset}{moves})"
        case Space.SCRATCH:
            return f"(const void *)(s + {slot.offset}{moves})"


def _entry(lir: Lir) -> str:
    rows = "\n".join(f"    {{region{i}, {r.tiles}}}," for i, r in enumerate(lir.regions))
    return (
        f"static const rlx_region regions[] = {{\n{rows}\n}};\n\n"
        f'__attribute__((visibility("default")))\n'
        f"int {ENTRY}(const rlx_frame *frame, rlx_runner run, void *pool) {{\n"
        f"    return run(pool, regions, {len(lir.regions)}, frame);\n}}\n"
    )
