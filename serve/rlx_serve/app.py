"""Wiring: from a config to a running Ray Serve application."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.config import BackpressureConfig

from rlx_ray.config.load import load
from rlx_ray.config.schema import Config
from rlx_ray.errors import ConfigError, RlxError
from rlx_ray.job.build import BuildLimits
from rlx_ray.job.cluster import connected, named
from rlx_ray.runtime.loaders import host_for
from rlx_ray.store import check_shared
from rlx_serve.coordinator.coordinator import Coordinator
from rlx_serve.endpoint import Gateway
from rlx_serve.gateway.availability import LOGS, wait_until_served
from rlx_serve.gateway.lanes import Executors
from rlx_serve.listening import await_route, listen, url_of
from rlx_serve.placement import (
    Cluster,
    Fleet,
    choose,
    deployment_options,
    executor_name,
    gateway_options,
)
from rlx_serve.ports import free_port
from rlx_serve.replica.budget import budget_of, check_budget
from rlx_serve.replica.executor import Executor
from rlx_serve.table import Table, open_table

APP = "rlx"
"""Name of the Serve application."""

_UNBOUNDED = (100_000, 100_000)
"""Requests that a replica has, and that a caller queues, where the replica bounds them itself."""

_STARTS = 3
"""Times that a replica's start is tried before its executor is given up."""

_log = logging.getLogger("rlx_serve")


class AppArgs(BaseModel):
    """Arguments of `build_app` in a Serve config file.

    Attributes:
        config: path of the config file, relative to the working directory.
        store: a store URL that replaces the config's.
    """

    model_config = ConfigDict(extra="forbid")

    config: str
    store: str | None = None


def build_app(args: AppArgs | dict[str, object]) -> serve.Application:
    """The application of a Serve config file: `import_path: rlx_serve.app:build_app`.

    Serve hands over the file's `args` as a mapping.

    Raises:
        ConfigError: the config is invalid, or no host can run it.
        CheckpointError: a checkpoint is missing or damaged.
    """
    found = AppArgs.model_validate(args)
    return bind(load(Path(found.config), store_override=found.store))


def bind(config: Config) -> serve.Application:
    """The application of a config: a gateway, one executor for each target, and the coordinator.

    On a cluster that scales by resources, a Serve config file gives the gateway and the coordinator
    CPUs of their own; where executors run is in the config's `serve.executors`.

    Raises:
        ConfigError, CheckpointError: see `build_app`.
    """
    table = open_table(config)
    return _bind(config, table, _fleet(config, table, _cluster(own=False)))


def _bind(config: Config, table: Table, fleet: Fleet) -> serve.Application:
    spec = config.serve
    limits = BuildLimits(spec.build_timeout_s, spec.build_memory_bytes)
    one = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0}}
    builder = _deploy(Coordinator, "Coordinator", _UNBOUNDED, one)
    coordinator = builder.bind(config.store, limits)
    executors = {}
    for target in fleet.executors:
        placement = spec.placement(target)
        options = deployment_options(spec, placement)
        name = executor_name(target.name)
        most = (spec.max_ongoing_requests, spec.max_queued_requests)
        deployment = _deploy(Executor, name, most, options)
        text_alone = target in fleet.local
        # Serve hands over a handle in its place.
        handle: Any = deployment.bind(config, target, coordinator, table.deployed, text_alone)
        replicas = placement.max_replicas or placement.replicas
        executors[target.name] = Executors(handle, replicas)
    options = gateway_options(spec)
    body = serve.ingress()(Gateway)
    gateway = _deploy(body, "Gateway", _UNBOUNDED, options, spec.request_timeout_s)
    return gateway.bind(
        config, fleet.local, executors, coordinator, fleet.passed_over, table.deployed
    )


def _deploy(
    body: type,
    name: str,
    most: tuple[int, int],
    options: Mapping[str, Any],
    grace: float = 10,
) -> serve.Deployment:
    """A deployment.

    Args:
        body: its class.
        name: its name.
        most: requests that a replica has at once, and that each caller queues.
        options: where and how many its replicas are.
        grace: seconds that a replica that ends has for the requests that it answers.

    Raises:
        ConfigError: Ray does not take the options.
    """
    ongoing, queued = most
    try:
        declare = serve.deployment(
            name=name,
            max_ongoing_requests=ongoing,
            max_queued_requests=queued,
            backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
            graceful_shutdown_wait_loop_s=0.5,
            graceful_shutdown_timeout_s=grace,
            max_constructor_retry_count=_STARTS,
            **options,
        )
        deployment: serve.Deployment = declare(body)
    except ValueError as error:
        raise ConfigError(
            f"$.serve: Ray does not take the options of {name}: {error}",
            "See $.serve.executors.",
        ) from error
    return deployment


