"""Targets: what an artifact is compiled for, what a host can run, and the pinned toolchains."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlx_ray.errors import ConfigError, nearest

ABI = 4
"""Version of the contract between artifacts and the runtime: entry point, pool, binding manifest.

Bump it when what it covers changes: `tests/pure/test_abi.py` lists that and fails until then.
"""


@dataclass(frozen=True, slots=True)
class Target:
    """One thing to compile for.

    Attributes:
        name: the contract's spelling, such as `cpu-x86_64-v3`.
        kind: `cpu` or `cuda`.
        triple: what the C compiler calls the machine (empty for cuda).
        cpu: what the compiler calls the processor: of cuda targets `sm_90` and so on, or
            `compute_80` for PTX, which any later device compiles for itself.
        features: feature flags of the host (as in /proc/cpuinfo) that the code needs, sorted.
        lanes: float32 lanes of one vector register.
        tile_rows: rows of the GEMM micro-kernel.
        tile_vectors: vector registers across the columns of the GEMM micro-kernel.
    """

    name: str
    kind: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    lanes: int
    tile_rows: int
    tile_vectors: int

    @property
    def panel(self) -> int:
        """Columns of one packed weight panel."""
        return self.lanes * self.tile_vectors

    @property
    def family(self) -> str:
        """Targets of one family share packed weights."""
        return f"{self.kind}-p{self.panel}" if self.kind == "cpu" else self.kind

    @property
    def int8_dot(self) -> bool:
        """Whether one instruction adds four int8 products to an int32 lane."""
        return bool({"avx512_vnni", "asimddp"} & set(self.features))

    @property
    def bf16_dot(self) -> bool:
        """Whether one instruction adds two bf16 products to a float32 lane."""
        return bool({"avx512_bf16", "bf16"} & set(self.features))


_V3 = ("avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")
_V4 = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
_ZNVER4 = (
    *_V4,
    "avx512_bf16",
    "avx512_bitalg",
    "avx512_vbmi2",
    "avx512_vnni",
    "avx512_vpopcntdq",
    "avx512ifma",
    "avx512vbmi",
    "gfni",
    "vaes",
    "vpclmulqdq",
)
_ZNVER5 = (*_V4, "avx512_bf16", "avx512_vnni", "avx512_vp2intersect", "avx_vnni", "vaes")
_X86 = "x86_64-linux-none"
_ARM = "aarch64-linux-none"

CPU_TARGETS: tuple[Target, ...] = (
    Target("cpu-x86_64-v3", "cpu", _X86, "x86_64_v3", tuple(sorted(_V3)), 8, 6, 2),
    Target("cpu-x86_64-v4", "cpu", _X86, "x86_64_v4", tuple(sorted(_V4)), 16, 8, 2),
    # Without SSE4a, which only AMD has, so that Sapphire Rapids and its successors run it too.
    Target("cpu-znver4", "cpu", _X86, "znver4-sse4a", tuple(sorted(_ZNVER4)), 16, 8, 2),
    Target("cpu-znver5", "cpu", _X86, "znver5", tuple(sorted(_ZNVER5)), 16, 8, 2),
    Target("cpu-aarch64", "cpu", _ARM, "generic", ("asimd",), 4, 6, 4),
    Target(
        "cpu-aarch64-neoverse_v1",
        "cpu",
        _ARM,
        "neoverse_v1",
        ("asimd", "asimddp", "bf16", "i8mm", "sve"),
        4,
        6,
        4,
    ),
)
"""The CPU targets. x86-64 ones are ordered from the most general to the most special."""

_ARCHITECTURES = ("compute_80", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")

CUDA_TARGETS: tuple[Target, ...] = tuple(
    Target(f"cuda-{arch}", "cuda", "", arch, (), 0, 0, 0) for arch in _ARCHITECTURES
)
"""The CUDA targets, from the most general to the most special."""

TARGETS = (*CPU_TARGETS, *CUDA_TARGETS)
"""Every target, of each kind from the most general to the most special."""


def target(name: str) -> Target:
    """The target with a name.

    Raises:
        ConfigError: no such target.
    """
    for one in TARGETS:
        if one.name == name:
            return one
    names = [one.name for one in TARGETS]
    raise ConfigError(
        f"target {name!r} is not known.", nearest(name, names) or f"Use 'host' or one of {names}."
    )


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
        if wanted.kind == "cuda":
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
        ladder = [t for t in self.ladder() if t.kind == "cpu"]
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
            rungs = [t for t in reversed(CUDA_TARGETS) if not device_refusal(device, t)]
            found.update(dict.fromkeys(rungs[:1]))
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


@dataclass(frozen=True, slots=True)
class Toolchain:
    """The exact compiler that builds for a target, with its flags."""

    name: str
    version: str
    flags: tuple[str, ...]


ZIG_VERSION = "0.17.1"
"""Version of the `ziglang` wheel that the extra `build` pins: it decides the artifacts' bytes."""

_FREESTANDING = (
    "-std=gnu11",
    "-O3",
    "-nostdlib",
    "-ffreestanding",
    "-fPIC",
    "-shared",
    "-g0",
    "-Wl,-z,defs",
    "-Wl,--build-id=none",
    "-fno-stack-protector",
    "-fno-sanitize=all",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
)


NVRTC_VERSIONS: dict[int, tuple[str, str]] = {
    12: ("12.9.86", "12.9.79"),
    13: ("13.5.37", "13.5.37"),
}
"""By CUDA major: the versions of the wheels with NVRTC and with CUDA's headers, which the extras
`cuda12` and `cuda13` pin. They decide the artifacts' bytes."""

NVRTC_FLAGS = ("--std=c++17",)
"""Options of every compilation, beside the architecture's."""


def toolchain_for(wanted: Target, choice: Mapping[str, object]) -> Toolchain:
    """The pinned toolchain of a target; needs no toolchain on this machine.

    Args:
        wanted: the target.
        choice: the config's `toolchain` section, which selects among majors (`{cuda: 13}`).

    Raises:
        ConfigError: the section has a key that no toolchain knows, or a CUDA major without a pin.
    """
    for key in choice:
        if key != "cuda":
            raise ConfigError(f"$.toolchain.{key} is not known.", "The only key is 'cuda'.")
    if wanted.kind == "cuda":
        return _nvrtc(wanted, choice.get("cuda", max(NVRTC_VERSIONS)))
    wide = ("-mprefer-vector-width=512",) if wanted.lanes == 16 else ()
    flags = ("-target", wanted.triple, f"-mcpu={wanted.cpu}", *_FREESTANDING, *wide)
    return Toolchain("zig", ZIG_VERSION, flags)


def _nvrtc(wanted: Target, major: object) -> Toolchain:
    pins = NVRTC_VERSIONS.get(major) if isinstance(major, int) else None
    if pins is None:
        raise ConfigError(
            f"$.toolchain.cuda is {major!r}.", f"Use one of {sorted(NVRTC_VERSIONS)}."
        )
    nvrtc, headers = pins
    flags = (f"--gpu-architecture={wanted.cpu}", *NVRTC_FLAGS, f"headers={headers}")
    return Toolchain("nvrtc", nvrtc, flags)
