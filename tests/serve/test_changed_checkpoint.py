"""A checkpoint that is overwritten while replicas run: one model's weights in an application."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import ray
from ray import serve

from rlx_ray.host import this_host
from rlx_ray.inference.catalog import open_model
from rlx_ray.job.build import build
from rlx_ray.store import AotStore
from tests.serve.conftest import Site, deploy, specs
from tests.support.serving import tiny_model, write_config
from tests.support.tiny import write_tiny_bert

TEXTS = ["fox" + " a" * i for i in range(8)]
DEADLINE_S = 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_bert(tmp_path / "other", seed=9)
    return tmp_path


@pytest.fixture(params=["lazy Executor"])
def site(request: pytest.FixtureRequest, folder: Path, port: int) -> Iterator[Site]:
    """Two replicas, of the deployment that the parameter names behind the mode."""
    mode, kind = request.param.split()
    models = [tiny_model(folder, "ann", 1, mode=mode)]
    two = {"executors": {"cpu": {"replicas": 2}}} if kind == "Executor" else {"replicas": 2}
    config = write_config(folder, models, max_ongoing_requests=2, **two)
    if mode == "aot":
        for spec in specs(config, "ann"):
            AotStore(config.store.url).put(build(spec))
    yield deploy(config, "changed", port)
    serve.delete("changed")


def overwrite(folder: Path) -> None:
    """Another model's weights in place, as `cp` writes them."""
    shutil.copyfile(folder / "other" / "model.safetensors", folder / "ann" / "model.safetensors")


def swap(folder: Path) -> None:
    """Another model's weights under the old name, by one rename."""
    shutil.copyfile(folder / "other" / "model.safetensors", folder / "ann" / "next")
    os.replace(folder / "ann" / "next", folder / "ann" / "model.safetensors")


def replicas(kind: str) -> list[str]:
    """The names of the application's actors of a deployment."""
    found = ray.util.list_named_actors(all_namespaces=True)
    return sorted(a["name"] for a in found if f"SERVE_REPLICA::changed#{kind}" in a["name"])


def kill_one(kind: str = "Executor") -> None:
    victim = replicas(kind)[0]
    ray.kill(ray.get_actor(victim, namespace="serve"))
    until = time.monotonic() + DEADLINE_S
    while victim in replicas(kind):
        assert time.monotonic() < until
        time.sleep(0.1)


def wait_for_two(kind: str = "Executor") -> None:
    until = time.monotonic() + DEADLINE_S
    while serve.status().applications["changed"].status != "RUNNING" or len(replicas(kind)) != 2:
        assert time.monotonic() < until, serve.status().applications["changed"]
        time.sleep(0.2)


def ask(site: Site) -> tuple[np.ndarray, str]:
    answer = site.embed("ann", TEXTS)
    assert answer.status_code == 200, answer.text
    vectors = [row["embedding"] for row in answer.json()["data"]]
    return np.array(vectors, np.float32), answer.headers["x-rlx-weights"]


def all_answers(site: Site, count: int = 60) -> list[tuple[np.ndarray, str]]:
    """What six clients get at once; refusals, which are told to try again, are left out."""

    def one(_: int) -> tuple[np.ndarray, str] | None:
        for _ in range(100):
            answer = site.embed("ann", TEXTS)
            if answer.status_code == 200:
                rows = [row["embedding"] for row in answer.json()["data"]]
                return np.array(rows, np.float32), answer.headers["x-rlx-weights"]
            assert answer.status_code == 503, answer.text
            time.sleep(0.1)
        return None

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(one, range(count)))
    assert None not in found
    return [one for one in found if one is not None]


@pytest.mark.parametrize(
    ("site", "change", "kind"),
    [
        ("lazy Executor", overwrite, "Executor"),
        ("aot Executor", swap, "Executor"),
        ("lazy Gateway", swap, "Gateway"),
    ],
    indirect=["site"],
)
def test_a_restarted_replica_serves_what_was_deployed(
    site: Site, folder: Path, change: Callable[[Path], None], kind: str
) -> None:
    before, weights = ask(site)
    (model,) = site.config.models
    assert weights == open_model(model).weights_digest()[:16]
    change(folder)
    assert open_model(model).weights_digest()[:16] != weights
    kill_one(kind)
    wait_for_two(kind)
    for vectors, name in all_answers(site):
        np.testing.assert_array_equal(vectors, before)
        assert name == weights
    with httpx.Client(base_url=site.url, timeout=60) as client:
        rows = client.get("/variants").json()["rows"]
    assert {row["weights"] for row in rows} == {weights}
    assert {r["replica"].split("/")[0] for row in rows for r in row["replicas"]} == {
        this_host().best().name
    }


def test_a_replica_that_cannot_have_what_was_deployed_refuses(site: Site, folder: Path) -> None:
    """The packed weights are gone from the store, and the checkpoint holds others now."""
    before, weights = ask(site)
    overwrite(folder)
    shutil.rmtree(folder / "rlx-store" / "weights")
    shutil.rmtree(folder / "rlx-cache")
    kill_one()
    for vectors, name in all_answers(site, 20):
        np.testing.assert_array_equal(vectors, before)
        assert name == weights
    until = time.monotonic() + DEADLINE_S
    while "Deploy again to serve what it holds now" not in told():
        assert time.monotonic() < until, told()
        time.sleep(0.5)


def told() -> str:
    """What Serve says of the application and its deployments."""
    found = serve.status().applications["changed"]
    return " ".join([found.message, *(d.message for d in found.deployments.values())])


def test_a_deployment_serves_the_changed_checkpoint_whole(
    site: Site, folder: Path, port: int
) -> None:
    before, old = ask(site)
    overwrite(folder)
    again = deploy(site.config, "changed", port)
    wait_for_two()
    for vectors, weights in all_answers(again, 30):
        assert weights != old
        assert not np.allclose(vectors, before, atol=1e-2)
    first = all_answers(again, 1)[0][0]
    for vectors, _ in all_answers(again, 12):
        np.testing.assert_array_equal(vectors, first)
