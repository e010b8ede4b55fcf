"""A child under limits: what it took and how it ended is measured, not guessed from its words."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlx_ray.job import child
from rlx_ray.job.child import ChildExit, Limit

MIB = 1 << 20
TAKE = "import time; held = b'1' * ({} << 20); time.sleep({})"


def run(
    code: str, *words: str, given: bytes = b"", seconds: float = 60.0, mib: int = 512
) -> ChildExit:
    return child.run([sys.executable, "-c", code, *words], given, seconds, mib * MIB)


def is_gone(pid: str) -> bool:
    """Ended, if maybe not yet reaped by whoever inherited it."""
    stat = Path("/proc") / pid / "stat"
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_the_time_limit_is_told_and_ends_the_child() -> None:
    begun = time.monotonic()
    ended = run("import time; time.sleep(60)", seconds=0.2)
    assert (ended.limit, ended.status) == (Limit.TIME, -signal.SIGKILL)
    assert time.monotonic() - begun < 30


def test_memory_is_told_with_what_was_measured() -> None:
    ended = run(TAKE.format(200, 60), mib=100)
    assert (ended.limit, ended.status) == (Limit.MEMORY, -signal.SIGKILL)
    assert ended.peak > 100 * MIB


@pytest.mark.parametrize(("mib", "limit"), [(150, Limit.MEMORY), (300, None)])
def test_memory_of_all_that_a_child_starts_counts_together(mib: int, limit: Limit | None) -> None:
    start = (
        "import subprocess, sys; held = b'1' * (80 << 20); "
        "subprocess.run([sys.executable, '-c', sys.argv[1]])"
    )
    ended = run(start, TAKE.format(80, 0.5 if limit is None else 60), mib=mib)
    assert ended.limit is limit


def test_memory_of_an_orphan_counts() -> None:
    leave = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])"
    start = (
        "import subprocess, sys, time; "
        f"subprocess.run([sys.executable, '-c', {leave!r}, sys.argv[1]]); time.sleep(60)"
    )
    assert run(start, TAKE.format(150, 60), mib=100).limit is Limit.MEMORY


def test_addresses_that_are_only_reserved_do_not_count() -> None:
    ended = run("import mmap; held = mmap.mmap(-1, 8 << 30, flags=mmap.MAP_PRIVATE)", mib=100)
    assert (ended.limit, ended.status, ended.log) == (None, 0, "")


def test_a_fork_does_not_count_its_parents_pages_again() -> None:
    fork = (
        "import os, time; held = b'1' * (100 << 20); pid = os.fork(); time.sleep(0.3); "
        "pid and os.waitpid(pid, 0)"
    )
    ended = run(fork, mib=180)
    assert (ended.limit, ended.status) == (None, 0)


def test_what_the_parent_has_is_not_the_childs() -> None:
    held = b"1" * (200 * MIB)
    ended = run("pass", mib=100)
    assert (ended.limit, ended.status, len(held)) == (None, 0, 200 * MIB)


def test_a_peak_between_two_looks_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_POLL_SECONDS", 60.0)
    # As if this process were small: what it has itself could be all that the kernel counts.
    monkeypatch.setattr(child.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=0))
    ended = run(TAKE.format(200, 0), mib=100)
    assert (ended.limit, ended.status) == (Limit.MEMORY, 0)


def test_a_short_child_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_POLL_SECONDS", 60.0)
    begun = time.monotonic()
    assert run("pass").status == 0
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_signal_is_a_status_and_no_limit(number: signal.Signals) -> None:
    ended = run(f"import os; os.kill(os.getpid(), {int(number)})")
    assert (ended.limit, ended.status) == (None, -number)


def test_full_pipes_block_neither_side() -> None:
    say = (
        "import sys; sys.stderr.write('x' * 8_000_000); "
        "print(len(sys.stdin.read()), file=sys.stderr)"
    )
    ended = run(say, given=b"y" * 8_000_000)
    assert (ended.limit, ended.status) == (None, 0)
    assert ended.log.endswith("x8000000\n")
    assert len(ended.log) < 10_000


def test_what_a_child_leaves_running_ends_with_it() -> None:
    leave = (
        "import subprocess, sys; "
        "print(subprocess.Popen(['sleep', '600']).pid, file=sys.stderr, end='')"
    )
    begun = time.monotonic()
    ended = run(leave)
    assert (ended.limit, ended.status) == (None, 0)
    assert is_gone(ended.log)
    assert time.monotonic() - begun < 30


def test_an_interrupt_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pids"

    def look(pid: int) -> int:
        if file.exists():
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr(child, "resident", look)
    start = (
        "import os, subprocess, sys; other = subprocess.Popen(['sleep', '600']); "
        "open('new', 'w').write(f'{os.getpid()} {other.pid}'); os.rename('new', 'pids'); "
        "other.wait()"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(start)
    assert [is_gone(pid) for pid in file.read_text().split()] == [True, True]


def test_what_has_ended_has_nothing_resident() -> None:
    pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-c", "pass"])
    os.waitpid(pid, 0)
    assert child.resident(pid) == 0
    assert child.resident(os.getpid()) > MIB
