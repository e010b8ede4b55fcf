"""CUDA targets beside CPU ones on a machine and a cluster without a GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from ray import serve

from rlx_ray.store import AotStore, Hit
from rlx_serve import presence
from rlx_serve.app import bind
from rlx_serve.presence import wait_until_served
from tests.serve.conftest import ROOT, Site, specs
from tests.support.serving import tiny_model, write_config

TARGETS = ["cuda-sm_90", "host"]


def test_a_cuda_executor_without_a_node_keeps_nobody_waiting(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "_PATIENCE_S", 1.0)
    labels = {"ray.io/accelerator-type": "H100"}
    models = [tiny_model(tmp_path, "ann", 1, targets=TARGETS)]
    config = write_config(tmp_path, models, executors={"cuda": {"label_selector": labels}})
    cpu = config.models[0].targets[-1].name
    site = Site("fleet", config, f"http://127.0.0.1:{port}/fleet")
    try:
        target = serve.RunTarget(bind(config), name="fleet", route_prefix="/fleet")
        serve.run_many([target], wait_for_applications_running=False)
        absent = wait_until_served("fleet", {"ann": ("cuda-sm_90", cpu)})
        assert absent == {"cuda-sm_90": "its executor is starting"}
        deadline = time.monotonic() + 30
        while not all(r["passed_over"] for r in site.rows("ann") if r["target"] != cpu):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        reply = site.embed("ann", ["a", "b"])
        assert reply.status_code == 200
        with site.client as client:
            begun = time.monotonic()
            assert client.get("/v2/health/ready").status_code == 200
            assert time.monotonic() - begun < 1
        rows = site.rows("ann")
        assert {r["passed_over"] for r in rows if r["target"] == cpu} == {""}
        states = [r["replicas"] for r in rows if r["target"] == "cuda-sm_90"]
        assert states == [[]] * 4
        # What the executor would ask for if its node came: CPU nodes build it.
        spec = specs(config, "ann")[0]
        assert spec.target.kind == "cuda"
        builds = serve.get_deployment_handle("Builds", "fleet")
        record = builds.ensure.remote(spec.dumps()).result(timeout_s=60)
        assert (record.status, record.failure) == ("built", None)
        assert isinstance(AotStore(config.store.url).lookup(spec), Hit)
    finally:
        serve.delete("fleet")


@pytest.mark.slow
def test_the_command_serves_from_the_cpu_where_there_is_no_gpu_and_says_so_once(
    tmp_path: Path,
) -> None:
    config = write_config(
        tmp_path,
        [tiny_model(tmp_path, "ann", 1, targets=TARGETS)],
        executors={"cuda": {"num_gpus": 1}},
    )
    command = [sys.executable, "-m", "rlx_ray.cli", "serve", config.path, "--port", "0", "--json"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "serve")])
    log = tmp_path / "log"
    with (
        log.open("w") as said,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=said,
            env={**os.environ, "PYTHONPATH": paths},
            text=True,
            cwd=tmp_path,
        ) as server,
    ):
        assert server.stdout is not None
        try:
            url = json.loads(server.stdout.readline())["url"]
            body = {"model": "ann", "input": "a"}
            assert httpx.post(f"{url}/v1/embeddings", json=body, timeout=60).status_code == 200
            rows = httpx.get(f"{url}/variants", timeout=60).json()["rows"]
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    (why,) = {r["passed_over"] for r in rows if r["target"] == "cuda-sm_90"}
    assert why
    assert log.read_text().count(f"cuda-sm_90 is passed over: {why}") == 1
