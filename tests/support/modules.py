"""Which files of the package a piece of work imports, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from rlx_ray.identity import PACKAGE


def loaded_by(code: str, data: bytes = b"") -> set[str]:
    """The files below `rlx_ray` that are imported once some code has run, relative to it.

    Args:
        code: Python statements.
        data: what they find on standard input.
    """
    tell = (
        "import json, sys\n"
        "names = [m.__file__ for n, m in sys.modules.items() if n.partition('.')[0] == 'rlx_ray']\n"
        "print(json.dumps(names))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}\n{tell}"],
        input=data,
        capture_output=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    found = {Path(f).relative_to(PACKAGE).as_posix() for f in json.loads(ran.stdout)}
    assert len(found) > 10
    return found
