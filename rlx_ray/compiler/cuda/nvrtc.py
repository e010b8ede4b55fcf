"""CUDA text to a cubin or PTX with NVRTC; needs neither a GPU nor a driver.

The same text gives the same bytes on any machine with the same NVRTC: headers are passed by their
content, nothing of the machine's folders enters the result, and there is no debug information.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from rlx_ray.compiler.cuda.source import sources
from rlx_ray.errors import CompileError, ToolchainMismatch, ToolchainMissing
from rlx_ray.target import NVRTC_FLAGS, Target, Toolchain

_INCLUDE = re.compile(r'#define RLX_NAME (\w+)\n(?:#define .*\n)*#include "(\w+\.cu)"')
_ERROR = re.compile(r"^(?:(\w+)/)?([\w.]+)\((\d+)\): (?:catastrophic )?error", re.M)
_ANY_KERNEL = re.compile(r"\b(\w+)/\w+\.cu\b|function '(\w+)'")
_LOG_LINES = 12
_PTX_VERSION = re.compile(rb"^\.version .*$", re.M)
_PTX_ISA = {13: b"9.0"}
"""By CUDA major: the PTX ISA that each of its drivers compiles, and that our PTX names as its own.
NVRTC names the newest, and older drivers of its major then refuse text that they know."""
_REMEDY = "Install it with: pip install 'rlx_ray[cuda13]' (or cuda12, as config.toolchain says)"


def installed_version() -> str | None:
    """The version of the NVRTC wheel on this machine; None if there is none."""
    if importlib.util.find_spec("cupy") is None:
        return None
    return _wheel("nvidia-cuda-nvrtc")


def _wheel(name: str) -> str | None:
    """The version of one of NVIDIA's wheels; those of CUDA 12 end their names with its major."""
    for full in (name, f"{name}-cu12"):
        try:
            return metadata.version(full)
        except metadata.PackageNotFoundError:
            continue
    return None


def check(toolchain: Toolchain) -> None:
    """Check that this machine has the pinned NVRTC and the pinned headers.

    Raises:
        ToolchainMissing: it lacks one of them.
        ToolchainMismatch: it has another version of one of them.
    """
    headers = next(f.partition("=")[2] for f in toolchain.flags if f.startswith("headers="))
    for what, wheel, found, pinned in (
        ("toolchain 'nvrtc'", "nvidia-cuda-nvrtc", installed_version(), toolchain.version),
        ("the CUDA headers", "nvidia-cuda-runtime", _wheel("nvidia-cuda-runtime"), headers),
    ):
        if found is None:
            raise ToolchainMissing(f"{what} {pinned} is not on this machine.", _REMEDY)
        if found != pinned:
            suffix = "-cu12" if pinned.startswith("12.") else ""
            raise ToolchainMismatch(
                f"{what} is {found} here, the spec pins {pinned}.",
                f"Install it with: pip install {wheel}{suffix}=={pinned}",
            )


def refusal(target: Target) -> str:
    """Why the NVRTC of this machine cannot build for a CUDA target; empty if it can."""
    try:
        known = supported()
    except ToolchainMissing as error:
        return str(error)
    if target.cpu in known:
        return ""
    return f"NVRTC {installed_version()} does not compile for {target.cpu}"


def build(source: str, target: Target, toolchain: Toolchain) -> bytes:
    """The code blob of a variant: a cubin, or PTX; `source` is what `cuda.emit` printed.

    Raises:
        ToolchainMissing, ToolchainMismatch: this machine lacks the pinned toolchain.
        CompileError: NVRTC does not know the architecture, or refuses the unit.
    """
    check(toolchain)
    return compile(source, target.cpu, sources())


@cache
def _library() -> Any:
    """CuPy's binding of NVRTC.

    Raises:
        ToolchainMissing: CuPy, NVRTC or one of their parts is not installed.
    """
    if installed_version() is None:
        raise ToolchainMissing("toolchain 'nvrtc' is not on this machine.", _REMEDY)
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except (ImportError, OSError, RuntimeError) as error:
        raise ToolchainMissing(f"toolchain 'nvrtc' does not load: {error}.", _REMEDY) from error
    return nvrtc


def version() -> tuple[int, int]:
    """Major and minor version of NVRTC, as it says itself.

    Raises:
        ToolchainMissing: there is none.
    """
    major, minor = _library().getVersion()
    return int(major), int(minor)


