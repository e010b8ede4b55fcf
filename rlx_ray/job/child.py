"""A child process under limits of time and memory: how it ended, and what it took.

Which limit was hit is what the parent measured, never what the child said. Memory is what is
resident, since compilers reserve far more addresses than they use. Linux 5.3 or later.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import IO

_PROC = Path("/proc")
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PF_FORKNOEXEC = 0x40
_PAGE = resource.getpagesize()
_POLL_SECONDS = 0.02
_GONE_SECONDS = 1.0
_LOG_BYTES = 8000
_FORK_BYTES = 16 << 20
"""More than what a fork adds to its parent's pages before it starts a program."""


class Limit(Enum):
    """A limit that a child can hit."""

    TIME = "time"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class ChildExit:
    """How a child ended.

    Attributes:
        status: its exit status, or minus the signal that ended it.
        limit: the limit that it hit and was killed for, if any.
        peak: most resident bytes of it and all that it started, together, as far as was seen.
        log: the end of what it wrote to standard error.
    """

    status: int
    limit: Limit | None
    peak: int
    log: str


def run(words: Sequence[str], given: bytes, seconds: float, memory: int) -> ChildExit:
    """Run a program to its end or past a limit; all that it started ends with it.

    The child ends with its parent's thread, has a session of its own, and leaves no core.

    Args:
        words: the program and its arguments.
        given: its standard input, of any size.
        seconds: of wall time that it may take.
        memory: resident bytes that it and all that it starts may have together. They are measured
            50 times a second: what is taken and given back in between is seen only in part.
    """
    with tempfile.TemporaryFile() as stdin:
        stdin.write(given)
        stdin.seek(0)
        child = subprocess.Popen(
            words,
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=partial(_bind, os.getpid()),
        )
    assert child.stderr is not None
    with child.stderr:
        tail = _Tail(child.stderr)
        try:
            limit, peak = _watch(child.pid, tail, seconds, memory)
        finally:
            largest = _end(child)
        while tail.read():
            pass
    peak = max(peak, largest)
    if limit is None and peak > memory:
        limit = Limit.MEMORY
    return ChildExit(child.returncode, limit, peak, tail.text.decode(errors="replace"))


def _bind(parent: int) -> None:
    """What the child does before it starts its program, to end with its parent.

    What its own children leave behind becomes its own, so that it stays in sight.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class _Tail:
    """The end of what a pipe says; reading never waits."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.fd = pipe.fileno()
        self.text = b""
        os.set_blocking(self.fd, False)

    def read(self) -> bool:
        """Take what is there; false if there was nothing."""
        try:
            said = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return False
        self.text = (self.text + said)[-_LOG_BYTES:]
        return bool(said)


def _watch(pid: int, tail: _Tail, seconds: float, memory: int) -> tuple[Limit | None, int]:
    """Wait for a child's end, or for the limit that it hits; with the most resident bytes seen."""
    ends = time.monotonic() + seconds
    look, peak = 0.0, 0
    end = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(end, select.POLLIN)
        poller.register(tail.fd, select.POLLIN)
        while True:
            if time.monotonic() >= look:
                peak = max(peak, resident(pid))
                look = time.monotonic() + _POLL_SECONDS
            if peak > memory:
                return Limit.MEMORY, peak
            left = min(look, ends) - time.monotonic()
            ready = {fd for fd, _ in poller.poll(max(left, 0.0) * 1000)}
            if end in ready:
                return None, peak
            if tail.fd in ready and not tail.read():
                poller.unregister(tail.fd)
            if time.monotonic() >= ends:
                return Limit.TIME, peak
    finally:
        os.close(end)


def resident(pid: int, parents: int = 0) -> int:
    """Resident bytes of a process and all that it has started; 0 if it has ended.

    Pages that several programs map count for each of them. Until a fork starts a program its pages
    are its parent's, so that only what it has beyond them counts.

    Args:
        pid: the process.
        parents: resident bytes of its parent.
    """
    process = _PROC / str(pid)
    try:
        fields = _stat(process)
        lists = [(task / "children").read_text() for task in (process / "task").iterdir()]
    except OSError:
        return 0
    flags, own = int(fields[6]), int(fields[21]) * _PAGE
    counted = max(own - parents, 0) if flags & _PF_FORKNOEXEC else own
    return counted + sum(resident(int(child), own) for one in lists for child in one.split())


def _stat(process: Path) -> list[bytes]:
    """The fields of proc(5)'s `stat` from the state on."""
    # The program's name before them, in brackets, may hold anything.
    return (process / "stat").read_bytes().rpartition(b")")[2].split()


def _end(child: subprocess.Popen[bytes]) -> int:
    """Kill what is left of the child's group and wait until it is gone.

    Returns:
        The most resident bytes of one process of it, or 0 where that may be this process's own: a
        fork has its parent's pages, and the kernel counts them.
    """
    inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + _FORK_BYTES
    _kill(child.pid, signal.SIGKILL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    until = time.monotonic() + _GONE_SECONDS
    while _lives(child.pid) and time.monotonic() < until:
        time.sleep(0.002)
    largest = used.ru_maxrss * 1024
    return largest if largest > inherited else 0


def _lives(group: int) -> bool:
    """Whether a process of a group still runs; one that nobody has reaped does not."""
    if not _kill(group, 0):
        return False
    for process in _PROC.glob("[0-9]*"):
        with suppress(OSError):
            state, _, of, *_ = _stat(process)
            if int(of) == group and state not in b"ZX":
                return True
    return False


def _kill(group: int, number: int) -> bool:
    """Send a signal to a process group; false if nobody is left in it."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)
        return True
    return False
