"""Child processes of the store's tests: `python -m tests.support.store_child WHAT FOLDER`.

`kill-put` and `kill-repair` fork once for each system call of a `put` and kill the fork there;
`put` and `cache` race against another process of the same kind.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlx_ray.store import AotStore, HostCache
from tests.support.specs import make_artifact, make_spec

_CALLS = ("open", "write", "fsync", "close", "link", "replace", "unlink", "mkdir")


def main(what: str, folder: str, *rest: str) -> None:
    """Run one of the children."""
    match what:
        case "kill-put":
            print(_killed_at_each_step(Path(folder), damaged=False))
        case "kill-repair":
            print(_killed_at_each_step(Path(folder), damaged=True))
        case "put":
            _race_put(Path(folder), int(rest[0]))
        case "cache":
            _race_cache(Path(folder), int(rest[0]))
        case _:
            raise SystemExit(f"unknown child {what!r}")


def _killed_at_each_step(folder: Path, damaged: bool) -> int:
    """Put into `folder/<n>`, killed at the n-th system call; the count of those killed."""
    artifact = make_artifact()
    for step in range(1, 1000):
        root = folder / str(step)
        store = AotStore(str(root))
        if damaged:
            store.put(artifact)
            sha256 = artifact.manifest.blobs[0].sha256
            (root / "blobs" / sha256[:2] / sha256).write_bytes(b"damaged")
        child = os.fork()
        if child == 0:
            _kill_at(step)
            store.put(artifact)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            return step - 1
    raise SystemExit("a put does not end")


def _kill_at(step: int) -> None:
    """Make this process kill itself at its n-th call; a write is cut in half first."""
    left = step

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if name == "write":
                    call(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapped

    for name in _CALLS:
        setattr(os, name, wrap(name, getattr(os, name)))


def _race_put(folder: Path, number: int) -> None:
    _meet(folder, number)
    store = AotStore(str(folder / "store"))
    for seq in range(1, 21):
        blobs = {"code": f"{seq} by {number}".encode() * 500, "pool": b"shared" * 100}
        print(store.put(make_artifact(make_spec(seq=seq), blobs=blobs)))


def _race_cache(folder: Path, number: int) -> None:
    store = AotStore(str(folder / "store"))
    cache = HostCache(folder / "cache")
    _meet(folder, number)
    for seq in range(1, 21):
        blobs = {"code": f"{seq}".encode() * 50_000}
        ref = make_artifact(make_spec(seq=seq), blobs=blobs).manifest.blob("code")
        print(cache.path(ref, store).read_bytes() == blobs["code"])


def _meet(folder: Path, number: int) -> None:
    """Wait until both processes are here."""
    (folder / f"ready-{number}").touch()
    end = time.monotonic() + 30
    while not (folder / f"ready-{1 - number}").exists() and time.monotonic() < end:
        time.sleep(0.001)


if __name__ == "__main__":
    main(*sys.argv[1:])
