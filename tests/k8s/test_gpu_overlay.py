"""The overlay with GPU nodes: valid, and its config, its pods and its image fit together."""

from __future__ import annotations

import pytest

from rlx_ray.config.load import load
from rlx_ray.config.schema import Config
from rlx_ray.host import Host
from rlx_ray.target import target
from rlx_serve.placement import Cluster, choose
from tests.k8s.manifests import (
    BASE,
    K8S,
    Doc,
    kustomization,
    one,
    pods,
    ray_job,
    render,
    schema_errors,
)
from tests.k8s.operator_rules import complaints

GPU = K8S / "overlays" / "gpu"
CUDA = target("cuda-sm_90")


@pytest.fixture(scope="module")
def docs() -> list[Doc]:
    return render(GPU)


@pytest.fixture(scope="module")
def groups(docs: list[Doc]) -> dict[str, Doc]:
    cluster = one(docs, "RayService")["spec"]["rayClusterConfig"]
    return {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


@pytest.fixture
def config() -> Config:
    return load(GPU / "config.yaml")


def test_the_rendered_overlay_is_valid(docs: list[Doc]) -> None:
    assert schema_errors(kustomization(GPU)) == []
    for doc in (*docs, ray_job(docs)):
        assert schema_errors(doc) == []
    for doc in (ray_job(docs), one(docs, "RayService")):
        assert complaints(doc) == []


def test_gpu_pods_differ_from_cpu_pods_in_node_image_and_size(
    groups: dict[str, Doc],
) -> None:
    assert set(groups) == {"cpu", "gpu"}
    cpu, gpu = (groups[name]["template"] for name in ("cpu", "gpu"))
    assert cpu["metadata"] == gpu["metadata"]
    (ours,), (theirs,) = (pod["spec"]["containers"] for pod in (gpu, cpu))
    for field in ("ports", "env", "envFrom", "lifecycle", "securityContext", "volumeMounts"):
        assert ours[field] == theirs[field], field
    for field in ("serviceAccountName", "securityContext", "terminationGracePeriodSeconds"):
        assert gpu["spec"][field] == cpu["spec"][field], field
    assert gpu["spec"]["volumes"] == cpu["spec"]["volumes"]
    assert ours["image"].split(":")[0] == f"{theirs['image'].split(':')[0]}-gpu"
    assert ours["image"].split(":")[1] == theirs["image"].split(":")[1]
    assert "AS gpu" in (K8S / "Dockerfile").read_text(encoding="utf-8")


def test_only_cuda_replicas_fit_gpu_pods_and_each_has_a_gpu(
    groups: dict[str, Doc], config: Config
) -> None:
    group, placement = groups["gpu"], config.serve.placement(CUDA)
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert group["rayStartParams"]["num-cpus"] == "0"
    assert (placement.num_cpus, placement.num_gpus) == (0, int(limits["nvidia.com/gpu"]))
    assert dict(placement.label_selector).items() <= group["labels"].items()
    assert (placement.max_replicas or placement.replicas) <= group["maxReplicas"]
    assert config.serve.replicas < groups["cpu"]["replicas"]


def test_a_head_that_is_alone_at_first_waits_for_the_gpu_pods(config: Config) -> None:
    head = Host("x86_64", frozenset(target("cpu-x86_64-v3").features), "head")
    fleet = choose(config.targets, (), config.serve, head, Cluster(1, 0, own=False))
    assert fleet.executors == (CUDA,)
    assert fleet.local == tuple(t for t in config.targets if t != CUDA)


def test_job_and_endpoint_have_the_overlays_config(docs: list[Doc], config: Config) -> None:
    text = (GPU / "config.yaml").read_text(encoding="utf-8")
    for name in ("rlx-config", "rlx-prebuild"):
        assert one(docs, "ConfigMap", name)["data"]["config.yaml"] == text
    name = one(docs, "ConfigMap", "rlx-config")["metadata"]["name"]
    for _, template in pods(one(docs, "RayService")):
        (mounted,) = (v for v in template["spec"]["volumes"] if v["name"] == "config")
        assert mounted["configMap"]["name"] == name
    cpu = load(BASE / "config.yaml")
    assert config.store.url == cpu.store.url
    assert config.serve.replicas == cpu.serve.replicas
    (ours,), (theirs,) = config.models, cpu.models
    assert ours.source == theirs.source
    assert (ours.matrix[1].batch, ours.matrix[1].seq) == (
        theirs.matrix[0].batch,
        theirs.matrix[0].seq,
    )
