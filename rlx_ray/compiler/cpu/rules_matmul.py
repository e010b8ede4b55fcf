"""The CPU rules of matmuls and of what quantises their rows (kernels/c/gemm*.h, quantize.h)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rlx_ray.compiler.cpu.op_rule import (
    Lowered,
    OpRule,
    Part,
    Partition,
    Site,
    own_rows,
    source_rows,
)
from rlx_ray.compiler.cpu.templates import Argument, Template
from rlx_ray.compiler.ir.mir import Mir, Node
from rlx_ray.compiler.passes.operands import operand
from rlx_ray.shape import elements
from rlx_ray.target import Target
from rlx_ray.weights.formats import FORMATS, MatrixFormat


def _flops(sizes: Mapping[str, int], rows: int, sequences: int) -> int:
    return 2 * rows * sizes.get("total", sizes["n"]) * sizes["k"]


def _matmul(name: str, body: str, header: str, unit: str = "") -> tuple[Template, Template]:
    """A template of a tile with `own` columns: all of them, and its share where it has some."""
    whole, share = "$n", "least($total - tile * $n, $n)"
    return (
        Template(name, body.replace("$own", whole), header, unit=unit, flops=_flops),
        Template(f"{name}_columns", body.replace("$own", share), header, unit=unit, flops=_flops),
    )


GEMM = _matmul(
    "gemm", "gemm($rows, $own, $k, $depth, a, $lda, b, y, $ldc, $more, $micro, x)", "gemm.h"
)
INT8 = _matmul(
    "gemm_int8", "gemm_int8($rows, $own, $k, a, $pitch, b, y, $ldc, $epilogue, x)", "gemm_low.h"
)
BF16 = _matmul(
    "gemm_bf16", "gemm_bf16($rows, $own, $k, a, $pitch, b, y, $ldc, $epilogue, x)", "gemm_low.h"
)
FP8 = _matmul(
    "gemm_fp8", "gemm_fp8($rows, $own, $k, $e5m2, a, b, y, $ldc, $micro, x)", "gemm_fp8.h"
)
# The micro tiles of blocks: all matmuls of one depth and format share them.
BLOCKS = _matmul(
    "gemm_blocks",
    "gemm_blocks($rows, $own, $k, $pitch, $bits, $halves, $offsets, "
    "blocks_${k}_${pitch}_${bits}_${halves}_${offsets}, a, b, y, $ldc, $epilogue, x)",
    "gemm_blocks.h",
    "BLOCK_TILES(${k}_${pitch}_${bits}_${halves}_${offsets}, $k, $pitch, $bits, $halves, $offsets)",
)


def _format(node: Node) -> MatrixFormat:
    return FORMATS[str(node.attr("precision") or "f32")]


def _template(form: MatrixFormat) -> tuple[Template, Template]:
    if form.bits:
        return BLOCKS
    match form.name:
        case "int8":
            return INT8
        case "bf16":
            return BF16
        case "fp8e4m3" | "fp8e5m2":
            return FP8
        case _:
            return GEMM


def _special(node: Node, part: Part, depth: int) -> dict[str, Argument]:
    """The fields that a format's template has beside the common ones."""
    form = _format(node)
    if form.bits:
        traits = {"bits": form.bits, "halves": int(form.halves), "offsets": int(form.offsets)}
        return {"k": depth, "pitch": node.number("pitch"), **traits}
    match form.name:
        case "int8" | "bf16":
            return {"k": depth, "pitch": node.number("pitch")}
        case "fp8e4m3" | "fp8e5m2":
            return {"k": depth, "e5m2": int(form.name == "fp8e5m2")}
        case _:
            return {"k": part.k, "depth": depth, "lda": part.lda, "more": int(part.more)}


def whole(columns: int, depth: int) -> Part:
    """A matmul in one call."""
    return Part(columns, depth, depth, columns)


def _form(site: Site) -> Lowered:
    node, (depth, _) = site.node, site.inputs[1]
    part = site.part or whole(site.shape[1], depth)
    operands = tuple(range(2, len(site.inputs))) if part.last else ()
    views = tuple(operand(site.shape, site.inputs[i]) for i in operands)
    arguments: dict[str, Argument] = {"n": part.n, **_special(node, part, depth), "ldc": part.ldc}
    if part.by_columns:
        arguments["total"] = part.ldc
    template = _template(_format(node))[part.by_columns]
    expr = node.expr if part.last else None
    return Lowered(template(expr, views, rows=site.rows, **arguments), (0, 1), operands)


def _in_parts(node: Node) -> bool:
    """Kernels of packed formats go through all terms, and find a column's scale behind them."""
    return _format(node).name == "f32"


def gemm_share(rows: float, target: Target) -> float:
    """The share of the arithmetic peak that the micro-kernel reaches for a number of rows.

    A micro tile of r rows issues r * vectors multiply-adds for vectors + r loads; below about
    eight accumulators the latency of the multiply-add shows. The rest is measured: a panel that is
    loaded for few rows pays for its way from memory (docs/performance.md).
    """
    tiles = math.ceil(rows / target.tile_rows)
    accumulators = rows / tiles * target.tile_vectors
    return 0.98 * min(1.0, accumulators / 9) * rows / (rows + 2.5)


def _format_rate(form: MatrixFormat, target: Target) -> float:
    """How much faster than float32 the arithmetic of a format is (docs/performance.md)."""
    if form.bits:
        return 4.0 if target.int8_dot else 1.6
    match form.name:
        case "int8":
            return 4.0 if target.int8_dot else 1.4
        case "fp8e4m3" | "fp8e5m2":
            return 0.9
        case "bf16":
            return 2.0 if target.bf16_dot else 0.9
        case _:
            return 1.0


def _rate(node: Node, rows: float, target: Target) -> float:
    return gemm_share(rows, target) * _format_rate(_format(node), target)


def _weights(mir: Mir, node: Node) -> float:
    return elements(mir.nodes[node.inputs[1]].shape) * _format(node).weight_bytes


MATMUL = OpRule(
    (*GEMM, *INT8, *BF16, *FP8, *BLOCKS),
    _form,
    _form,
    Partition(source_rows, "columns", in_parts=_in_parts, token_rows=True),
    rate=_rate,
    weights=_weights,
)

QUANTISERS = {
    rows: Template(f"quantize_{rows}", f"quantize_{rows}($rows, $k, a, (char *)y, $pitch)", header)
    for rows, header in (
        ("int8", "quantize.h"),
        ("bf16", "quantize.h"),
        ("blocks", "gemm_blocks.h"),
    )
}
"""By what the rows of a format become (`MatrixFormat.rows`)."""


def _quantize(site: Site) -> Lowered:
    node = site.node
    template = QUANTISERS[str(node.attr("precision"))]
    pitch = site.shape[1] * node.dtype.size
    return Lowered(template(rows=site.rows, k=node.number("k"), pitch=pitch), (0,))


QUANTIZE = OpRule(tuple(QUANTISERS.values()), _quantize, _quantize, Partition(own_rows, cheap=True))
