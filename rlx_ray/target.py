"""Targets: what an artifact is compiled for, and the pinned toolchains that build for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlx_ray.errors import ConfigError, nearest

ABI = 4
"""Version of the contract between artifacts and the runtime: entry point, pool, binding manifest.

Bump it when what it covers changes: `tests/pure/test_abi.py` lists that and fails until then.
"""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the artifacts of a kind of targets can do; the values are CPU and CUDA below.

    Attributes:
        compiler: the toolchain that builds for it, a key of `TOOLCHAINS`.
        packing: how weights are packed for it, a key of `identity.PACKING`.
        gpus: devices that a process needs to run it.
        packed_rows: native kernels compute the real token rows alone; else all that a variant has.
        precisions: what a profile's `precision.compute` may ask for.
        common_precisions: those of them that the common MatMul has.
        common_blocks: whether common kernels take quantised weights.
        fp8_weights: whether weights in fp8 have kernels.
        options: of a profile's `backend`; each is true or false.
    """

    compiler: str
    packing: str
    gpus: int
    packed_rows: bool
    precisions: tuple[str, ...]
    common_precisions: tuple[str, ...]
    common_blocks: bool
    fp8_weights: bool
    options: tuple[str, ...]


_CPU = Capabilities(
    compiler="zig",
    packing="panels",
    gpus=0,
    packed_rows=True,
    precisions=("f32", "bf16", "int8"),
    common_precisions=("f32",),
    common_blocks=False,
    fp8_weights=True,
    options=(),
)
_CUDA = Capabilities(
    compiler="nvrtc",
    packing="rows",
    gpus=1,
    packed_rows=False,
    precisions=("f32", "f16", "bf16"),
    common_precisions=("f32", "f16", "bf16"),
    common_blocks=True,
    fp8_weights=False,
    options=("tf32",),
)


@dataclass(frozen=True, slots=True)
class Target:
    """One thing to compile for.

    Attributes:
        name: the contract's spelling, such as `cpu-x86_64-v3`.
        kind: `cpu` or `cuda`: which backend, runtime and placement of replicas it has.
        triple: what the C compiler calls the machine (empty for cuda).
        cpu: what the compiler calls the processor: of cuda targets `sm_90` and so on, or
            `compute_80` for PTX, which any later device compiles for itself.
        features: feature flags of the host (as in /proc/cpuinfo) that the code needs, sorted.
        lanes: float32 lanes of one vector register.
        tile_rows: rows of the GEMM micro-kernel.
        tile_vectors: vector registers across the columns of the GEMM micro-kernel.
        can: what its artifacts can do.
    """

    name: str
    kind: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    lanes: int
    tile_rows: int
    tile_vectors: int
    can: Capabilities

    @property
    def panel(self) -> int:
        """Columns of one packed weight panel; 0 where weights are not packed in panels."""
        return self.lanes * self.tile_vectors

    @property
    def family(self) -> str:
        """Targets of one family share packed weights."""
        return f"{self.kind}-p{self.panel}" if self.panel else self.kind

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
    Target("cpu-x86_64-v3", "cpu", _X86, "x86_64_v3", tuple(sorted(_V3)), 8, 6, 2, _CPU),
    Target("cpu-x86_64-v4", "cpu", _X86, "x86_64_v4", tuple(sorted(_V4)), 16, 8, 2, _CPU),
    # Without SSE4a, which only AMD has, so that Sapphire Rapids and its successors run it too.
    Target("cpu-znver4", "cpu", _X86, "znver4-sse4a", tuple(sorted(_ZNVER4)), 16, 8, 2, _CPU),
    Target("cpu-znver5", "cpu", _X86, "znver5", tuple(sorted(_ZNVER5)), 16, 8, 2, _CPU),
    Target("cpu-aarch64", "cpu", _ARM, "generic", ("asimd",), 4, 6, 4, _CPU),
    Target(
        "cpu-aarch64-neoverse_v1",
        "cpu",
        _ARM,
        "neoverse_v1",
        ("asimd", "asimddp", "bf16", "i8mm", "sve"),
        4,
        6,
        4,
        _CPU,
    ),
)
"""The CPU targets. x86-64 ones are ordered from the most general to the most special."""

_ARCHITECTURES = ("compute_80", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")

CUDA_TARGETS: tuple[Target, ...] = tuple(
    Target(f"cuda-{arch}", "cuda", "", arch, (), 0, 0, 0, _CUDA) for arch in _ARCHITECTURES
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
    return TOOLCHAINS[wanted.can.compiler](wanted, choice)


def _zig(wanted: Target, choice: Mapping[str, object]) -> Toolchain:
    wide = ("-mprefer-vector-width=512",) if wanted.lanes == 16 else ()
    flags = ("-target", wanted.triple, f"-mcpu={wanted.cpu}", *_FREESTANDING, *wide)
    return Toolchain("zig", ZIG_VERSION, flags)


def _nvrtc(wanted: Target, choice: Mapping[str, object]) -> Toolchain:
    major = choice.get("cuda", max(NVRTC_VERSIONS))
    pins = NVRTC_VERSIONS.get(major) if isinstance(major, int) else None
    if pins is None:
        raise ConfigError(
            f"$.toolchain.cuda is {major!r}.", f"Use one of {sorted(NVRTC_VERSIONS)}."
        )
    nvrtc, headers = pins
    flags = (f"--gpu-architecture={wanted.cpu}", *NVRTC_FLAGS, f"headers={headers}")
    return Toolchain("nvrtc", nvrtc, flags)


TOOLCHAINS: Mapping[str, Callable[[Target, Mapping[str, object]], Toolchain]] = {
    "zig": _zig,
    "nvrtc": _nvrtc,
}
"""By a target's compiler, its pinned toolchain."""
