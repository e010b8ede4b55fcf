"""What a process tree listens on, read from /proc."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
LISTEN = "0A"


@dataclass(frozen=True)
class Listener:
    """A listening TCP socket, and who holds it."""

    pid: int
    name: str
    host: str
    port: int

    @property
    def on_loopback(self) -> bool:
        return self.host in ("127.0.0.1", "::1", "::ffff:127.0.0.1")


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def listeners(pid: int) -> list[Listener]:
    """What a process and all below it listen on; a socket counts for the first that holds it."""
    sockets = dict(_listening())
    found = []
    for member in tree(pid):
        with contextlib.suppress(OSError):
            for descriptor in (PROC / str(member) / "fd").iterdir():
                with contextlib.suppress(OSError):
                    inode = os.readlink(descriptor).removeprefix("socket:[").removesuffix("]")
                    if inode in sockets:
                        found.append(Listener(member, name(member), *sockets.pop(inode)))
    return found


def name(pid: int) -> str:
    """The words of a process's command line."""
    with contextlib.suppress(OSError):
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""


def environment(pid: int) -> dict[str, str]:
    """The variables that a process was started with, as its user may read them."""
    words = (PROC / str(pid) / "environ").read_bytes().decode().split("\0")
    return dict(word.split("=", 1) for word in words if "=" in word)


def _listening() -> Iterator[tuple[str, tuple[str, int]]]:
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in (PROC / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN:
                digits, port = fields[1].split(":")
                words = [int(digits[i : i + 8], 16) for i in range(0, len(digits), 8)]
                packed = b"".join(struct.pack("=I", word) for word in words)
                yield fields[9], (socket.inet_ntop(family, packed), int(port, 16))
