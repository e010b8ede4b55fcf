"""Every document under k8s/ is what Kubernetes and KubeRay take, and keeps to the house rules."""

from __future__ import annotations

import copy
import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.k8s.manifests import (
    BASE,
    CPU,
    K8S,
    ROOT,
    Doc,
    base,
    kustomization,
    one,
    pods,
    ray_job,
    render,
    schema_errors,
)
from tests.k8s.operator_rules import complaints


@pytest.fixture(scope="module")
def overlay() -> list[Doc]:
    return render(CPU)


def endpoint(docs: tuple[Doc, ...] | list[Doc]) -> Doc:
    found: Doc = one(docs, "RayService")
    return found


def everything(docs: tuple[Doc, ...] | list[Doc]) -> list[Doc]:
    return [*docs, ray_job(docs)]


def check_all(docs: tuple[Doc, ...] | list[Doc]) -> None:
    assert [e for d in everything(docs) for e in schema_errors(d)] == []
    for doc in (ray_job(docs), endpoint(docs)):
        assert complaints(doc) == []


def test_every_document_of_the_base_is_valid() -> None:
    check_all(base())
    assert len(base()) == 14


def test_the_rendered_overlay_is_valid(overlay: list[Doc]) -> None:
    check_all(overlay)
    assert sorted(d["kind"] for d in overlay) == sorted(d["kind"] for d in base())


def test_the_kustomizations_are_valid_and_name_every_file() -> None:
    for folder in (BASE, CPU):
        assert schema_errors(kustomization(folder)) == []
    kust = kustomization(BASE)
    named = {*kust["resources"], *kust["configurations"], "kustomization.yaml"}
    named |= {name for row in kust["configMapGenerator"] for name in row["files"]}
    assert named == {p.name for p in BASE.iterdir()}


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("RayJob", "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0"),
        ("RayJob", "spec.rayClusterSpec"),
        ("RayJob", "spec.submitterPodTemplate.spec"),
        ("RayService", "spec"),
        ("RayService", "spec.rayClusterConfig.workerGroupSpecs.0"),
        ("CronJob", "spec"),
        ("CronJob", "spec.jobTemplate.spec.template.spec.containers.0.securityContext"),
        ("NetworkPolicy", "spec"),
        ("PodDisruptionBudget", "spec"),
        ("ServiceAccount", ""),
        ("Role", "rules.0"),
        ("RoleBinding", "subjects.0"),
        ("ConfigMap", "metadata"),
    ],
)
def test_an_unknown_field_is_refused(kind: str, path: str) -> None:
    doc = copy.deepcopy(next(d for d in everything(base()) if d["kind"] == kind))
    assert schema_errors(doc) == []
    inner: Any = doc
    for part in filter(None, path.split(".")):
        inner = inner[int(part)] if part.isdigit() else inner[part]
    inner["notAField"] = 1
    assert any("notAField" in e for e in schema_errors(doc))


def test_a_wrong_type_and_a_missing_field_are_refused() -> None:
    job = copy.deepcopy(ray_job(base()))
    job["spec"]["backoffLimit"] = "two"
    assert any("backoffLimit" in e for e in schema_errors(job))
    job = copy.deepcopy(ray_job(base()))
    del job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert any("containers" in e for e in schema_errors(job))


def _set(doc: Doc, path: str, value: object) -> Doc:
    out = copy.deepcopy(doc)
    *way, last = path.split(".")
    inner: Any = out
    for part in way:
        inner = inner[int(part)] if part.isdigit() else inner.setdefault(part, {})
    inner[last] = value
    return out


_JOB_CLUSTER = "spec.rayClusterSpec"
_HEAD_POD = f"{_JOB_CLUSTER}.headGroupSpec.template.spec"
_WORKER = f"{_JOB_CLUSTER}.workerGroupSpecs.0"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("metadata.generateName", "a" * 43, "more than 47"),
        ("metadata.generateName", "9-", "DNS-1035"),
        ("spec.shutdownAfterJobFinishes", False, "needs shutdownAfterJobFinishes"),
        ("spec.deletionStrategy.deletionRules", [{}], "exclude each other"),
        ("spec.backoffLimit", -1, "backoffLimit"),
        ("spec.activeDeadlineSeconds", 0, "activeDeadlineSeconds"),
        ("spec.submissionMode", "Sidecar", "not known"),
        ("spec.submissionMode", "SidecarMode", "takes no submitterPodTemplate"),
        ("spec.submitterPodTemplate.spec.restartPolicy", "Always", "restartPolicy"),
        (f"{_JOB_CLUSTER}.rayVersion", "2.51.0", "2.52.0"),
        (f"{_JOB_CLUSTER}.headGroupSpec.resources", {"CPU": "0"}, "twice"),
        (f"{_JOB_CLUSTER}.enableInTreeAutoscaling", True, "token"),
        (f"{_WORKER}.rayStartParams.labels", "a=b", "labels"),
        (f"{_WORKER}.replicas", 9, "outside"),
        (f"{_HEAD_POD}.containers.0.ports.0.name", "a-name-far-too-long", "no name of a port"),
        (f"{_HEAD_POD}.containers.0.ports.0.name", "metrics", "two ports"),
    ],
)
def test_what_the_operator_refuses_is_noticed(path: str, value: object, said: str) -> None:
    assert any(said in c for c in complaints(_set(ray_job(base()), path, value)))


