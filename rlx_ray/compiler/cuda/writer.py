"""Writing launches: steps are appended, buffers live from their first step to their last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlx_ray.artifact.launch_plan import NULL, Address, GemmStep
from rlx_ray.compiler.cuda.constants import Value, refusal
from rlx_ray.compiler.cuda.kernel_table import named
from rlx_ray.compiler.cuda.launches import ALIGNMENT, KernelLaunch
from rlx_ray.compiler.ir.memory import Buffer, MemoryPlan
from rlx_ray.compiler.passes.arena import plan
from rlx_ray.errors import CompileError, VerifyError


@dataclass(frozen=True, slots=True)
class Local:
    """Some bytes behind the beginning of a buffer of the arena, which has no offset yet."""

    buffer: str
    offset: int = 0


Place = Local | Address
"""Where a value lies; an address is a parameter or the cache."""


def behind(place: Place, nbytes: int) -> Place:
    """The place `nbytes` further on."""
    return replace(place, offset=place.offset + nbytes)


@dataclass(frozen=True, slots=True)
class _Step:
    """A step whose places are to become addresses."""

    step: KernelLaunch | GemmStep
    places: tuple[tuple[str, Place], ...]


class Writer:
    """Collects the steps of a program and the lives of its buffers."""

    def __init__(self) -> None:
        self._steps: list[_Step] = []
        self._sizes: dict[str, int] = {}
        self._lives: dict[str, tuple[int, int]] = {}
        self._whole: set[str] = set()
        self._last: set[str] = set()

    def buffer(self, name: str, nbytes: int) -> Local:
        """A new buffer of the arena; one of an equal name gets a number."""
        own, count = name, 1
        while own in self._sizes:
            count += 1
            own = f"{name}#{count}"
        self._sizes[own] = nbytes
        return Local(own)

    def keep(self, place: Place, *, from_start: bool = False) -> None:
        """Let a buffer live to the end of the program, or from its start to its end."""
        if isinstance(place, Local):
            (self._whole if from_start else self._last).add(place.buffer)

    def call(
        self, template: str, origin: str, constants: Mapping[str, Value], **places: Place
    ) -> None:
        """Append the launch of a kernel; arguments that are not given are null.

        Raises:
            CompileError: the kernel has no such constants, or no device takes the launch.
            VerifyError: it has no such arguments.
        """
        kernel = named(template, **constants)
        reason = refusal(kernel.launch)
        if reason:
            raise CompileError(f"{origin}: {kernel.template} {reason}.", "Use a smaller variant.")
        unknown = sorted(set(places) - set(kernel.arguments))
        if unknown:
            raise VerifyError(f"CUDA kernel {template!r} has no argument {unknown[0]!r}.")
        arguments = tuple((name, places.get(name, NULL)) for name in kernel.arguments)
        empty = tuple((name, NULL) for name in kernel.arguments)
        self._append(KernelLaunch(kernel, empty, origin), arguments)

    def gemm(self, origin: str, a: Place, b: Place, c: Place, **fields: Any) -> None:
        """Append a matrix product; `fields` are those of GemmStep."""
        step = GemmStep(NULL, NULL, NULL, origin=origin, **fields)
        self._append(step, (("a", a), ("b", b), ("c", c)))

    def _append(self, step: KernelLaunch | GemmStep, places: tuple[tuple[str, Place], ...]) -> None:
        index = len(self._steps)
        for _, place in places:
            if isinstance(place, Local):
                first, _ = self._lives.get(place.buffer, (index, index))
                self._lives[place.buffer] = (first, index)
        self._steps.append(_Step(step, places))

    def finish(self) -> tuple[tuple[KernelLaunch | GemmStep, ...], MemoryPlan, dict[str, int]]:
        """The steps with their addresses, the plan of the arena, and each buffer's offset."""
        end = max(len(self._steps) - 1, 0)
        buffers = []
        for name, nbytes in self._sizes.items():
            first, last = self._lives.get(name, (0, end))
            first = 0 if name in self._whole else first
            last = end if name in self._whole | self._last else last
            buffers.append(Buffer(name, nbytes, first, last))
        made = plan(buffers, ALIGNMENT)
        offsets = {b.name: b.offset for b in made.buffers}

        def address(place: Place) -> Address:
            if isinstance(place, Address):
                return place
            return Address("arena", offsets[place.buffer] + place.offset)

        steps: list[KernelLaunch | GemmStep] = []
        for one in self._steps:
            addresses: dict[str, Any] = {name: address(place) for name, place in one.places}
            if isinstance(one.step, KernelLaunch):
                steps.append(replace(one.step, arguments=tuple(addresses.items())))
            else:
                steps.append(replace(one.step, **addresses))
        return tuple(steps), made, offsets
