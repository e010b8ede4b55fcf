"""Running launch plans: resolved addresses, a graph, and the copies in and out."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlx_ray.artifact.launch_plan import Address, GemmStep, KernelStep, LaunchPlan
from rlx_ray.artifact.manifest import PREFIX, Binding, BindingManifest
from rlx_ray.errors import ArtifactError, DeviceError, DeviceLost, DeviceMemoryError, InputError
from rlx_ray.runtime.device import Device, Graph, Module
from rlx_ray.runtime.device_context import DeviceContext, DeviceWeights
from rlx_ray.runtime.executable import NUMPY, Cache, check_inputs, check_tables, select

_LOG = logging.getLogger(__name__)


class DeviceCache:
    """A key-value cache in a device's memory; zeroed, and given back when nobody holds it.

    Args:
        device: where it lies.
        pages: how many pages.
        page: bytes of each.

    Raises:
        DeviceMemoryError: the device has no room.
    """

    def __init__(self, device: Device, pages: int, page: int) -> None:
        self.device = device
        self.page = page
        self._pages = pages
        self._memory = device.allocate(pages * page)
        self.address = self._memory.address
        device.zero(self.address, pages * page)

    def __len__(self) -> int:
        return self._pages


@dataclass(frozen=True, slots=True)
class CopyRange:
    """Inputs that lie side by side in the arena and go there in one copy.

    Attributes:
        offset: in the arena, in bytes.
        staged: uint8, what is copied.
        views: of it, by the input's name; in the order of their places.
    """

    offset: int
    staged: np.ndarray
    views: Mapping[str, np.ndarray]

    def filled(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """What is to be copied of the given inputs: nothing behind the last one's last row."""
        end = self.staged.nbytes
        for name, view in self.views.items():
            given = inputs[name]
            view[: len(given)] = given
            end = self.staged.nbytes - view.nbytes + given.nbytes
        return self.staged[:end]