def test_an_autoscaled_pod_that_restarts_in_place_is_noticed() -> None:
    doc = _set(ray_job(base()), f"{_JOB_CLUSTER}.enableInTreeAutoscaling", True)
    doc = _set(doc, f"{_JOB_CLUSTER}.autoscalerOptions.version", "v2")
    doc = _set(doc, f"{_HEAD_POD}.restartPolicy", "Always")
    assert any("restartPolicy" in c for c in complaints(doc))


def test_a_service_without_a_serve_port_is_noticed() -> None:
    path = "spec.rayClusterConfig.workerGroupSpecs.0.template.spec.containers.0.ports.0.name"
    assert any("named serve" in c for c in complaints(_set(endpoint(base()), path, "http")))


def every_pod(docs: tuple[Doc, ...] | list[Doc]) -> Iterator[tuple[str, Doc]]:
    for doc in everything(docs):
        yield from pods(doc)


def test_pods_run_without_rights_and_ask_for_what_they_use() -> None:
    found = dict(every_pod(base()))
    assert len(found) == 6  # submit; submitter, head and worker of the job; head and worker
    for path, template in found.items():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"], path
        assert pod["securityContext"]["runAsUser"] == 1000, path
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, path
        names = {v["name"] for v in pod["volumes"]}
        for container in pod["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"], path
            assert {"cpu", "memory"} == container["resources"]["limits"].keys(), path
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, path
            mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
            assert set(mounts.values()) == names, path
            assert "/tmp" in mounts, path
            home = {e["name"]: e.get("value") for e in container["env"]}["HOME"]
            assert home in mounts, path  # the root file system is read-only


