"""Starting and joining Ray: closed, put back as it was, and one sentence when it fails."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from rlx_ray.compiler.cpu.zig import installed_version
from rlx_ray.errors import ClusterError
from rlx_ray.job.cluster import connected
from tests.support.clusters import MODE, TOKEN, foreign
from tests.support.command import ENV, start
from tests.support.needs import needs
from tests.support.serving import tiny_model, write_config
from tests.support.sockets import name, tree

SMALL = {"num_cpus": 1, "object_store_memory": 100 << 20}
LATE = "The current node timed out during startup. This could happen because."


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No cluster yet, and a temporary folder that no other run on this machine writes to."""
    needs(not ray.is_initialized(), "this process has a cluster: run tests/ray before tests/serve")
    with tempfile.TemporaryDirectory(prefix="own", dir="/tmp") as folder:  # tmp_path is too long
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield


def variables() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key.startswith("RAY_")}


def rest() -> set[str]:
    """Processes below this one, and folders of Ray's, that a test must not leave."""
    folders = {str(path) for path in Path(tempfile.gettempdir()).glob("rlx*/r")}
    return {name(pid) for pid in tree(os.getpid())[1:] if "ray" in name(pid)} | folders


def test_each_start_has_a_token_of_its_own_and_leaves_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    before, left, tokens = variables(), rest(), []
    for _ in range(2):
        with connected(None, **SMALL) as cluster:
            assert cluster.own
            assert os.environ["RAY_AUTH_MODE"] == "token"
            tokens.append(os.environ["RAY_AUTH_TOKEN"])
            task = cluster.ray.remote(lambda: os.environ["RAY_AUTH_TOKEN"])
            assert cluster.ray.get(task.remote()) == tokens[-1]
        assert variables() == before
        assert rest() <= left
    assert len(set(tokens)) == 2
    assert min(map(len, tokens)) >= 64
    assert not list(tmp_path.rglob("auth_token"))


def test_a_token_of_the_user_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in MODE.items():
        monkeypatch.setenv(key, value)
    with connected(None, **SMALL):
        assert os.environ["RAY_AUTH_TOKEN"] == TOKEN
    assert os.environ["RAY_AUTH_TOKEN"] == TOKEN


@pytest.mark.filterwarnings(  # Ray does not wait for the processes of a start that failed
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_start_that_comes_late_is_words_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = ray._private.node.Node
    real = node.start_ray_processes

    def late(self: object) -> None:
        real(self)
        assert rest() > left
        raise Exception(LATE)

    monkeypatch.setattr(node, "start_ray_processes", late)
    before, left = variables(), rest()
    words = "did not start on this machine: The current node timed"

    def attempt() -> None:
        with pytest.raises(ClusterError, match=words), connected(None, **SMALL):
            raise AssertionError

    attempt()
    gc.collect()
    assert variables() == before
    assert rest() <= left
    assert not ray.is_initialized()


def test_a_ray_that_others_could_reach_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(address_info={"node_ip_address": "192.0.2.7"})
    monkeypatch.setattr(ray, "init", lambda **_: found)
    with pytest.raises(ClusterError, match=r"Ray listens on 192\.0\.2\.7"), connected(None):
        raise AssertionError


def test_a_long_temporary_folder_is_passed_by(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with connected(None, **SMALL) as cluster:
        assert cluster.nodes() == 1
    assert not list(long.iterdir())


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    with foreign() as (address, _):
        yield address


def command(folder: Path, *words: str, **env: str) -> tuple[int, str, str]:
    config = write_config(folder, [tiny_model(folder, "ann", 1)])
    child = start(words[0], config.path, *words[1:], env=env)
    out, said = child.communicate(timeout=120)
    assert "Traceback" not in said, said
    return child.returncode, out, said


def sentence(said: str) -> str:
    (line,) = (line for line in said.splitlines() if line.startswith("rlx-ray: "))
    return line


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, "the token is wrong"),
        ({"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE is 'disabled'"),
        ({"RAY_AUTH_MODE": "token"}, "there is no token"),
        ({}, "RAY_AUTH_MODE is ''"),
    ],
)
@pytest.mark.parametrize("word", ["prebuild", "serve"])
def test_a_cluster_that_refuses_is_one_sentence(
    word: str, env: dict[str, str], why: str, elsewhere: str, tmp_path: Path
) -> None:
    env = {"HOME": str(tmp_path), **env}
    status, out, said = command(tmp_path, word, RAY_ADDRESS=elsewhere, **env)
    assert (status, out) == (1, "")
    assert f"{elsewhere} refuses this process: " in sentence(said)
    assert why in sentence(said)
    assert "Set RAY_AUTH_MODE to token" in sentence(said)


@pytest.mark.parametrize("word", ["prebuild", "serve"])
def test_a_cluster_that_is_away_is_one_sentence(word: str, tmp_path: Path) -> None:
    status, out, said = command(tmp_path, word, RAY_ADDRESS="127.0.0.1:9")
    assert (status, out) == (1, "")
    assert "127.0.0.1:9 cannot be used" in sentence(said)


def test_prebuild_joins_what_ray_address_names(elsewhere: str, tmp_path: Path) -> None:
    needs(installed_version(), "the C compiler is missing: pip install 'rlx_ray[build]'")
    status, out, said = command(tmp_path, "prebuild", "--json", RAY_ADDRESS=elsewhere, **MODE)
    assert status == 0, said
    assert '"compiled": 4' in out


def test_own_after_joined_and_joined_after_own(
    elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in MODE.items():
        monkeypatch.setenv(key, value)
    with connected(elsewhere) as cluster:
        assert not cluster.own
        theirs = cluster.head()
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    with connected(None, **SMALL) as cluster:
        assert cluster.head() == "127.0.0.1" != theirs
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with connected(elsewhere) as cluster:
        assert cluster.head() == theirs


def test_a_stop_while_ray_starts_leaves_nothing(tmp_path: Path) -> None:
    config = write_config(tmp_path, [tiny_model(tmp_path, "ann", 1)])
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        "import ray._private.node as n\n"
        "real = n.Node.start_ray_processes\n"
        "def start(self):\n"
        "    real(self)\n"
        "    print(self.temp_dir, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "n.Node.start_ray_processes = start\n"
    )
    env = {**ENV, "PYTHONPATH": f"{tmp_path}:{ENV['PYTHONPATH']}"}
    child = subprocess.run(
        [sys.executable, "-m", "rlx_ray.cli", "serve", config.path, "--port", "0"],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert child.returncode == signal.SIGTERM, child.stderr
    assert "Traceback" not in child.stderr
    assert not Path(child.stdout.strip()).parent.exists()