class LaunchExecutable:
    """A loaded variant whose artifact is a launch plan.

    Its first run launches step by step, so that whatever a driver or a library loads at first use
    is there; the second captures the steps as a graph, which the others replay. A graph holds
    addresses: it is captured again when the arena has moved, or the cache is another one. Where the
    device refuses to capture, a warning is logged and every run launches step by step.

    Args:
        code: the `code` blob: a cubin, or PTX.
        plan: the `plan` blob.
        binding: how to call it.
        weights: the model's packed weights, on the same device.
        context: the device.

    Raises:
        ArtifactError: the plan is malformed, or code, plan, binding and weights do not fit.
        DeviceError: the device does not take the code; DeviceMemoryError: it has no room.
    """

    def __init__(
        self,
        code: bytes,
        plan: bytes,
        binding: BindingManifest,
        weights: DeviceWeights,
        context: DeviceContext,
    ) -> None:
        self.binding = binding
        self.arena_bytes = binding.arena
        self._plan = LaunchPlan.loads(plan)
        self._context = context
        self._device = context.device
        self._weights = weights
        self._params = weights.addresses(binding.params)
        check_plan(self._plan, binding, self._params)
        self._copy_ranges = copy_ranges(binding.inputs, binding.alignment)
        self._module: Module = self._device.module(code, self._plan.kernels)
        self._first, self._stepwise = True, False
        self._graph: Graph | None = None
        self._captured = (0, 0)
        context.join(self, self.arena_bytes)

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        cache: Cache | None = None,
        wanted: Collection[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """One forward pass; see `Executable.run`. Runs on one device take turns.

        Raises:
            InputError: an input, the cache or an output is not as the binding says.
            DeviceError: the device refused or failed; unless it is a DeviceLost, the next run
                begins anew.
        """
        check_inputs(self.binding.inputs, inputs)
        outputs = select(self.binding.outputs, wanted)
        pages = self._pages(inputs, cache)
        context = self._context
        with context.turn:
            arena = context.arena()
            mine = context.last is not None and context.last() is self
            context.last = None
            if not mine:
                for offset, nbytes in self._plan.zeroed:
                    self._device.zero(arena + offset, nbytes)
            for copied in self._copy_ranges:
                self._device.write(arena + copied.offset, copied.filled(inputs))
            self._go(arena, pages)
            found = {o.name: self._read(arena, o) for o in outputs}
            context.last = weakref.ref(self)
        return found

    def make_cache(self, pages: int) -> DeviceCache:
        """Zeroed pages of `binding.page` bytes on the device; see `Executable.make_cache`."""
        with self._context.turn:
            self._context.fit()
            return DeviceCache(self._device, pages, self.binding.page)

    def _pages(self, inputs: Mapping[str, np.ndarray], cache: Cache | None) -> int:
        """The address of the key-value cache; 0 if the variant has none."""
        page = self.binding.page
        if not page:
            return 0
        if (
            not isinstance(cache, DeviceCache)
            or cache.device is not self._device
            or cache.page != page
        ):
            found = "none" if cache is None else type(cache).__name__
            if isinstance(cache, DeviceCache):
                found = f"one of pages of {cache.page} bytes on {cache.device.name}"
            raise InputError(
                f"the key-value cache is {found}, the variant takes one of pages of {page} bytes "
                f"on {self._device.name}.",
                "Make it with this executable's make_cache.",
            )
        check_tables(inputs["pages"], len(cache))
        return cache.address

    def _go(self, arena: int, pages: int) -> None:
        """Enqueue all steps: as a graph, or one by one at first and where there can be none."""
        if self._first or self._stepwise:
            self._enqueue(arena, pages)
            self._first = False
            return
        if self._graph is None or self._captured != (arena, pages):
            self._graph = None  # its memory is free for the next one's
            self._graph = self._capture(arena, pages)
            self._captured = (arena, pages)
        if self._graph is None:
            self._enqueue(arena, pages)
        else:
            self._graph.replay()

    def _capture(self, arena: int, pages: int) -> Graph | None:
        """The steps as a graph; None if the device refuses that, now and for good."""
        try:
            return self._device.capture(lambda: self._enqueue(arena, pages))
        except (DeviceMemoryError, DeviceLost):
            raise
        except DeviceError as error:
            _LOG.warning("%s runs a plan step by step: %s", self._device.name, error)
            self._stepwise = True
            return None

    def _enqueue(self, arena: int, pages: int) -> None:
        """Launch every step in order."""
        bases = {"null": 0, "arena": arena, "cache": pages}

        def at(address: Address) -> int:
            base = self._params[address.index] if address.space == "param" else bases[address.space]
            return base + address.offset

        for step in self._plan.steps:
            match step:
                case KernelStep():
                    self._module.launch(step, [at(address) for address in step.arguments])
                case GemmStep():
                    self._device.gemm(step, at(step.a), at(step.b), at(step.c))

    def _read(self, arena: int, output: Binding) -> np.ndarray:
        out = np.empty(output.shape, NUMPY[output.dtype.text])
        self._device.read(arena + output.offset, out)
        return out


def copy_ranges(inputs: Sequence[Binding], alignment: int) -> tuple[CopyRange, ...]:
    """Inputs by copies: those with less than an aligned offset between them go together.

    Nothing can begin between two such inputs, so the gap's bytes are nobody's. An input that may be
    given in part is the last of its copy, which ends with what is given.
    """
    groups: list[list[Binding]] = []
    end = 0
    for tensor in sorted(inputs, key=lambda one: one.offset):
        apart = tensor.offset - end >= alignment
        if not groups or apart or groups[-1][-1].layout == PREFIX:
            groups.append([])
        groups[-1].append(tensor)
        end = tensor.offset + tensor.nbytes
    return tuple(_copy_range(group) for group in groups)


def _copy_range(group: Sequence[Binding]) -> CopyRange:
    first = group[0].offset
    staged = np.zeros(group[-1].offset + group[-1].nbytes - first, np.uint8)
    views = {}
    for tensor in group:
        part = staged[tensor.offset - first :][: tensor.nbytes]
        views[tensor.name] = part.view(NUMPY[tensor.dtype.text]).reshape(tensor.shape)
    return CopyRange(first, staged, views)


def check_plan(plan: LaunchPlan, binding: BindingManifest, params: Sequence[int]) -> None:
    """Check that every address of a plan lies in what its binding has.

    Args:
        plan: the plan.
        binding: of the same artifact.
        params: the address of each of the binding's parameters.

    Raises:
        ArtifactError: one does not, or two parameters that it reads as one are apart.
    """
    for step in plan.steps:
        addresses = step.arguments if isinstance(step, KernelStep) else (step.a, step.b, step.c)
        for address in addresses:
            fits = {
                "null": True,
                "arena": address.offset < binding.arena,
                "param": address.index < len(params),
                "cache": bool(binding.page),
            }[address.space]
            if not fits:
                raise ArtifactError(
                    f"the launch plan's step {step.origin or type(step).__name__!r} names "
                    f"{address.to_json()}, which the binding does not have."
                )
    for offset, nbytes in plan.zeroed:
        if offset + nbytes > binding.arena:
            raise ArtifactError(f"the launch plan zeroes bytes {offset} on, behind the arena.")
    for first, second, nbytes in plan.adjacent:
        if max(first, second) >= len(params) or params[second] - params[first] != nbytes:
            raise ArtifactError(
                f"the launch plan reads parameters {first} and {second} as one, {nbytes} bytes "
                "apart; the packed weights have them elsewhere."
            )
