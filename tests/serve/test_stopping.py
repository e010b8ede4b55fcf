"""`rlx-ray serve` told to stop: what runs is answered, who comes is sent away, nothing is left."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from rlx_serve.ports import free_port
from tests.support.command import ENV, start
from tests.support.serving import tiny_model, write_config
from tests.support.slow_passes import slow_passes

CLIENTS, PASS_S = 20, 2.0
EXIT_S = 15  # much more than it takes, on a machine with much to do


def test_running_requests_are_answered_and_nothing_is_left(tmp_path: Path) -> None:
    slow_passes(tmp_path, PASS_S)
    config = write_config(tmp_path, [tiny_model(tmp_path, "ann", 1)])
    port = free_port("127.0.0.1", 0)
    with tempfile.TemporaryDirectory("", "rlx", "/tmp") as folder:
        env = {"PYTHONPATH": f"{tmp_path}:{ENV['PYTHONPATH']}", "TMPDIR": folder}
        with start("serve", config.path, "--port", str(port), "--json", env=env) as server:
            try:
                stop(server)
            finally:
                server.kill()
        assert not [p for p in Path(folder).iterdir() if p.name.startswith("rlx")]
    assert free_port("127.0.0.1", port) == port


def stop(server: subprocess.Popen[str]) -> None:
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line, server.communicate()
    url = json.loads(line)["url"]

    def ask(text: str) -> httpx.Response:
        body = {"model": "ann", "input": text}
        return httpx.post(f"{url}/v1/embeddings", json=body, timeout=60)

    assert ask("a").status_code == 200  # the variant is there
    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(ask, "a fox") for _ in range(CLIENTS)]
        time.sleep(PASS_S / 2)
        server.send_signal(signal.SIGTERM)
        time.sleep(PASS_S / 2)
        late = ask("late")
        assert late.status_code == 503
        assert late.headers["retry-after"] == "1"
        assert late.json()["error"]["code"] == "overloaded"
        assert [one.result().status_code for one in running] == [200] * CLIENTS
    assert server.wait(EXIT_S) == 0
