"""Who comes in: strangers nowhere, whoever has the token everywhere. All from another process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.command import ENV, serving, start
from tests.support.doors import DOORS, WORKER, Door, doors_of
from tests.support.serving import tiny_model, write_config
from tests.support.sockets import Listener, environment, listeners, name, tree

JOBS = "/api/job_agent/jobs/"
WRONG = "0" * 64
JOIN = """
import sys
from rlx_ray.errors import ClusterError
from rlx_ray.job.cluster import connected
try:
    with connected(sys.argv[1]) as cluster:
        print(cluster.ray.get(cluster.ray.remote(lambda: "in").remote()))
except ClusterError as error:
    print(error)
"""


@dataclass(frozen=True)
class Running:
    """A command that has started a Ray of its own."""

    pid: int
    token: str
    found: tuple[Listener, ...]
    url: str = ""

    def of(self, word: str) -> list[Listener]:
        return [one for one in self.found if word in one.name]


def look(pid: int, url: str = "") -> Running:
    (gcs,) = (p for p in tree(pid) if "gcs_server" in name(p))
    return Running(pid, environment(gcs).get("RAY_AUTH_TOKEN", "none"), tuple(listeners(pid)), url)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("door")
    config = write_config(folder, [tiny_model(folder, "ann", 1)])
    with serving(config.path, "--port", "0", "--json", log=folder / "log") as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line, (folder / "log").read_text()
        yield look(server.pid, json.loads(line)["url"])
        server.terminate()
        assert server.wait(60) == 0


@pytest.fixture(scope="module")
def building(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`prebuild`, held in its first build until the test is through."""
    folder = tmp_path_factory.mktemp("building")
    config = write_config(folder, [tiny_model(folder, "ann", 1)])
    (folder / "sitecustomize.py").write_text(
        "import pathlib, time\n"
        "import rlx_ray.job.child as b\n"
        "real, here = b.run, pathlib.Path(__file__).parent\n"
        "def run(*args):\n"
        "    (here / 'held').touch()\n"
        "    until = time.monotonic() + 120\n"
        "    while not (here / 'go').exists() and time.monotonic() < until:\n"
        "        time.sleep(0.1)\n"
        "    return real(*args)\n"
        "b.run = run\n"
    )
    env = {"PYTHONPATH": f"{folder}:{ENV['PYTHONPATH']}"}
    with start("prebuild", config.path, "--json", env=env) as child:
        wait_for(folder / "held", child)
        yield look(child.pid)
        (folder / "go").touch()
        said = child.communicate(timeout=120)
        assert child.returncode == 0, said


def wait_for(file: Path, child: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while not file.exists():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < until, f"{file.name} did not come"
        time.sleep(0.1)


@pytest.fixture(params=["served", "building"])
def running(request: pytest.FixtureRequest) -> Running:
    return request.getfixturevalue(request.param)


def named(running: Running) -> list[tuple[Listener, Door]]:
    pairs = [(one, doors_of(one, running.token)) for one in running.found]
    unknown = [(one, doors) for one, doors in pairs if len(doors) != 1]
    assert not unknown
    return [(one, door) for one, (door,) in pairs]


def test_each_socket_is_on_the_list_and_on_loopback(running: Running) -> None:
    pairs = named(running)
    assert not [one for one, door in pairs if not one.on_loopback and not door.everywhere]
    calls = {door.call for _, door in pairs}
    assert {"/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", WORKER} <= calls


def test_a_token_that_is_wrong_opens_nothing(running: Running) -> None:
    for one, door in named(running):
        assert door.ask(one, WRONG) == door.answers[0], one


def test_what_answers_strangers_takes_no_commands() -> None:
    assert all(door.reveals for door in DOORS if door.answers[0] == "ok")
    assert all(door.answers[0] == "refused" for door in DOORS if door.everywhere)


def test_a_client_joins_only_with_the_token(running: Running) -> None:
    (gcs,) = running.of("gcs_server")
    assert join(gcs, {}).startswith(f"the Ray cluster at 127.0.0.1:{gcs.port} refuses this process")
    assert "the token is wrong" in join(gcs, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": WRONG})
    good = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": running.token}
    if running.url:  # a prebuild has no processor to spare for it
        assert join(gcs, good) == "in"


def join(gcs: Listener, variables: dict[str, str]) -> str:
    # Ray takes a loopback address for the outside one of this host, unless it is told not to.
    env = {**ENV, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", **variables}
    words = [sys.executable, "-c", JOIN, f"127.0.0.1:{gcs.port}"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_job_api_runs_a_command_only_with_the_token(served: Running, tmp_path: Path) -> None:
    (agent,) = (one for one, door in named(served) if JOBS in door.call)
    job = {"entrypoint": f"touch {tmp_path}/ran"}
    where = f"http://127.0.0.1:{agent.port}"
    with httpx.Client(base_url=where, trust_env=False, timeout=60) as client:
        assert client.post(JOBS, json=job).status_code == 401
        stranger = {"authorization": f"Bearer {WRONG}"}
        assert client.post(JOBS, json=job, headers=stranger).status_code == 403
        assert not (tmp_path / "ran").exists()
        ours = {"authorization": f"Bearer {served.token}"}
        assert client.post(JOBS, json=job, headers=ours).status_code == 200
    until = time.monotonic() + 60
    while not (tmp_path / "ran").exists():
        assert time.monotonic() < until, "the job did not run"
        time.sleep(0.1)


def test_the_token_is_in_no_file_and_its_folder_is_ours(running: Running) -> None:
    (gcs,) = running.of("gcs_server")
    words = dict(w.split("=", 1) for w in gcs.name.split() if w.startswith("--") and "=" in w)
    logs = Path(words["--log_dir"])
    folder = logs.parents[2]
    assert folder.stat().st_mode & 0o777 == 0o700
    files = [f for f in folder.rglob("*") if f.is_file() and not f.is_symlink()]
    assert files
    assert not [f for f in files if running.token.encode() in f.read_bytes()]
    assert not [p for p in tree(running.pid) if running.token in name(p)]
