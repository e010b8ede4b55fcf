"""A stable text of each level, for `explain`, golden tests and reports."""

from __future__ import annotations

from rlx_ray.compiler.ir import expr
from rlx_ray.compiler.ir.hir import Hir
from rlx_ray.compiler.ir.mir import Mir


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
