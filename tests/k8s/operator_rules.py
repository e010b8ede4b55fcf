"""What the KubeRay operator refuses beyond its schemas, as far as k8s/ touches it.

After the checks of KubeRay v1.7.0 (`ray-operator/controllers/ray/utils/validation.go`) and the CEL
rules of its CRDs. Each function returns the complaints about one document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Doc = dict[str, Any]

MOST_NAME = 47
"""Of a RayJob or RayService: the operator appends to it and makes Services of it (63 in all)."""
GENERATED = 5
"""Characters that the API server puts behind generateName."""

_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9](-?[a-z0-9])*")
_RESOURCE_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")


def complaints(doc: Doc) -> list[str]:
    """All that the operator would say about a RayJob or a RayService."""
    spec = doc["spec"]
    if doc["kind"] == "RayJob":
        return [*_name(doc), *_job(spec), *_cluster(spec["rayClusterSpec"])]
    return [*_name(doc), *_service(spec), *_cluster(spec["rayClusterConfig"])]


def _name(doc: Doc) -> Iterator[str]:
    meta = doc["metadata"]
    name = meta.get("name") or meta["generateName"] + "x" * GENERATED
    if len(name) > MOST_NAME:
        yield f"name {name!r} has more than {MOST_NAME} characters"
    if not _DNS_1035.fullmatch(name):
        yield f"name {name!r} is not a DNS-1035 label"


def _job(spec: Doc) -> Iterator[str]:
    shutdown = spec.get("shutdownAfterJobFinishes", False)
    rules = spec.get("deletionStrategy", {}).get("deletionRules")
    if spec.get("ttlSecondsAfterFinished", 0) and not shutdown:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "ttlSecondsAfterFinished is negative"
    if spec.get("suspend") and not shutdown:
        yield "suspend needs shutdownAfterJobFinishes"
    if rules and shutdown:
        yield "deletionRules and shutdownAfterJobFinishes exclude each other"
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit is negative"
    if spec.get("activeDeadlineSeconds", 1) <= 0:
        yield "activeDeadlineSeconds is not positive"
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"):
        yield f"submissionMode {mode!r} is not known"
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0):
        yield "InteractiveMode takes no backoffLimit"
    if mode == "SidecarMode":
        for field in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
            if field in spec:
                yield f"SidecarMode takes no {field}"
    submitter = spec.get("submitterPodTemplate", {}).get("spec", {})
    if submitter and submitter.get("restartPolicy") not in ("Never", "OnFailure"):
        yield "the submitter's restartPolicy must be Never or OnFailure, as a Job's"


def _service(spec: Doc) -> Iterator[str]:
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "rayClusterDeletionDelaySeconds is negative"
    kind = spec.get("upgradeStrategy", {}).get("type", "NewCluster")
    if kind not in ("NewCluster", "NewClusterWithIncrementalUpgrade", "None"):
        yield f"upgradeStrategy.type {kind!r} is not known"
    cluster = spec["rayClusterConfig"]
    if "name" in cluster["headGroupSpec"].get("headService", {}).get("metadata", {}):
        yield "headService takes no name"
    for name, template in _groups(cluster):
        ports = {p["name"]: p["containerPort"] for p in template["containers"][0]["ports"]}
        if ports.get("serve") != 8000:
            yield f"{name}: the operator looks for a port named serve"


def _groups(cluster: Doc) -> Iterator[tuple[str, Doc]]:
    yield "head", cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]


def _cluster(cluster: Doc) -> Iterator[str]:
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield from _group(group)
    for name, pod in _groups(cluster):
        yield from _ports(name, pod)
    if cluster.get("authOptions", {}).get("mode") == "token":
        version = tuple(int(part) for part in cluster.get("rayVersion", "0").split("."))
        if version < (2, 52, 0):
            yield "authOptions.mode token needs a rayVersion of at least 2.52.0"
    yield from _autoscaler(cluster)


def _group(group: Doc) -> Iterator[str]:
    name = group.get("groupName", "head")
    params = group.get("rayStartParams", {})
    if group.get("resources") and any(params.get(p) for p in _RESOURCE_PARAMS):
        yield f"{name}: resources are set twice"
    if "labels" in params:
        yield f"{name}: labels belong to the group, not to rayStartParams"
    if name != "head":
        low, high = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if not low <= group.get("replicas", low) <= high:
            yield f"{name}: replicas are outside minReplicas and maxReplicas"


def _ports(name: str, pod: Doc) -> Iterator[str]:
    ports = pod["containers"][0].get("ports", [])
    for port in ports:
        if len(port["name"]) > 15 or not _PORT_NAME.fullmatch(port["name"]):
            yield f"{name}: {port['name']!r} is no name of a port"
    for field in ("name", "containerPort"):
        if len({p[field] for p in ports}) < len(ports):
            yield f"{name}: two ports have one {field}"


def _autoscaler(cluster: Doc) -> Iterator[str]:
    head = cluster["headGroupSpec"]["template"]["spec"]
    own = [
        e for e in head["containers"][0].get("env", []) if e["name"] == "RAY_enable_autoscaler_v2"
    ]
    if not cluster.get("enableInTreeAutoscaling"):
        if own and own[0].get("value") in ("1", "true"):
            yield "RAY_enable_autoscaler_v2 needs enableInTreeAutoscaling"
        return
    options = cluster.get("autoscalerOptions", {})
    if own and "version" in options:
        yield "autoscalerOptions.version and RAY_enable_autoscaler_v2 are both set"
    if options.get("version") == "v2" or own:
        for name, pod in _groups(cluster):
            if pod.get("restartPolicy", "Never") != "Never":
                yield f"{name}: restartPolicy must be Never or unset with autoscaler v2"
    if head.get("automountServiceAccountToken") is False:
        yield "head: the autoscaler's container needs the ServiceAccount's token"