def _fleet(config: Config, table: Table, cluster: Cluster) -> Fleet:
    """What runs the targets.

    Raises:
        ConfigError: nothing runs any, or what a replica of one must hold does not fit.
    """
    targets = table.all_targets
    texts = {t for name in table.models if table.generates(name) for t in table.targets(name)}
    fleet = choose(targets, texts, config.serve, host_for(targets), cluster)
    if not fleet.targets:
        raise ConfigError(
            f"$.targets: this host can run none of them: {dict(fleet.passed_over)}.",
            "Add 'host' to them.",
        )
    for target in fleet.targets:
        check_budget(config, table, target, budget_of(config, target))
    return fleet


def _cluster(*, own: bool) -> Cluster:
    """The cluster that this process is connected to; a node of none is its own."""
    if not ray.is_initialized():
        return Cluster(1, 0, own)
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())  # type: ignore[no-untyped-call]
    return Cluster(nodes, int(ray.cluster_resources().get("GPU", 0)), own)  # type: ignore[no-untyped-call]


@contextmanager
def serving(
    config: Config | str | Path,
    *,
    store: str | None = None,
    host: str | None = None,
    port: int | None = None,
) -> Iterator[str]:
    """Serve a config while the block runs, on a Ray of its own or one that is joined.

    At the end the application is taken down; Serve and Ray too, if they were started here.

    Args:
        config: a config, or the path of one.
        store: a store URL that replaces the config's, for a path.
        host: where to listen, instead of `serve.host`.
        port: where to listen, instead of `serve.port`; 0 picks a free one.

    Yields:
        The URL, once it answers.

    Raises:
        ConfigError: the config is invalid, or the port is in use.
        ClusterError: Ray does not start, cannot be joined, or the URL does not answer.
        RlxError: a deployment did not start.
    """
    found = config if isinstance(config, Config) else load(config, store_override=store)
    address = named(None)
    own = not ray.is_initialized() and address is None
    spec = replace(found.serve, host=host or found.serve.host)
    wanted = spec.port if port is None else port
    if own or wanted == 0:  # a joined cluster may serve others on this port already
        wanted = free_port(spec.host, wanted)
    found = replace(found, serve=replace(spec, port=wanted))
    table = open_table(found)  # a mistake in the config is told before anything is started
    fleet = _fleet(found, table, Cluster(1, 0, own=True)) if own else None
    with connected(address) as cluster:
        seen = _cluster(own=cluster.own)
        check_shared(found.store, seen.nodes)
        fleet = fleet or _fleet(found, table, seen)
        with ExitStack() as undo:
            listen(found.serve, cluster, undo)
            undo.callback(serve.delete, APP)  # first: what runs is answered, by the proxy too
            _start(found, table, fleet)
            url = url_of(found.serve.host, found.serve.port, cluster)
            await_route(url)
            yield url


def _start(config: Config, table: Table, fleet: Fleet) -> None:
    """Deploy, wait until every model is served, and say which targets nothing runs."""
    target = serve.RunTarget(_bind(config, table, fleet), name=APP, route_prefix="/")
    try:
        serve.run_many([target], wait_for_applications_running=False)
        executors = [target.name for target in fleet.executors]
        absent = wait_until_served(APP, _models(table, fleet), executors)
    except (RuntimeError, ray.exceptions.RayError) as error:
        raise RlxError(f"serving {config.path} did not start: {error}", LOGS) from error
    for name, why in {**fleet.passed_over, **absent}.items():
        _log.warning("%s is passed over: %s", name, why)


def _models(table: Table, fleet: Fleet) -> dict[str, tuple[str, ...]]:
    """The targets of each model that executors alone run."""
    found = {}
    for name in table.models:
        targets = [t for t in table.targets(name) if t in fleet.targets and table.select(t)]
        here = set(fleet.local)
        if table.generates(name):  # where a target has executors, they are what its text runs on
            here -= set(fleet.executors)
        if not targets:
            _log.warning("model %r is not served: nothing runs its targets", name)
        elif not here & set(targets):
            found[name] = tuple(t.name for t in targets)
    return found