def test_only_the_pod_that_submits_has_a_token() -> None:
    accounts = [d for d in base() if d["kind"] == "ServiceAccount"]
    assert all(a["automountServiceAccountToken"] is False for a in accounts)
    names = {a["metadata"]["name"] for a in accounts}
    for path, template in every_pod(base()):
        pod = template["spec"]
        assert pod["serviceAccountName"] in names, path
        submits = pod["serviceAccountName"] == "rlx-prebuild-submit"
        assert pod["automountServiceAccountToken"] is submits, path
        assert path.startswith("CronJob") is submits
    role = one(base(), "Role")
    assert role["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}
    ]
    binding = one(base(), "RoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [s["name"] for s in binding["subjects"]] == ["rlx-prebuild-submit"]


def test_the_head_takes_no_work_and_ray_pods_are_whole_cpus() -> None:
    for cluster in (
        ray_job(base())["spec"]["rayClusterSpec"],
        endpoint(base())["spec"]["rayClusterConfig"],
    ):
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert cluster["authOptions"] == {"mode": "token"}
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            (container,) = group["template"]["spec"]["containers"]
            assert container["resources"]["limits"]["cpu"].isdigit()
            assert int(group["rayStartParams"]["object-store-memory"]) >= 75 << 20
    assert endpoint(base())["spec"]["excludeHeadPodFromServeSvc"]


def test_ha_proxy_is_on_in_every_pod_of_the_endpoint() -> None:
    for _, template in pods(endpoint(base())):
        env = {e["name"]: e.get("value") for e in template["spec"]["containers"][0]["env"]}
        assert env["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    for _, template in pods(ray_job(base())):
        env = {e["name"] for e in template["spec"]["containers"][0]["env"]}
        assert "RAY_SERVE_ENABLE_HA_PROXY" not in env


def test_selectors_find_the_pods_that_they_mean() -> None:
    components = {
        t["metadata"]["labels"]["app.kubernetes.io/component"] for _, t in every_pod(base())
    }
    assert components == {"endpoint", "prebuild"}
    for doc in base():
        text = json.dumps(doc)
        if doc["kind"] in ("NetworkPolicy", "PodDisruptionBudget"):
            used = set(re.findall(r'"app.kubernetes.io/component": "(\w+)"', text))
            assert used <= components
    budget = one(base(), "PodDisruptionBudget")["spec"]
    workers = endpoint(base())["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert 0 < budget["minAvailable"] < workers["replicas"]


def test_network_policies_open_the_ports_that_the_pods_have() -> None:
    (head, worker) = (t["spec"]["containers"][0]["ports"] for _, t in pods(endpoint(base())))
    have = {p["containerPort"] for p in (*head, *worker)}
    policy = one(base(), "NetworkPolicy", "rlx-endpoint")["spec"]
    opened = {p["port"] for rule in policy["ingress"] for p in rule.get("ports", ())}
    assert opened == {8000, 8080, 8265, 9101}
    assert opened <= have


def test_two_nightly_jobs_cannot_overlap() -> None:
    cron = one(base(), "CronJob")["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    assert re.fullmatch(r"\d+ \d+ \* \* \*", cron["schedule"])
    job = ray_job(base())["spec"]
    longest = job["activeDeadlineSeconds"] + job["preRunningDeadlineSeconds"]
    assert longest + job["ttlSecondsAfterFinished"] < 24 * 3600 - cron["startingDeadlineSeconds"]


def _quotes_hold_the_image() -> str:
    text = (BASE / "rayjob.yaml").read_text(encoding="utf-8")
    before, image, after = text.split("'")  # else the overlay's replacement eats text between
    assert before.endswith("image: &image ")
    assert after.startswith("\n")
    return image


def test_one_image_each_for_building_and_serving() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert _quotes_hold_the_image() == f"rlx-ray-build:{version}"
    for path, template in every_pod(base()):
        (container,) = template["spec"]["containers"]
        name = "rlx-ray" if path.startswith("RayService") else "rlx-ray-build"
        assert container["image"] == f"{name}:{version}", path


def test_an_overlay_changes_every_image(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    file = tmp_path / "k8s" / "overlays" / "cpu" / "kustomization.yaml"
    text = file.read_text(encoding="utf-8")
    for name in ("rlx-ray", "rlx-ray-build"):
        text = text.replace(
            f"newName: {name}, newTag: 0.1.0", f"newName: r.example/{name}, newTag: v9"
        )
    file.write_text(text, encoding="utf-8")
    docs = render(file.parent)
    images = {t["spec"]["containers"][0]["image"] for _, t in every_pod(docs)}
    assert images == {"r.example/rlx-ray:v9", "r.example/rlx-ray-build:v9"}
    assert ray_job(docs)["spec"]["entrypoint"] == ray_job(base())["spec"]["entrypoint"]


def test_the_overlay_sets_nodes_and_sizes_of_the_cpu_group(overlay: list[Doc]) -> None:
    (group,) = endpoint(overlay)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    assert group["groupName"] == "cpu"
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 3
    assert pod["nodeSelector"]["kubernetes.io/arch"] == "amd64"
    assert (
        pod["containers"][0]["resources"]["requests"] == pod["containers"][0]["resources"]["limits"]
    )


def test_a_changed_config_changes_the_name_that_is_mounted(overlay: list[Doc]) -> None:
    name = one(overlay, "ConfigMap", "rlx-config")["metadata"]["name"]
    assert re.fullmatch(r"rlx-config-\w{10}", name)
    for _, template in pods(endpoint(overlay)):
        maps = [v["configMap"]["name"] for v in template["spec"]["volumes"] if "configMap" in v]
        assert maps == [name]


def test_everything_is_in_one_namespace(overlay: list[Doc]) -> None:
    assert one(overlay, "Namespace")["metadata"]["name"] == "rlx"
    assert {d["metadata"]["namespace"] for d in overlay if d["kind"] != "Namespace"} == {"rlx"}
    assert one(overlay, "RoleBinding")["subjects"][0]["namespace"] == "rlx"
    assert "namespace" not in ray_job(overlay)["metadata"]


def test_ray_has_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (pin,) = (d for d in project["dependencies"] if d.startswith("ray["))
    low, high = (
        tuple(map(int, re.search(rf"{sign}([\d.]+)", pin)[1].split("."))) for sign in (">=", "<")
    )
    (docker,) = re.findall(r"^ARG RAY_VERSION=(.+)$", (K8S / "Dockerfile").read_text(), re.M)
    job = ray_job(base())["spec"]["rayClusterSpec"]["rayVersion"]
    served = endpoint(base())["spec"]["rayClusterConfig"]["rayVersion"]
    assert docker == job == served == ray.__version__
    assert low <= tuple(map(int, docker.split("."))) < high
