"""What this machine can run: its processor and devices against what targets need."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from rlx_ray.errors import ConfigError
from rlx_ray.target import CPU_TARGETS, CUDA_TARGETS, TARGETS, Target


@dataclass(frozen=True, slots=True)
class Host:
    """The processor of one machine.

    Attributes:
        arch: `x86_64` or `aarch64`, as `platform.machine()` says.
        features: all its feature flags.
        model: its name, for reports.
        devices: architectures of the CUDA devices that this process may use, such as `sm_90`.
        no_device: why there are none.
    """

    arch: str
    features: frozenset[str]
    model: str
    devices: tuple[str, ...] = ()
    no_device: str = "no CUDA device is visible"

    def refusal(self, wanted: Target) -> str:
        """Why this host cannot run a target; empty if it can."""
        if wanted.can.gpus:
            reasons = [device_refusal(device, wanted) for device in self.devices]
            return min(reasons, key=bool, default=self.no_device)
        if not wanted.triple.startswith(self.arch):
            return f"the host is {self.arch}"
        missing = sorted(set(wanted.features) - self.features)
        return f"the host lacks {', '.join(missing)}" if missing else ""

    def ladder(self) -> tuple[Target, ...]:
        """The targets that this host can run, the best first."""
        return tuple(t for t in reversed(TARGETS) if not self.refusal(t))

    def best(self) -> Target:
        """The CPU target that `host` means in a config.

        Raises:
            ConfigError: the host is older than every target.
        """
        ladder = [t for t in self.ladder() if not t.can.gpus]
        if not ladder:
            raise ConfigError(
                f"target 'host' names no known target on this {self.arch} machine ({self.model}).",
                f"Name one of {[t.name for t in CPU_TARGETS]}.",
            )
        return ladder[0]

    def targets(self) -> tuple[Target, ...]:
        """All that `host` means in a config: the best CUDA target of each device, then the CPU's.

        Raises:
            ConfigError: see `best`.
        """
        found: dict[Target, None] = {}
        for device in self.devices:
            fitting = [t for t in reversed(CUDA_TARGETS) if not device_refusal(device, t)]
            found.update(dict.fromkeys(fitting[:1]))
        return (*found, self.best())


def device_refusal(device: str, wanted: Target) -> str:
    """Why a CUDA device cannot run a target; empty if it can.

    A cubin runs on devices of its major version whose minor one is not lower; PTX on all that are
    not older.

    Args:
        device: its architecture, such as `sm_89`.
        wanted: a CUDA target.
    """
    kind, _, number = wanted.cpu.partition("_")
    have, want = int(device.removeprefix("sm_")), int(number)
    if have < want:
        return f"the device is {device}, older than {wanted.cpu}"
    if kind == "sm" and have // 10 != want // 10:
        return f"the device is {device}, and cubins run only within their major version"
    return ""


def this_host(cpuinfo: Path = Path("/proc/cpuinfo")) -> Host:
    """The host that this process runs on, read from the kernel's processor table.

    It names no CUDA devices: `runtime.cuda.this_host` looks for them.
    """
    features: frozenset[str] = frozenset()
    model = platform.processor() or platform.machine()
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        match name.strip():
            case "flags" | "Features":
                features = frozenset(value.split())
            case "model name":
                model = value.strip()
            case "":
                break
            case _:
                pass
    return Host(platform.machine(), features, model)
