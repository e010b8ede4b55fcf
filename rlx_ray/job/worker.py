"""The child that compiles one variant: `python -m rlx_ray.job.worker FOLDER`.

It reads the BuildSpec's JSON from standard input and writes into FOLDER either `manifest.json` and
one file per blob (named by sha256), or `error.json` with the class, and words of the failure.
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from pathlib import Path

from rlx_ray.errors import RlxError

_ROOT = Path(__file__).parent.parent.parent


def main(folder: Path) -> int:
    """Compile the spec on standard input; 0 on success, 1 with `error.json` otherwise."""
    try:
        _compile(folder)
    except Exception as error:
        traceback.print_exc()
        (folder / "error.json").write_text(json.dumps(_record(error)), encoding="utf-8")
        return 1
    return 0


def _compile(folder: Path) -> None:
    # Imported here, so that an import that fails is told like any other failure.
    from rlx_ray.compiler.compile import compile
    from rlx_ray.spec import BuildSpec

    tempfile.tempdir = str(folder)  # this process may be killed, and its parent removes the folder
    artifact = compile(BuildSpec.loads(sys.stdin.buffer.read()))
    for ref, data in zip(artifact.manifest.blobs, artifact.blobs, strict=True):
        (folder / ref.sha256).write_bytes(data)
    (folder / "manifest.json").write_bytes(artifact.manifest.dumps())


def _record(error: Exception) -> dict[str, str]:
    """An error as data: its class, message and remedy; `fault` says what others are a sign of.

    That is `memory` or `machine` where the operating system refused something, else `compiler`.
    """
    if isinstance(error, RlxError):
        said = {"message": error.message, "remedy": error.remedy}
    else:
        said = {"message": f"{error} (at {_place(error)})", "fault": _fault(error)}
    return {"class": type(error).__name__, **said}


def _fault(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "memory"
    return "machine" if isinstance(error, OSError) else "compiler"


def _place(error: Exception) -> str:
    """File and line where an error was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    file = Path(last.filename)
    return f"{file.relative_to(_ROOT) if file.is_relative_to(_ROOT) else file}:{last.lineno}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
