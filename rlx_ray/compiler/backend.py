"""A backend is a frozen value of functions; there is no class tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlx_ray.compiler.cpu.lir import Lir
from rlx_ray.compiler.cuda.launches import Launches
from rlx_ray.compiler.ir.mir import LOGICAL
from rlx_ray.component.dispatch import OpKind
from rlx_ray.errors import CompileError
from rlx_ray.target import Target, Toolchain

Program = Lir | Launches
"""A program in the form of its target's backend."""


@dataclass(frozen=True, slots=True)
class Backend:
    """How one kind of target is built for.

    Attributes:
        kind: the targets' kind, `cpu` or `cuda`.
        supported: logical kernels that it has by hand.
        emit: the program behind the passes to source text.
        build: source text to the bytes of the code blob.
        beside: the artifact's other blobs by role: the thread pool, or the launch plan.
    """

    kind: str
    supported: tuple[OpKind, ...]
    emit: Callable[[Program, Target], str]
    build: Callable[[str, Target, Toolchain], bytes]
    beside: Callable[[Program, Target, Toolchain], Mapping[str, bytes]]


def backend_for(target: Target) -> Backend:
    """The backend of a target.

    Raises:
        CompileError: this installation has none.
    """
    every = tuple(dict.fromkeys(LOGICAL.values()))
    match target.kind:
        case "cpu":
            return _cpu(every)
        case "cuda":
            return _cuda(every)
        case _:
            raise CompileError(
                f"target {target.name!r} has no backend in this version.",
                "Use a target of kind cpu or cuda.",
            )


def _cpu(supported: tuple[OpKind, ...]) -> Backend:
    from rlx_ray.compiler.cpu import c, zig

    def emit(program: Program, target: Target) -> str:
        assert isinstance(program, Lir)
        return c.emit(program, target)

    def beside(program: Program, target: Target, toolchain: Toolchain) -> Mapping[str, bytes]:
        return {"pool": zig.build_pool(target, toolchain)}

    return Backend("cpu", supported, emit, zig.build, beside)


def _cuda(supported: tuple[OpKind, ...]) -> Backend:
    from rlx_ray.compiler.cuda import emit as cuda
    from rlx_ray.compiler.cuda import nvrtc

    def emit(program: Program, target: Target) -> str:
        assert isinstance(program, Launches)
        return cuda.emit(program)

    def beside(program: Program, target: Target, toolchain: Toolchain) -> Mapping[str, bytes]:
        assert isinstance(program, Launches)
        return {"plan": cuda.plan(program, target).dumps()}

    return Backend("cuda", supported, emit, nvrtc.build, beside)
