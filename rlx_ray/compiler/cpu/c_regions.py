"""Regions as C: functions of calls, tables of what equal functions differ in, the entry point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlx_ray.compiler.cpu.lir import KernelCall, Lir, Packing, Region, Space, TileArgument
from rlx_ray.compiler.cpu.templates import Kernel

ENTRY = "rlx_run"
"""Name of a variant's one entry point; its C type is in kernels/c/rlx_abi.h."""

_SPANS = {
    "sequences": "span_sequences({}, tile, {}, f->threads)",
    "rows": "span_rows({}, tile, {}, f->threads)",
    "columns": "span_whole({})",
    "heads": "span_whole({})",
    "each": "span_each({}, tile)",
}
"""The span of a tile for each axis, from the lengths and the number of tiles."""


class _Own:
    """The table of what sets a region apart: a number's place in it, as C."""

    def __init__(self) -> None:
        self.values: list[int] = []

    def place(self, value: int) -> str:
        """C for a value that equal regions may have their own of."""
        self.values.append(value)
        return f"own[{len(self.values) - 1}]"


@dataclass(frozen=True, slots=True)
class _Printed:
    """A region as C: the bodies of its two functions, its table, and what it computes.

    Equal bodies are one function, whatever the depth of the model.
    """

    run: str
    begin: str
    own: tuple[int, ...]
    note: str


def _region(
    region: Region, names: dict[Kernel, str], packing: Packing | None, counter: int | None
) -> _Printed:
    lines = [
        "    const float *const *p = f->params;",
        "    (void)p, (void)s, (void)tile, (void)own;",
    ]
    span = "{0}"
    if packing is not None and region.axis in _SPANS:
        lengths = f"(const int *)(f->arena + {packing.lengths})"
        span = _SPANS[region.axis].format(lengths, region.tiles)
    lines.append(f"    const rlx_span span = {span};")
    if region.axis in ("sequences", "rows") and packing is not None:
        lines.append("    if (!span.rows && !span.seqs) return;")
    calls, table = [], _Own()
    for i, call in enumerate(region.all_calls):
        text = _call(call, names[call.kernel], table)
        if counter is not None:
            text = f"COUNTED({text}, {table.place(counter + i)})"
        calls.append(f"    {text};")
    first = len(region.begin)
    # The beginning sees the same names; it has no tile.
    begin = ["    const long tile = 0;", *lines, *calls[:first]] if first else []
    note = ", ".join(dict.fromkeys(c.origin for c in region.all_calls))
    run = "\n".join([*lines, *calls[first:]])
    return _Printed(run, "\n".join(begin), tuple(table.values), note)


def _call(call: KernelCall, name: str, own: _Own) -> str:
    inputs = [_argument(s, own) for s in call.inputs]
    template = call.kernel.template
    inputs += ["0"] * (template.inputs - len(inputs))
    inputs += ["f->cache", own.place(call.layer)] if template.cache else []
    operands = ", ".join(_argument(s, own) for s in call.operands)
    table = f"((const float *const[]){{{operands}}})" if operands else "0"
    scratch = _argument(call.scratch, own)
    scratch = scratch if scratch == "0" else f"(float *)({scratch})"
    output = f"(float *)({_argument(call.output, own)})"
    return f"{name}({', '.join([output, *inputs, table, scratch, '&span', 'tile'])})"


def _argument(argument: TileArgument | None, own: _Own) -> str:
    if argument is None:
        return "0"
    moves = f" + {argument.shift}" if argument.shift else ""
    steps = (("tile", argument.stride), ("span.row", argument.row), ("span.seq", argument.sequence))
    moves += "".join(f" + {name} * {step}" for name, step in steps if step)
    match argument.space:
        case Space.PARAM if moves:
            return f"(const void *)((const char *)p[{own.place(argument.offset)}]{moves})"
        case Space.PARAM:
            return f"p[{own.place(argument.offset)}]"
        case Space.ARENA:
            return f"(const void *)(f->arena + {argument.offset}{moves})"
        case Space.SCRATCH:
            return f"(const void *)(s + {argument.offset}{moves})"


def print_regions(lir: Lir, names: dict[Kernel, str], *, counters: bool) -> str:
    """The regions' functions, each distinct one once, their tables, and the entry point.

    Args:
        lir: the program.
        names: of the kernels' functions.
        counters: count the time of each call.
    """
    printed = []
    first = 0
    for region in lir.regions:
        printed.append(_region(region, names, lir.packing, first if counters else None))
        first += len(region.all_calls)
    run = _functions("region", [p.run for p in printed])
    begin = _functions("begin", [p.begin for p in printed if p.begin])
    parts = [_definition(name, ", long tile", body) for body, name in run.items()]
    parts += [_definition(name, "", body) for body, name in begin.items()]
    return "\n".join([*parts, _entry(lir.regions, printed, run, begin)])


def _functions(kind: str, bodies: Sequence[str]) -> dict[str, str]:
    return {body: f"{kind}{i}" for i, body in enumerate(dict.fromkeys(bodies))}


def _definition(name: str, tile: str, body: str) -> str:
    head = f"static void {name}(const rlx_frame *f, char *s{tile}, const int *own) {{"
    return f"{head}\n{body}\n}}\n"


def _entry(
    regions: Sequence[Region],
    printed: Sequence[_Printed],
    run: dict[str, str],
    begin: dict[str, str],
) -> str:
    values: list[int] = []
    rows = []
    for region, one in zip(regions, printed, strict=True):
        start = begin[one.begin] if one.begin else "0"
        row = f"{run[one.run]}, {region.tiles}, {start}, own + {len(values)}"
        rows.append(f"    {{{row}}}, /* {one.note} */")
        values += one.own
    table = ", ".join(map(str, values or [0]))
    return (
        f"static const int own[] = {{{table}}};\n\n"
        + "static const rlx_region regions[] = {\n"
        + "\n".join(rows)
        + "\n};\n\n"
        f'__attribute__((visibility("default")))\n'
        f"int {ENTRY}(const rlx_frame *frame, rlx_runner run, void *pool) {{\n"
        f"    return run(pool, regions, {len(regions)}, frame);\n}}\n"
    )
