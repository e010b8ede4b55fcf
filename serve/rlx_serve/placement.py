"""What runs each target, what replicas claim, and which executors answer. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview

from rlx_ray.config.serve import Placement, ServeSpec
from rlx_ray.host import Host
from rlx_ray.target import Target

CORE = ("Gateway", "Coordinator")
"""Deployments without which nothing is answered."""

_FAILED = "DEPLOY_FAILED"
"""Serve has given up; of a deployment that is UNHEALTHY it starts new replicas."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Cluster:
    """What is known of the cluster before anything is placed on it.

    Attributes:
        nodes: how many are alive.
        gpus: how many it has.
        own: whether it is this machine alone, as long as it runs.
    """

    nodes: int
    gpus: int
    own: bool


@dataclass(frozen=True, slots=True)
class Fleet:
    """What runs the targets of a config.

    Attributes:
        local: those that gateways run themselves.
        executors: those that executors run. One that is local too has them for text alone.
        passed_over: why nothing runs one of the others, by its name.
    """

    local: tuple[Target, ...]
    executors: tuple[Target, ...]
    passed_over: Mapping[str, str]

    @property
    def targets(self) -> tuple[Target, ...]:
        """All that are run."""
        return tuple(dict.fromkeys((*self.local, *self.executors)))


def executor_name(target: str) -> str:
    """The name of a target's deployment."""
    return f"Executor-{target}"


def choose(
    targets: Iterable[Target],
    texts: Collection[Target],
    spec: ServeSpec,
    host: Host,
    cluster: Cluster,
) -> Fleet:
    """What runs each target.

    Gateways run the CPU targets of this machine, but for those that `serve.executors` names. All
    streams of a language model share one engine, so with several gateways it has executors there.

    Executors run the rest. On a cluster of several nodes that is every other target: Ray finds the
    nodes, or waits for them. A single node may be the first of more; then a CUDA target stays if
    the node has a GPU, or if the config says where its executor runs.

    Args:
        targets: those that the config serves, in serving order.
        texts: those of them that language models run on.
        spec: its section `serve`.
        host: this machine.
        cluster: where they are to run.
    """
    local: list[Target] = []
    executors: list[Target] = []
    passed_over: dict[str, str] = {}
    room = float(len(host.devices))
    for target in targets:
        why = _refusal(target, spec, host, cluster)
        claim = spec.placement(target).num_gpus * spec.placement(target).replicas
        if not why and cluster.own and claim > room:
            why = f"GPUs left here: {room:g}, it claims {claim:g}"
        if why:
            passed_over[target.name] = why
            continue
        room -= claim
        here = not (target.can.gpus or spec.names_executor(target) or host.refusal(target))
        if here:
            local.append(target)
        if not here or (target in texts and spec.gateways > 1):
            executors.append(target)
    return Fleet(tuple(local), tuple(executors), passed_over)


def _refusal(target: Target, spec: ServeSpec, host: Host, cluster: Cluster) -> str:
    if cluster.nodes > 1:
        return ""
    if target.can.gpus and not cluster.own:
        if cluster.gpus or spec.names_executor(target):
            return ""
        return "the cluster has no GPU, and serve.executors does not say where to wait for one"
    return host.refusal(target)


def deployment_options(spec: ServeSpec, placement: Placement) -> dict[str, Any]:
    """What `serve.deployment` is told of an executor's replicas."""
    actor: dict[str, Any] = {"num_cpus": placement.num_cpus}
    if placement.num_gpus:
        actor["num_gpus"] = placement.num_gpus
    if placement.label_selector:
        actor["label_selector"] = dict(placement.label_selector)
    if placement.max_replicas is None:
        return {"ray_actor_options": actor, "num_replicas": placement.replicas}
    scaling = {
        "min_replicas": placement.replicas,
        "max_replicas": placement.max_replicas,
        # Half of what a replica takes at once: the rest is room until a new one has started.
        "target_ongoing_requests": max(1, spec.max_ongoing_requests / 2),
    }
    return {"ray_actor_options": actor, "autoscaling_config": scaling}


def gateway_options(spec: ServeSpec) -> dict[str, Any]:
    """What `serve.deployment` is told of the gateway's replicas."""
    actor: dict[str, Any] = {"num_cpus": spec.gateway.num_cpus}
    if spec.gateway.label_selector:
        actor["label_selector"] = dict(spec.gateway.label_selector)
    return {"ray_actor_options": actor, "num_replicas": spec.gateways}


def absences(app: ApplicationStatusOverview, targets: Iterable[str]) -> dict[str, str]:
    """Why no replica of an executor answers, by target name; those that answer are left out."""
    found = {}
    for target in targets:
        status = app.deployments.get(executor_name(target))
        if status is None:
            found[target] = "its executor is not deployed"
        elif not sum(n for state, n in status.replica_states.items() if state == "RUNNING"):
            found[target] = _why(status)
    return found


def _why(status: DeploymentStatusOverview) -> str:
    """What Serve says of a deployment, in a line: the end of a traceback is its cause."""
    lines = [line.strip() for line in _COLOUR.sub("", status.message).splitlines() if line.strip()]
    if status.status == _FAILED and lines:
        return f"its executor did not start: {lines[-1]}"
    return f"its executor has no replica yet: {lines[0]}" if lines else "its executor is starting"


def failure(app: ApplicationStatusOverview, models: Mapping[str, tuple[str, ...]]) -> str:
    """Why an application cannot serve some model any more; empty if it may.

    Args:
        app: the application.
        models: target names of each model's executors, at least one.
    """
    for name in CORE:
        status = app.deployments.get(name)
        if status is not None and status.status == _FAILED:
            return f"deployment {name} did not start: {status.message}"
    if not app.deployments and app.status == _FAILED:
        return app.message
    for model, targets in models.items():
        why = absences(app, targets)
        if all(t in why and _has_ended(app, t) for t in targets):
            reasons = "; ".join(f"{target}: {reason}" for target, reason in why.items())
            return f"model {model!r} has no executor: {reasons}"
    return ""


def _has_ended(app: ApplicationStatusOverview, target: str) -> bool:
    status = app.deployments.get(executor_name(target))
    return status is not None and status.status == _FAILED


def serves(app: ApplicationStatusOverview, models: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether every model has an executor that answers, and the gateway is up."""
    core = [app.deployments.get(name) for name in CORE]
    if not all(status is not None and status.status == "HEALTHY" for status in core):
        return False
    return all(len(absences(app, targets)) < len(targets) for targets in models.values())


def settled(app: ApplicationStatusOverview, targets: Iterable[str]) -> bool:
    """Whether every executor answers, or never will."""
    return all(_has_ended(app, target) for target in absences(app, targets))
