"""The parent of the child that compiles: limits, outcome, and nothing of the compiler itself."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rlx_ray import errors
from rlx_ray.artifact.manifest import Artifact, Manifest
from rlx_ray.digest import sha256_hex
from rlx_ray.errors import REPORT, BuildLimitError, CompileError, RlxError, signalled
from rlx_ray.job import child
from rlx_ray.job.child import ChildExit, Limit
from rlx_ray.spec import BuildSpec

_LOG = logging.getLogger(__name__)

_MACHINE = "Check that the builder has memory, and a temporary folder with room."


@dataclass(frozen=True, slots=True)
class BuildLimits:
    """What one build may take.

    Attributes:
        seconds: wall time.
        memory: resident bytes of the child and all that it starts, together.
    """

    seconds: float = 300.0
    memory: int = 4 << 30


def build(spec: BuildSpec, limits: BuildLimits = BuildLimits()) -> Artifact:
    """Compile one variant in a child process.

    Past a limit the child and the compilers that it started are killed; they end with this process
    too, and leave neither processes nor files.

    Raises:
        BuildLimitError: the build took more time or memory than it may, or the machine refused it
            memory.
        CompileError: the variant does not compile, or the child was killed, crashed, or failed in a
            way that is a bug; ToolchainMissing and others as the child said.
    """
    with tempfile.TemporaryDirectory(prefix="rlx-job-") as name:
        folder = Path(name)
        words = [sys.executable, "-m", "rlx_ray.job.worker", name]
        ended = child.run(words, spec.dumps(), limits.seconds, limits.memory)
        if ended.status == 0 and ended.limit is None:
            return _read(spec, folder)
        what = f"building {spec.component.variant} of {spec.model!r} for {spec.target.name}"
        _LOG.debug("%s ended with status %d and wrote: %s", what, ended.status, ended.log)
        raise _failure(what, ended, limits, folder)


def _read(spec: BuildSpec, folder: Path) -> Artifact:
    manifest = Manifest.loads((folder / "manifest.json").read_bytes())
    if manifest.spec != spec:
        raise CompileError("the builder answered for another spec than it was given.")
    blobs = tuple((folder / ref.sha256).read_bytes() for ref in manifest.blobs)
    for ref, data in zip(manifest.blobs, blobs, strict=True):
        if sha256_hex(data) != ref.sha256:
            raise CompileError(f"the builder's {ref.role} blob does not have the hash it named.")
    return Artifact(manifest, blobs)


def _failure(what: str, ended: ChildExit, limits: BuildLimits, folder: Path) -> RlxError:
    allowed = f"its memory limit of {limits.memory >> 20} MiB"
    peak = f"{-(-ended.peak >> 20)} MiB resident"
    match ended.limit:
        case Limit.TIME:
            return BuildLimitError(
                f"{what} took longer than {limits.seconds:g} s, its time limit.",
                "Raise serve.build_timeout_s (or --timeout).",
            )
        case Limit.MEMORY:
            return BuildLimitError(
                f"{what} had {peak}, more than {allowed}.",
                "Raise serve.build_memory_bytes (or --memory).",
            )
        case None:
            pass
    if ended.status < 0:
        return signalled(what, -ended.status, f"it had up to {peak}" if ended.peak else "")
    said = _said(folder)
    if said.get("fault") == "memory":
        return BuildLimitError(
            f"{what} was refused memory by the machine: it had up to {peak}, within {allowed}.",
            "Give the builder more memory, or see what limits its address space (ulimit -v).",
        )
    if said:
        return _theirs(what, said)
    last = ended.log.strip().rpartition("\n")[2]
    words = f"its last words: {last}" if last else "without a word"
    return CompileError(f"{what} ended with status {ended.status}, {words}.", REPORT)


def _said(folder: Path) -> dict[str, str]:
    """What the child says of its failure; nothing if it could not, or not to the end."""
    try:
        said: dict[str, str] = json.loads((folder / "error.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return said


def _theirs(what: str, said: dict[str, str]) -> RlxError:
    """The child's own error; a CompileError for one that is not raised on purpose."""
    if "fault" in said:
        line = " ".join(said["message"].split())
        remedy = _MACHINE if said["fault"] == "machine" else REPORT
        return CompileError(f"{what} ended with {said['class']}: {line}.", remedy)
    kind = getattr(errors, said["class"], RlxError)
    return (CompileError if kind is RlxError else kind)(said["message"], said["remedy"])
