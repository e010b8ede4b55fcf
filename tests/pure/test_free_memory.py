"""How much memory a process may still take, as Linux and its control groups say."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlx_ray.errors import DeviceMemoryError
from rlx_ray.runtime.cpu import cache_pages
from rlx_ray.runtime.free_memory import free_bytes

GIB = 1 << 30


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root with 8 GiB available, a process's groups, and files of theirs."""
    texts = {
        "proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 8388608 kB\n",
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(where: str, limit: str, used: int, cached: int) -> dict[str, str]:
    """Files of a group of version 2."""
    stat = f"anon 5\nactive_file {cached // 2}\ninactive_file {cached // 2}\n"
    names = {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": stat}
    return {f"{where}{name}": text for name, text in names.items()}


def test_without_groups_it_is_what_is_available(tmp_path: Path) -> None:
    assert free_bytes(machine(tmp_path, "0::/\n", {})) == 8 * GIB


@pytest.mark.parametrize(
    ("own", "above", "free"),
    [
        (("max", 5, 0), ("max", 5, 0), 8 * GIB),
        ((str(4 * GIB), 3 * GIB, GIB), ("max", 5, 0), 2 * GIB),
        ((str(4 * GIB), GIB, 0), (str(5 * GIB), 4 * GIB, 0), GIB),
        ((str(GIB), 2 * GIB, 0), ("max", 5, 0), 0),
        ((str(99 * GIB), 0, 0), ("max", 5, 0), 8 * GIB),
    ],
    ids=["no limit", "its own", "one above", "overdrawn", "more than there is"],
)
def test_the_tightest_group_counts(tmp_path: Path, own, above, free: int) -> None:
    files = group("pod/box/", *own) | group("pod/", *above)
    assert free_bytes(machine(tmp_path, "0::/pod/box\n", files)) == free


def test_version_1_is_read_too(tmp_path: Path) -> None:
    quarter = GIB // 4
    files = {
        "memory/box/memory.limit_in_bytes": str(2 * GIB),
        "memory/box/memory.usage_in_bytes": str(GIB),
        "memory/box/memory.stat": f"active_file 7\ntotal_active_file {quarter}\n"
        f"total_inactive_file {quarter}\n",
    }
    groups = "9:name=systemd:/\n4:cpu,memory:/box\n1:cpu:/box\n0::/\n"
    assert free_bytes(machine(tmp_path, groups, files)) == GIB + GIB // 2


def test_this_machine_has_some() -> None:
    assert 1 << 20 < free_bytes() < 1 << 50


def test_a_cache_without_host_memory_is_a_device_memory_error() -> None:
    with pytest.raises(DeviceMemoryError, match=f"no room for a cache of {1 << 60} bytes"):
        cache_pages(1 << 40, 1 << 20)
