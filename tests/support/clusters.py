"""A Ray that somebody else has started: a process of its own, with a token."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.command import ENV

TOKEN = "5" * 64
MODE = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}

_START = """
import sys, ray
found = ray.init(address="local", num_cpus=2, object_store_memory=100 << 20,
                 include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[1])
"""
_WAIT = """
print(found.address_info["address"], flush=True)
for line in sys.stdin:
    exec(line)
ray.shutdown(wait_for_processes=True)
"""


@contextmanager
def foreign(more: str = "", *words: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a cluster, and its process: a line to its input is run, the end ends it."""
    with (
        tempfile.TemporaryDirectory("", "rlx", "/tmp", ignore_cleanup_errors=True) as folder,
        subprocess.Popen(
            [sys.executable, "-c", _START + more + _WAIT, folder, *words],
            env={**ENV, **MODE},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as owner,
    ):
        assert owner.stdin is not None
        assert owner.stdout is not None
        try:
            address = owner.stdout.readline().strip()
            assert address, "the cluster did not start"
            yield address, owner
            owner.stdin.close()
            assert owner.wait(60) == 0
        finally:
            owner.kill()
