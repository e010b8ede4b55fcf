"""Launches to an artifact's blobs: CUDA text of the distinct kernels, and the launch plan."""

from __future__ import annotations

from rlx_ray.artifact.launch_plan import GemmStep, KernelStep, LaunchPlan, Step
from rlx_ray.compiler.cuda.launches import KernelLaunch, Launches
from rlx_ray.compiler.cuda.source import unit
from rlx_ray.target import Target


def emit(program: Launches) -> str:
    """The unit with the program's kernels."""
    return unit(program.kernels)


def plan(program: Launches, target: Target) -> LaunchPlan:
    """The launch plan of a program."""
    steps = tuple(_step(step) for step in program.steps)
    return LaunchPlan(target.cpu, steps, program.zeroed, program.adjacent)


def _step(step: KernelLaunch | GemmStep) -> Step:
    if isinstance(step, GemmStep):
        return step
    how = step.kernel.launch
    addresses = tuple(address for _, address in step.arguments)
    return KernelStep(step.kernel.name, how.grid, how.block, how.shared, addresses, step.origin)
