"""What pipeline, backends and their callers hand each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rlx_ray.artifact.manifest import BindingManifest
from rlx_ray.compiler.ir.memory import MemoryPlan, Tensor
from rlx_ray.compiler.ir.mir import Mir, Note
from rlx_ray.component.kernel_dispatch import KernelDispatchConfig, OpKind
from rlx_ray.component.profile import CompileProfile
from rlx_ray.target import Target, Toolchain


class Program(Protocol):
    """A program in the form of its target's backend: LIR, or launches.

    `inputs` and `outputs` lie in the arena, `params` are in the order of their table, `flops` are
    those of a run by the MIR, `page` is the bytes of a page of the key-value cache (0 without one).
    """

    @property
    def inputs(self) -> tuple[Tensor, ...]: ...  # noqa: D102
    @property
    def params(self) -> tuple[Tensor, ...]: ...  # noqa: D102
    @property
    def outputs(self) -> tuple[Tensor, ...]: ...  # noqa: D102
    @property
    def arena(self) -> MemoryPlan: ...  # noqa: D102
    @property
    def flops(self) -> int: ...  # noqa: D102
    @property
    def notes(self) -> tuple[Note, ...]: ...  # noqa: D102
    @property
    def page(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Order:
    """What a variant is compiled for, beside its model's template and sizes.

    Attributes:
        profile: which passes run, and the arithmetic.
        dispatch: native or common kernels.
        target: what runs it.
        formats: of parameters whose weights stay quantised (`weights.formats`), by name.
        names: of the outputs.
    """

    profile: CompileProfile
    dispatch: KernelDispatchConfig
    target: Target
    formats: Mapping[str, str]
    names: tuple[str, ...]


MirPass = Callable[[Mir], Mir]
Step = tuple[str, MirPass]
"""A pass over the MIR, with its name."""


@dataclass(frozen=True, slots=True)
class Backend:
    """How one kind of target is built for: a frozen value of functions, no class tree.

    A program that is handed to a function is one that `lower` gave.

    Attributes:
        supported: logical kernels that it has by hand.
        passes: its own passes over the MIR, behind the shared ones.
        lower: the MIR to its program.
        verify: checks what `lower` gave; raises VerifyError.
        binding: how a program's code is called.
        emit: a program to source text.
        build: source text to the bytes of the code blob.
        beside: the artifact's other blobs by role: the thread pool, or the launch plan.
        printer: what `explain` shows of a program, by section: a text, or rows.
        memory: what `explain` says of a program's planned memory, by name.
        check: raises ToolchainMissing or ToolchainMismatch where the pinned compiler is not here.
        refusal: why this machine's compiler does not know a target; empty if it does.
        probe: compiles a unit of one function, to check that it works; its bytes.
    """

    supported: tuple[OpKind, ...]
    passes: Callable[[Order], tuple[Step, ...]]
    lower: Callable[[Mir, Order], Program]
    verify: Callable[[Any], Any]
    binding: Callable[[Any], BindingManifest]
    emit: Callable[[Any, Target], str]
    build: Callable[[str, Target, Toolchain], bytes]
    beside: Callable[[Any, Target, Toolchain], Mapping[str, bytes]]
    printer: Callable[[Any, Target], Mapping[str, Callable[[], Any]]]
    memory: Callable[[Any], Mapping[str, MemoryPlan]]
    check: Callable[[Toolchain], None]
    refusal: Callable[[Target], str]
    probe: Callable[[Target, Toolchain], bytes]
