"""CUDA targets beside CPU ones on a machine and a cluster without a GPU."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import httpx
import pytest
from ray import serve

from rlx_ray.runtime.cuda import visible_devices
from rlx_ray.store import AotStore, Hit
from rlx_serve import app
from rlx_serve.app import bind
from rlx_serve.gateway import availability as availability
from rlx_serve.gateway.availability import wait_until_served
from tests.serve.conftest import Site, specs
from tests.support.command import serving
from tests.support.serving import tiny_model, write_config

TARGETS = ["cuda-sm_90", "host"]

pytestmark = pytest.mark.skipif(bool(visible_devices().archs), reason="this machine has a GPU")


def test_cuda_executors_without_a_node_keep_nobody_waiting(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "_PATIENCE_S", 1.0)
    monkeypatch.setattr(app, "_STARTS", 1)
    targets = ["cuda-sm_90", "cuda-sm_80", "host"]
    labels = {"ray.io/accelerator-type": "H100"}  # of no node here
    config = write_config(
        tmp_path,
        [tiny_model(tmp_path, "ann", 1, targets=targets)],
        executors={"cuda-sm_90": {"label_selector": labels}},
    )
    names = tuple(target.name for target in config.models[0].targets)
    site = Site("fleet", config, f"http://127.0.0.1:{port}/fleet")
    try:
        target = serve.RunTarget(bind(config), name="fleet", route_prefix="/fleet")
        serve.run_many([target], wait_for_applications_running=False)
        absent = wait_until_served("fleet", {}, names[:-1])
        assert set(absent) == {"cuda-sm_90", "cuda-sm_80"}
        assert site.embed("ann", ["a", "b"]).status_code == 200
        with site.client as client:
            took = []
            for _ in range(5):
                begun = time.monotonic()
                assert client.get("/v2/health/ready").status_code == 200
                took.append(time.monotonic() - begun)
            assert min(took) < 1, "absent executors were asked"
        why = passed_over(site)
        deadline = time.monotonic() + 60
        while "did not start" not in why["cuda-sm_80"]:
            assert time.monotonic() < deadline, why
            time.sleep(0.5)
            why = passed_over(site)
        assert "target 'cuda-sm_80' cannot run here" in why["cuda-sm_80"]
        assert why["cuda-sm_90"]
        assert why[names[-1]] == ""
        assert site.embed("ann", "a").status_code == 200
        # What the executor would ask for if its node came: CPU nodes build it.
        spec = specs(config, "ann")[0]
        assert spec.target.kind == "cuda"
        builds = serve.get_deployment_handle("Coordinator", "fleet")
        record = builds.ensure.remote(spec.dumps()).result(timeout_s=60)
        assert (record.status, record.failure) == ("built", None)
        assert isinstance(AotStore(config.store.url).lookup(spec), Hit)
    finally:
        serve.delete("fleet")


def passed_over(site: Site) -> dict[str, str]:
    """Why a target's executor does not answer, by target; empty for one that does."""
    return {str(r["target"]): str(r["passed_over"]) for r in site.rows("ann")}


@pytest.mark.slow
def test_without_a_gpu_the_cpu_serves_and_it_is_said_once(
    tmp_path: Path,
) -> None:
    config = write_config(
        tmp_path,
        [tiny_model(tmp_path, "ann", 1, targets=TARGETS)],
        executors={"cuda": {"num_gpus": 1}},
    )
    log = tmp_path / "log"
    with serving(config.path, "--port", "0", "--json", log=log) as server:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        body = {"model": "ann", "input": "a"}
        assert httpx.post(f"{url}/v1/embeddings", json=body, timeout=60).status_code == 200
        rows = httpx.get(f"{url}/variants", timeout=60).json()["rows"]
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    (why,) = {r["passed_over"] for r in rows if r["target"] == "cuda-sm_90"}
    assert why
    assert log.read_text().count(f"cuda-sm_90 is passed over: {why}") == 1
