"""Two gateways behind HAProxy: text has one home, and the endpoint outlives one that dies."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.serve.test_text_endpoint import write_model
from tests.support.command import ENV, start
from tests.support.serving import tiny_model, write_config
from tests.support.slow_passes import slow_passes
from tests.support.sockets import name, tree

CLIENTS, PASS_S = 12, 2.0
GATEWAY = "ray::ServeReplica:rlx:Gateway"


def gateways(pid: int) -> list[int]:
    return [one for one in tree(pid) if GATEWAY in name(one)]


@pytest.mark.slow
def test_the_endpoint_outlives_a_gateway_that_dies(tmp_path: Path) -> None:
    slow_passes(tmp_path, PASS_S)
    models = [tiny_model(tmp_path, "ann", 1), write_model(tmp_path)]
    config = write_config(tmp_path, models, gateway={"replicas": 2})
    env = {"PYTHONPATH": f"{tmp_path}:{ENV['PYTHONPATH']}"}
    with start("serve", config.path, "--port", "0", "--json", env=env) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line, server.communicate()
            url = json.loads(line)["url"]
            said = {"model": "talk", "prompt": "ab", "max_tokens": 4, "temperature": 0}
            reply = httpx.post(f"{url}/v1/completions", json=said, timeout=60)
            assert reply.status_code == 200, reply.text
            engines = httpx.get(f"{url}/variants", timeout=60).json()["engines"]
            assert [engine["model"] for engine in engines] == ["talk"]  # one, for both gateways
            die_and_go_on(server.pid, url)
        finally:
            server.kill()


def die_and_go_on(pid: int, url: str) -> None:
    def ask(_: int) -> int:
        body = {"model": "ann", "input": "a fox"}
        try:
            return httpx.post(f"{url}/v1/embeddings", json=body, timeout=60).status_code
        except httpx.RemoteProtocolError:
            return 0

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert set(pool.map(ask, range(CLIENTS))) == {200}  # both have the variant
        running = [pool.submit(ask, i) for i in range(CLIENTS)]
        time.sleep(PASS_S / 2)
        first, second = gateways(pid)
        os.kill(first, signal.SIGKILL)
        said = [one.result() for one in running]
        # HAProxy sends most of the dead one's requests once more, but not all.
        assert set(said) <= {200, 503, 0}
        assert said.count(200) >= CLIENTS // 3
        until = time.monotonic() + 30
        while set(pool.map(ask, range(CLIENTS))) != {200}:
            assert time.monotonic() < until
    assert second in gateways(pid)
