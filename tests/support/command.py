"""The command line as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ENV = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'serve'}", "COLUMNS": "200"}


def start(
    *words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `rlx-ray` with some words, its output and its log in pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "rlx_ray.cli", *words],
        env={**ENV, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        preexec_fn=_hear_ctrl_c,
    )


@contextmanager
def serving(*words: str, log: Path) -> Iterator[subprocess.Popen[str]]:
    """`rlx-ray serve` with some words, its log in a file; killed if a test leaves it running."""
    with (
        log.open("w") as said,
        subprocess.Popen(
            [sys.executable, "-m", "rlx_ray.cli", "serve", *words],
            env=ENV,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            cwd=log.parent,
            preexec_fn=_hear_ctrl_c,
        ) as server,
    ):
        try:
            yield server
        finally:
            server.kill()


def _hear_ctrl_c() -> None:
    """Undo what a shell does to the jobs that it starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
