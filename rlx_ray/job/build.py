"""The parent of the child that compiles: limits, outcome, and nothing of the compiler itself."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rlx_ray import errors
from rlx_ray.artifact import Artifact, Manifest
from rlx_ray.digest import sha256_hex
from rlx_ray.errors import BuildLimitError, CompileError, RlxError
from rlx_ray.spec import BuildSpec

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_NO_MEMORY = ("MemoryError", "failed to map segment", "Cannot allocate memory")
"""What a child says that the address space limit stopped before it could say it properly."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one build may take: wall seconds, and bytes of address space of each process."""

    seconds: float = 300.0
    memory: int = 4 << 30


def build(spec: BuildSpec, limits: Limits = Limits()) -> Artifact:
    """Compile one variant in a child process.

    The child and the compilers that it starts are one process group; past the time limit all of it
    is killed, and the child ends with its parent. The memory limit is each process's address space.

    Raises:
        BuildLimitError: the child ran out of time or memory, or was killed.
        CompileError: the variant does not compile; ToolchainMissing and others as the child said.
    """
    with tempfile.TemporaryDirectory(prefix="rlx-job-") as name:
        folder = Path(name)
        code, log = _run(spec, folder, limits)
        if code == 0:
            return _read(spec, folder)
        raise _failure(folder, code, log, spec, limits)


def _run(spec: BuildSpec, folder: Path, limits: Limits) -> tuple[int | None, str]:
    """The child's exit status (None: out of time) and the end of what it said."""
    parent = os.getpid()

    def cap() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    child = subprocess.Popen(
        [sys.executable, "-m", "rlx_ray.job.worker", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=cap,
    )
    try:
        _, said = child.communicate(spec.dumps(), timeout=limits.seconds)
    except subprocess.TimeoutExpired:
        _kill(child)
        return None, ""
    except BaseException:
        _kill(child)
        raise
    return child.returncode, said.decode(errors="replace")[-2000:]


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the child's whole process group and reap the child."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        child.kill()
    child.communicate()


def _read(spec: BuildSpec, folder: Path) -> Artifact:
    manifest = Manifest.loads((folder / "manifest.json").read_bytes())
    if manifest.spec != spec:
        raise CompileError("the builder answered for another spec than it was given.")
    blobs = tuple((folder / ref.sha256).read_bytes() for ref in manifest.blobs)
    for ref, data in zip(manifest.blobs, blobs, strict=True):
        if sha256_hex(data) != ref.sha256:
            raise CompileError(f"the builder's {ref.role} blob does not have the hash it named.")
    return Artifact(manifest, blobs)


def _failure(folder: Path, code: int | None, log: str, spec: BuildSpec, limits: Limits) -> RlxError:
    what = f"building {spec.component.variant} of {spec.model!r} for {spec.target.name}"
    if code is None:
        return BuildLimitError(
            f"{what} took longer than {limits.seconds:g} s.", "Raise serve.build_timeout_s."
        )
    record = folder / "error.json"
    if record.exists():
        said = json.loads(record.read_text(encoding="utf-8"))
        if said["class"] == "MemoryError":
            return _memory(what, limits)
        kind = getattr(errors, said["class"], CompileError)
        return CompileError(said["message"]) if kind is RlxError else kind(said["message"])
    if any(sign in log for sign in _NO_MEMORY) or code in (
        -signal.SIGKILL,
        -signal.SIGSEGV,
        -signal.SIGABRT,
    ):
        return _memory(what, limits)
    return CompileError(f"{what} ended with status {code}:\n{log}")


def _memory(what: str, limits: Limits) -> BuildLimitError:
    return BuildLimitError(
        f"{what} wanted more than {limits.memory >> 20} MiB of memory, or was killed.",
        "Raise serve.build_memory_bytes, or give the node more memory.",
    )
