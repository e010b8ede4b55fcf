"""Launches: a program for a CUDA device as kernels and matrix products, over one arena."""

from __future__ import annotations

from dataclasses import dataclass

from rlx_ray.artifact.launch_plan import Address, GemmStep
from rlx_ray.compiler.cuda.kernel_table import Instance
from rlx_ray.compiler.ir.memory import MemoryPlan, Tensor
from rlx_ray.compiler.ir.mir import Note

ALIGNMENT = 256
"""Bytes that every buffer of the arena and every parameter is aligned to."""


@dataclass(frozen=True, slots=True)
class KernelLaunch:
    """The launch of a kernel.

    Attributes:
        kernel: the instance.
        arguments: an address for each of its arguments, by name, in its order.
        origin: what part of the model it is.
    """

    kernel: Instance
    arguments: tuple[tuple[str, Address], ...]
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Launches:
    """A program ready to become a launch plan.

    Attributes:
        inputs: what the caller writes into the arena, at offsets in bytes.
        params: parameters, in the order of their table.
        outputs: what the caller reads from the arena.
        steps: in order.
        arena: buffers with the first and the last step of their lives.
        flops: floating-point operations of a run, by the MIR.
        zeroed: (offset, bytes) of the arena that are zero before the first run and after each.
        adjacent: (first, second, bytes): parameters that steps read as one, the second `bytes`
            behind the first.
        notes: why passes did something.
        page: bytes of a page of the key-value cache; 0 without one.
    """

    inputs: tuple[Tensor, ...]
    params: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    steps: tuple[KernelLaunch | GemmStep, ...]
    arena: MemoryPlan
    flops: int
    zeroed: tuple[tuple[int, int], ...] = ()
    adjacent: tuple[tuple[int, int, int], ...] = ()
    notes: tuple[Note, ...] = ()
    page: int = 0

    @property
    def kernels(self) -> tuple[Instance, ...]:
        """The distinct kernels, in the order of their first launch."""
        calls = (step for step in self.steps if isinstance(step, KernelLaunch))
        return tuple(dict.fromkeys(call.kernel for call in calls))
