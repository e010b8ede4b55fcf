"""The processes of a Ray of our own, found by the folder that their command lines name."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

_PROC = Path("/proc")
_WAIT_SECONDS = 5.0


def below(folder: Path) -> Mapping[int, str]:
    """When those processes started whose command line names a folder, and all that they started.

    Ray's agents and workers rename themselves, so that only their parents tell whose they are: to
    be asked while the parents live.

    Returns:
        The time of start, as the kernel writes it, by process id; together they name a process.
    """
    found: dict[int, str] = {}
    children: dict[int, list[tuple[int, str]]] = {}
    todo: list[tuple[int, str]] = []
    for entry in _PROC.glob("[0-9]*"):
        pid = int(entry.name)
        parent, begun = _stat(pid)
        if not begun:
            continue
        children.setdefault(parent, []).append((pid, begun))
        if os.fsencode(folder) in _command_line(entry):
            todo.append((pid, begun))
    while todo:
        pid, begun = todo.pop()
        if pid not in found and pid != os.getpid():
            found[pid] = begun
            todo += children.get(pid, [])
    return found


def end(processes: Mapping[int, str]) -> None:
    """Kill those that still run, and wait until they are gone."""
    left = dict(processes)
    until = time.monotonic() + _WAIT_SECONDS
    while left and time.monotonic() < until:
        left = {pid: begun for pid, begun in left.items() if _stat(pid)[1] == begun}
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02 if left else 0)


def _stat(pid: int) -> tuple[int, str]:
    """A process's parent and its time of start; (0, "") if it is no more, or waits to be reaped."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0, ""
    return (0, "") if fields[0] in "ZX" else (int(fields[1]), fields[19])


def _command_line(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""
