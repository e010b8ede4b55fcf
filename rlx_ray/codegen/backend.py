"""A backend is a frozen value of functions; there is no class tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlx_ray.component.dispatch import OpKind
from rlx_ray.errors import CompileError
from rlx_ray.ir.lir import Lir
from rlx_ray.ir.mir import LOGICAL
from rlx_ray.target import Target, Toolchain

ENTRY = "rlx_run"
"""Name of a variant's one entry point; its C type is in kernels/c/rlx_abi.h."""


@dataclass(frozen=True, slots=True)
class Backend:
    """How one kind of target is built for.

    Attributes:
        kind: the targets' kind, `cpu` or `cuda`.
        supported: logical kernels that it has by hand.
        emit: LIR to source text.
        build: source text to the bytes of the code blob.
        build_pool: the bytes of the thread pool for a target, or None where it needs none.
    """

    kind: str
    supported: tuple[OpKind, ...]
    emit: Callable[[Lir, Target], str]
    build: Callable[[str, Target, Toolchain], bytes]
    build_pool: Callable[[Target, Toolchain], bytes] | None


def backend_for(target: Target) -> Backend:
    """The backend of a target.

    Raises:
        CompileError: this installation has none.
    """
    from rlx_ray.codegen import c, zig

    if target.kind == "cpu":
        return Backend(
            "cpu", tuple(dict.fromkeys(LOGICAL.values())), c.emit, zig.build, zig.build_pool
        )
    raise CompileError(
        f"target {target.name!r} has no backend in this version.", "Use one of the CPU targets."
    )
