"""A URL is told when it answers; else the start fails with words, and takes nothing along."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from rlx_ray.config.schema import Config
from rlx_ray.errors import ClusterError
from rlx_ray.job.cluster import RayConnection
from rlx_serve import listening
from rlx_serve.ports import free_port
from tests.support.clusters import MODE, foreign
from tests.support.command import ENV, start
from tests.support.serving import tiny_model, write_config

HEAD = {"Alive": True, "NodeManagerAddress": "10.0.0.9", "Resources": {"node:__internal_head__": 1}}
OTHER = """
from ray import serve
@serve.deployment(ray_actor_options={"num_cpus": 0})
class Other:
    def __call__(self, request):
        return "still here"
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
serve.run(Other.bind(), name="other", route_prefix="/other")
"""


@pytest.mark.parametrize(
    ("host", "own", "url"),
    [
        ("127.0.0.1", True, "http://127.0.0.1:80"),
        ("0.0.0.0", True, "http://127.0.0.1:80"),
        ("::", True, "http://[::1]:80"),
        ("::1", True, "http://[::1]:80"),
        ("0.0.0.0", False, "http://10.0.0.9:80"),
        ("10.1.1.1", False, "http://10.1.1.1:80"),
    ],
)
def test_a_wildcard_is_asked_where_the_proxy_is(host: str, own: bool, url: str) -> None:
    ray: Any = SimpleNamespace(nodes=lambda: [HEAD])
    assert listening.url_of(host, 80, RayConnection(ray, own=own)) == url


def test_a_url_that_does_not_answer_is_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "ROUTE_S", 0.2)
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:9 does not answer: .*Set serve\.host"):
        listening.await_route("http://127.0.0.1:9")


def tiny(folder: Path) -> Config:
    return write_config(folder, [tiny_model(folder, "ann", 1)])


def failed(child: subprocess.Popen[str]) -> str:
    """The one line of complaint of a start that fails."""
    out, said = child.communicate(timeout=120)
    assert child.returncode == 1, said
    assert "http" not in out
    assert "Traceback" not in said
    (line,) = (line for line in said.splitlines() if line.startswith("rlx-ray: "))
    return line


def test_a_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = failed(start("serve", tiny(tmp_path).path, "--port", port))
    assert f"port {port} on 127.0.0.1 cannot be listened on" in said


def test_a_port_taken_behind_its_back_takes_ray_along(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import rlx_serve.ports as p\n"
        "real = p.free_port\n"
        "p.free_port = lambda host, port: port or real(host, port)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken, short_folder() as temporary:
        port = str(taken.getsockname()[1])
        env = {"PYTHONPATH": f"{tmp_path}:{ENV['PYTHONPATH']}", "TMPDIR": temporary}
        said = failed(start("serve", tiny(tmp_path).path, "--port", port, env=env))
        assert f"does not listen on 127.0.0.1:{port}: " in said
        assert "cannot bind socket" in said
        assert not list(Path(temporary).glob("rlx*/r"))


def short_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory("", "rlx", "/tmp")


@pytest.mark.slow
def test_other_applications_of_a_joined_cluster_live_on(tmp_path: Path) -> None:
    port, config = free_port("127.0.0.1", 0), tiny(tmp_path)
    other = f"http://127.0.0.1:{port}/other"
    with foreign(OTHER, str(port)) as (address, _):
        env = {"RAY_ADDRESS": address, **MODE}
        said = failed(start("serve", config.path, "--port", "0", env=env))
        assert f"listens on 127.0.0.1:{port}, not on" in said
        assert f"--port to {port}" in said
        assert httpx.get(other).text == "still here"
        with start("serve", config.path, "--port", str(port), "--json", env=env) as child:
            assert child.stdout is not None
            line = child.stdout.readline()
            assert line, child.communicate()
            body = {"model": "ann", "input": "a"}
            url = json.loads(line)["url"]
            assert httpx.post(f"{url}/v1/embeddings", json=body, timeout=60).status_code == 200
            child.send_signal(signal.SIGTERM)
            assert child.wait(60) == 0
            assert httpx.get(f"{url}/v2/health/live").status_code == 404
        assert httpx.get(other).text == "still here"


@pytest.mark.slow
def test_what_a_joined_cluster_got_for_a_start_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import rlx_serve.listening as l\nl.ROUTE_S = 0.5\nl.url_of = lambda *_: 'http://127.0.0.1:9'\n"
    )
    with foreign() as (address, owner):
        paths = {"PYTHONPATH": f"{tmp_path}:{ENV['PYTHONPATH']}"}
        env = {"RAY_ADDRESS": address, **MODE, **paths}
        said = failed(start("serve", tiny(tmp_path).path, "--port", "0", env=env))
        assert "http://127.0.0.1:9 does not answer" in said
        assert owner.stdin is not None
        assert owner.stdout is not None
        owner.stdin.write("print(ray.util.list_named_actors(all_namespaces=True), flush=True)\n")
        owner.stdin.flush()
        assert owner.stdout.readline().strip() == "[]"
