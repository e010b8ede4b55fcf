"""The child that compiles one variant: `python -m rlx_ray.job.worker FOLDER`.

It reads the BuildSpec's JSON from standard input and writes into FOLDER either `manifest.json` and
one file per blob (named by sha256), or `error.json` with the class and message of the failure.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rlx_ray.compiler import compile
from rlx_ray.errors import RlxError
from rlx_ray.spec import BuildSpec


def main(folder: Path) -> int:
    """Compile the spec on standard input; 0 on success, 1 with `error.json` otherwise."""
    try:
        artifact = compile(BuildSpec.loads(sys.stdin.buffer.read()))
    except (RlxError, MemoryError) as error:
        message = str(error) or "out of memory"
        record = {"class": type(error).__name__, "message": message}
        (folder / "error.json").write_text(json.dumps(record), encoding="utf-8")
        return 1
    for ref, data in zip(artifact.manifest.blobs, artifact.blobs, strict=True):
        (folder / ref.sha256).write_bytes(data)
    (folder / "manifest.json").write_bytes(artifact.manifest.dumps())
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
