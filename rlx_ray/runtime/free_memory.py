"""How much memory of this machine a process may still take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_UNIFIED = ("memory.max", "memory.current", "")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
"""Names of the limit and of what is used, and what names in `memory.stat` begin with."""

_CACHED = ("active_file", "inactive_file")
"""The part of it that gives way for more: weights that a replica before this one has read, too."""


def free_bytes(root: Path = Path("/")) -> int:
    """Bytes that are free on this host, or as much less as this process's control groups allow.

    Linux's `MemAvailable`, and of every control group that the process is in, version 1 or 2, the
    limit less what is used; files that are cached do not count as used.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    lines = (root / "proc/meminfo").read_text().splitlines()
    (free,) = (int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    return max(0, min([free, *_allowed(root)]))


def _allowed(root: Path) -> Iterator[int]:
    """What each of the process's control groups leaves it."""
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        mount, names = root / "sys/fs/cgroup", _UNIFIED
        if number != "0":
            mount, names = mount / "memory", _VERSION_1
        if number == "0" or "memory" in controllers.split(","):
            own = PurePosixPath(path)
            for group in (own, *own.parents):
                yield from _left(mount / str(group).lstrip("/"), *names)


def _left(group: Path, limit: str, used: str, prefix: str) -> Iterator[int]:
    """What a control group leaves; nothing if it has no limit, or is not visible here."""
    try:
        most, now = (group / limit).read_text().strip(), int((group / used).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return
    if most != "max":
        yield int(most) - now + sum(int(stat.get(prefix + name, 0)) for name in _CACHED)
