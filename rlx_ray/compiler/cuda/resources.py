"""What CUDA kernels take of a multiprocessor, as ptxas reports it, and how many blocks fit on one.

Sources: CUDA C++ Programming Guide, "Technical specifications per compute capability"; CUDA
Occupancy Calculator, for the units in which registers and warps are given out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rlx_ray.compiler.cuda import nvrtc
from rlx_ray.compiler.cuda.kernel_table import Instance
from rlx_ray.compiler.cuda.source import sources, unit
from rlx_ray.errors import CompileError
from rlx_ray.target import Target

_REGISTERS = 65536
_WARP_UNIT = 256  # registers that a warp gets at a time
_RESERVED = 1024  # bytes of shared memory that the system takes of each block

_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True, slots=True)
class MultiprocessorLimits:
    """What a multiprocessor has, at most, at once: warps, blocks, bytes of shared memory."""

    warps: int
    blocks: int
    shared: int


LIMITS = {
    "sm_80": MultiprocessorLimits(64, 32, 164 << 10),
    "sm_86": MultiprocessorLimits(48, 16, 100 << 10),
    "sm_89": MultiprocessorLimits(48, 24, 100 << 10),
    "sm_90": MultiprocessorLimits(64, 32, 228 << 10),
    "sm_100": MultiprocessorLimits(64, 32, 228 << 10),
    "sm_120": MultiprocessorLimits(48, 24, 100 << 10),
}
"""By architecture."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a kernel takes.

    Attributes:
        registers: of a thread.
        stack: bytes of local memory of a thread, where registers are spilled to.
        spilled: bytes that a thread's instructions store there because registers are lacking.
        shared: bytes of shared memory of a block that do not depend on the launch.
    """

    registers: int
    stack: int
    spilled: int
    shared: int


@dataclass(frozen=True, slots=True)
class Usage:
    """A kernel of a program on an architecture.

    Attributes:
        kernel: its name.
        resources: what ptxas says.
        block: threads of a block.
        shared: bytes of shared memory of a block, those of the launch too.
        blocks: that a multiprocessor has at once.
        occupancy: warps that it then has, of those that it can have.
    """

    kernel: str
    resources: Resources
    block: int
    shared: int
    blocks: int
    occupancy: float


def usage(kernels: Iterable[Instance], arch: str) -> list[Usage]:
    """Compile kernels for an architecture and say what they take, in their order.

    Raises:
        ToolchainMissing: NVRTC or the CUDA headers are not installed.
        CompileError: NVRTC refuses them, or there is no table of the architecture.
    """
    if arch not in LIMITS:
        raise CompileError(
            f"nothing is known of the registers of {arch!r}: PTX has none before a driver compiles "
            "it.",
            f"Use a target of {', '.join(LIMITS)}.",
        )
    made = list(kernels)
    found = parse(nvrtc.report(unit(made), arch, sources())) if made else {}
    return [_usage(one, found[one.name], LIMITS[arch]) for one in made]


def parse(log: str) -> dict[str, Resources]:
    """The kernels of a log of ptxas with `-v`, by name.

    Raises:
        CompileError: the log is not as this NVRTC writes it.
    """
    found = {}
    for part in _ENTRY.split(log)[1:]:
        if part.isidentifier():
            name = part
            continue
        stack, used, shared = _STACK.search(part), _USED.search(part), _SHARED.search(part)
        if stack is None or used is None:
            raise CompileError(f"ptxas does not say what kernel {name!r} takes:\n{part.strip()}")
        own = int(shared[1]) if shared else 0
        found[name] = Resources(int(used[1]), int(stack[1]), int(stack[2]), own)
    return found


def blocks(limits: MultiprocessorLimits, registers: int, block: int, shared: int) -> int:
    """Blocks that a multiprocessor has at once.

    Args:
        limits: the multiprocessor's.
        registers: of a thread.
        block: threads of a block, a multiple of 32.
        shared: bytes of shared memory of a block.
    """
    warps = block // 32
    of_warp = -(-registers * 32 // _WARP_UNIT) * _WARP_UNIT
    held = _REGISTERS // of_warp // 4 * 4  # a multiprocessor has four schedulers
    by_shared = limits.shared // (-(-shared // 128) * 128 + _RESERVED)
    return min(held // warps, limits.warps // warps, limits.blocks, by_shared)


def _usage(one: Instance, own: Resources, limits: MultiprocessorLimits) -> Usage:
    how = one.launch
    shared = own.shared + how.shared
    fit = blocks(limits, own.registers, how.block, shared)
    return Usage(one.name, own, how.block, shared, fit, fit * (how.block // 32) / limits.warps)


def report(kernels: Iterable[Instance], target: Target) -> list[dict[str, Any]] | str:
    """What each kernel takes of a multiprocessor; why that is not known where it is not."""
    if target.cpu not in LIMITS:
        return f"{target.cpu} is PTX: the driver that compiles it gives out the registers.\n"
    reason = nvrtc.refusal(target)
    if reason:
        return reason + "\n"
    return [
        {
            "kernel": one.kernel,
            "registers": one.resources.registers,
            "local_bytes": one.resources.stack,
            "shared_bytes": one.shared,
            "block": one.block,
            "blocks": one.blocks,
            "occupancy": round(one.occupancy, 3),
        }
        for one in usage(kernels, target.cpu)
    ]
