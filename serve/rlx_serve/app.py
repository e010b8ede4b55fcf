"""Wiring: from a config to a running Ray Serve application. The environment is read here alone."""

from __future__ import annotations

import logging
import os
import random
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.config import BackpressureConfig, HTTPOptions

from rlx_ray.config import load
from rlx_ray.errors import ConfigError, RlxError
from rlx_ray.job.build import Limits
from rlx_ray.serve_spec import ServeSpec
from rlx_ray.spec import Config
from rlx_ray.store import check_shared, open_store
from rlx_ray.target import Target, this_host
from rlx_serve.builds import Builds
from rlx_serve.executor import Executor
from rlx_serve.ingress import make_app
from rlx_serve.lanes import Handle, lanes
from rlx_serve.service import Service, served
from rlx_serve.speech import speakers
from rlx_serve.table import Table, check_budget, open_table

APP = "rlx"
"""Name of the Serve application."""

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


class Ingress:
    """The HTTP deployment: opens the models' tokenizers and ladders, loads no weights.

    Args:
        config: the whole config.
        executors: a handle for each target name.
        builds: handle of the cluster's `Builds`.
    """

    def __init__(self, config: Config, executors: Mapping[str, Handle], builds: Handle) -> None:
        table = open_table(config)
        models = {
            name: served(table, name, found)
            for name in table.models
            if (found := lanes(table, name, executors))
        }

        async def board() -> Mapping[str, Mapping[str, str]]:
            found: Mapping[str, Mapping[str, str]] = await builds.board.remote()
            return found

        async def ready(target: str, model: str) -> bool:
            return bool(await executors[target].ready.remote(model))

        store = open_store(config.store.url, config.store.storage_options)
        self._service = Service(
            config, table, models, store, board, ready, speakers(table, executors)
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The routes; Serve calls it once the constructor is through."""
        return make_app(self._service)


def build_app(args: AppArgs | dict[str, object]) -> serve.Application:
    """The application of a Serve config file: `import_path: rlx_serve.app:build_app`.

    Serve hands over the file's `args` as a mapping.

    Raises:
        ConfigError: the config cannot be meant, or no host can run it.
        CheckpointError: a checkpoint is missing or damaged.
    """
    found = AppArgs.model_validate(args)
    return bind(load(Path(found.config), store_override=found.store))


def bind(config: Config) -> serve.Application:
    """The application of a config: an ingress, one executor for each target, and the builder.

    Replicas claim no logical CPUs: builds are Ray tasks of one CPU each and must find room. On a
    cluster that scales by resources, a Serve config file gives each deployment its own.

    Raises:
        ConfigError, CheckpointError: see `build_app`.
    """
    table = open_table(config)
    targets = _targets(config, table)
    spec = config.serve
    limits = Limits(spec.build_timeout_s, spec.build_memory_bytes)
    builds = _deploy(Builds, "Builds", spec, 1, 100_000).bind(config.store, limits)
    executors = {
        target.name: _deploy(
            Executor, f"Executor-{target.name}", spec, spec.replicas, spec.max_ongoing_requests
        ).bind(config, target, builds)
        for target in targets
    }
    ongoing = spec.max_ongoing_requests * spec.replicas * len(targets) + spec.max_queued_requests
    ingress = _deploy(serve.ingress()(Ingress), "Ingress", spec, 1, ongoing)
    return ingress.bind(config, executors, builds)


def _deploy(
    body: type, name: str, spec: ServeSpec, replicas: int, ongoing: int
) -> serve.Deployment:
    declare = serve.deployment(
        name=name,
        num_replicas=replicas,
        max_ongoing_requests=ongoing,
        max_queued_requests=spec.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=10,
        max_constructor_retry_count=3,
    )
    deployment: serve.Deployment = declare(body)
    return deployment


def _targets(config: Config, table: Table) -> tuple[Target, ...]:
    """The targets to place executors for; on one node, only those that it can run."""
    targets = table.all_targets
    if _nodes() < 2:
        host = this_host()
        refusals = {t.name: why for t in targets if (why := host.refusal(t))}
        for name, why in refusals.items():
            _log.warning("no executor for %s: %s", name, why)
        targets = tuple(t for t in targets if t.name not in refusals)
        if not targets:
            raise ConfigError(
                f"$.targets: this host can run none of them: {refusals}.", "Add 'host' to them."
            )
    for target in targets:
        check_budget(config, table.select(target))
    return targets


def _nodes() -> int:
    if not ray.is_initialized():
        return 1
    return sum(bool(node["Alive"]) for node in ray.nodes())  # type: ignore[no-untyped-call]


def run(
    config: Config | str | Path,
    *,
    store: str | None = None,
    host: str | None = None,
    port: int | None = None,
) -> str:
    """Start Ray if need be, deploy a config, wait until it is ready, and return its URL.

    Args:
        config: a config, or the path of one.
        store: a store URL that replaces the config's, for a path.
        host: where to listen, instead of `serve.host`.
        port: where to listen, instead of `serve.port`; 0 picks a free one.

    Raises:
        ConfigError: the config cannot be meant, or the port is in use.
        RlxError: a deployment did not start.
    """
    found = config if isinstance(config, Config) else load(config, store_override=store)
    spec = replace(found.serve, host=host or found.serve.host)
    spec = replace(spec, port=free_port(spec.host, spec.port if port is None else port))
    found = replace(found, serve=spec)
    table = open_table(found)  # a mistake in the config is told before anything is started
    _targets(found, table)
    _start_ray()
    check_shared(found.store, _nodes())
    options = HTTPOptions(
        host=spec.host, port=spec.port, request_timeout_s=spec.request_timeout_s + 5
    )
    serve.start(proxy_location="HeadOnly", http_options=options)
    try:
        serve.run(bind(found), name=APP, route_prefix="/")
    except RuntimeError as error:
        raise RlxError(
            f"serving {found.path} did not start: {error}", "See the replicas' logs."
        ) from error
    return f"http://{spec.host}:{spec.port}"


def _start_ray() -> None:
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
        return
    # Ray would write a token file; a cluster of this process alone listens on loopback.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")


def stop() -> None:
    """Take the application down; on a cluster of this process's own, Serve and Ray as well."""
    if not ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        serve.delete(APP)
    else:
        serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


def free_port(host: str, port: int) -> int:
    """The port if it can be listened on; for 0 one that is free.

    A free one is looked for below the range from which the system takes ports for outgoing
    connections and Ray for its own servers: there it might be gone before Serve listens.

    Raises:
        ConfigError: it is in use, or not this process's to take.
    """
    choices = random.sample(range(20_000, 32_000), 20) if port == 0 else [port]
    for choice in choices[:-1]:
        if not _refusal(host, choice):
            return choice
    refusal = _refusal(host, choices[-1])
    if refusal:
        raise ConfigError(
            f"port {choices[-1]} on {host} cannot be listened on: {refusal}.",
            "Stop what uses it, or set serve.port or --port (0 picks a free one).",
        )
    return choices[-1]


def _refusal(host: str, port: int) -> str:
    """Why a port cannot be listened on; empty if it can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            return str(error)
    return ""