def supported() -> tuple[str, ...]:
    """Architectures that this NVRTC compiles for: `sm_80` and so on, then their PTX.

    Raises:
        ToolchainMissing: there is none.
    """
    numbers = tuple(_library().getSupportedArchs())
    return tuple(f"{kind}_{n}" for kind in ("sm", "compute") for n in numbers)


def compile(source: str, arch: str, headers: Mapping[str, str]) -> bytes:
    """The cubin, or for `compute_N` the PTX, of a unit.

    Args:
        source: the unit's text, as `cuda_kernels.unit` prints it.
        arch: one of `supported()`.
        headers: text of the files that may be included, by name.

    Raises:
        ToolchainMissing: NVRTC or the CUDA headers are not installed.
        CompileError: NVRTC does not know the architecture, or refuses the unit; the message names
            the kernel and the line, and holds the log's first lines.
    """
    return _compile(source, arch, headers, ())[0]


def report(source: str, arch: str, headers: Mapping[str, str]) -> str:
    """What ptxas says of a unit's kernels: registers, spills, shared memory (codegen/resources.py).

    The arguments and errors are those of `compile`; `arch` must be an `sm_N`.
    """
    return _compile(source, arch, headers, ("--ptxas-options=-v",))[1]


def _compile(
    source: str, arch: str, headers: Mapping[str, str], options: Sequence[str]
) -> tuple[bytes, str]:
    """The code of a unit, and NVRTC's log."""
    nvrtc = _library()
    if arch not in supported():
        raise CompileError(
            f"architecture {arch!r} is not one of NVRTC {'.'.join(map(str, version()))}.",
            f"It has {', '.join(supported())}.",
        )
    text, files = _named(source, headers)
    flags = [f"--gpu-architecture={arch}", *NVRTC_FLAGS, *options, f"-I{_includes()}"]
    contents, names = ([t.encode() for t in texts] for texts in (files.values(), files))
    program = nvrtc.createProgram(text, "unit.cu", contents, names)
    try:
        nvrtc.compileProgram(program, flags)
        made = nvrtc.getPTX(program) if arch.startswith("compute") else nvrtc.getCUBIN(program)
        log = str(nvrtc.getProgramLog(program))
    except nvrtc.NVRTCError as error:
        log = str(nvrtc.getProgramLog(program)).strip() or str(error)
        raise _refused(source, arch, log) from None
    finally:
        nvrtc.destroyProgram(program)
    code = made if isinstance(made, bytes) else str(made).encode()
    if arch.startswith("compute"):
        code = _for_older_drivers(code)
    return code, log


def _for_older_drivers(ptx: bytes) -> bytes:
    """PTX that names the ISA of its major's first driver, which refuses what it lacks."""
    oldest = _PTX_ISA.get(version()[0])
    return _PTX_VERSION.sub(b".version " + oldest, ptx, count=1) if oldest else ptx


def _named(source: str, headers: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """A unit that includes each instance's file under the instance's name.

    The log then says which instance of a file it speaks of.
    """
    files = dict(headers)

    def rename(found: re.Match[str]) -> str:
        name, file = found.groups()
        if file in headers:
            files[f"{name}/{file}"] = headers[file]
        return found[0].replace(f'"{file}"', f'"{name}/{file}"')

    return _INCLUDE.sub(rename, source), files


def _refused(source: str, arch: str, log: str) -> CompileError:
    found = _ERROR.search(log)
    place = ""
    if found:
        name, file, line = found.groups()
        if name is None and file == "unit.cu":
            before = "\n".join(source.splitlines()[: int(line)])
            names = re.findall(r"#define RLX_NAME (\w+)", before)
            name = names[-1] if names else None
        place = f", {file} line {line}"
    else:
        name = None
    if name is None:
        other = _ANY_KERNEL.search(log)
        name = (other[1] or other[2]) if other else None
    kernel = f"kernel {name!r}" if name else "the unit"
    lines = "\n".join(log.splitlines()[:_LOG_LINES])
    return CompileError(f"NVRTC refused {kernel} for {arch}{place}:\n{lines}")


@cache
def _includes() -> Path:
    """The folder of the CUDA runtime's headers in the installed wheels.

    Raises:
        ToolchainMissing: no wheel has them.
    """
    spec = importlib.util.find_spec("nvidia")
    major = version()[0]
    for root in spec.submodule_search_locations or () if spec else ():
        for folder in (Path(root) / f"cu{major}", Path(root) / "cuda_runtime"):
            if (folder / "include" / "cuda_fp16.h").is_file():
                return folder / "include"
    raise ToolchainMissing("the headers of the CUDA runtime are not on this machine.", _REMEDY)
