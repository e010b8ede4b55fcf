"""Where Ray Serve listens: its proxy started, or found to listen where it should, and asked."""

from __future__ import annotations

import contextlib
import time
import urllib.request
from contextlib import ExitStack

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client

from rlx_ray.config.serve import ServeSpec
from rlx_ray.errors import ClusterError
from rlx_ray.job.cluster import RayConnection
from rlx_ray.job.reach import first

ROUTE_S = 10.0
"""Seconds that the proxy may take to hear of a new application."""

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Hosts that stand for all interfaces, and where this machine asks them."""


def http_options(spec: ServeSpec) -> HTTPOptions:
    """How the proxy listens; a time limit of its own would cut texts in the middle."""
    return HTTPOptions(host=spec.host, port=spec.port, request_timeout_s=None)


def listen(spec: ServeSpec, cluster: RayConnection, undo: ExitStack) -> None:
    """Start Serve, or check that the one that runs listens where it should.

    Raises:
        ClusterError: it does not.
    """
    running = _get_global_client(raise_if_no_controller_running=False)
    if running is None:
        if not cluster.own:
            undo.callback(_end_serve, cluster)
        try:
            serve.start(proxy_location="HeadOnly", http_options=http_options(spec))
        except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
            raise ClusterError(
                f"Ray Serve does not listen on {spec.host}:{spec.port}: "
                f"{_why(getattr(error, 'cause', error))}",
                "Check that the port is free there, or set serve.port or --port.",
            ) from error
        if cluster.own:  # one that did not come up ends with Ray
            undo.callback(_end_serve, cluster)
        return
    there = running.http_config
    if (there.host, there.port) != (spec.host, spec.port):
        raise ClusterError(
            f"Ray Serve runs on this cluster and listens on {there.host}:{there.port}, not on "
            f"{spec.host}:{spec.port}.",
            f"Set serve.host or --host to {there.host} and serve.port or --port to {there.port}.",
        )


def _why(error: BaseException) -> str:
    """What went wrong, in a line: HAProxy says it behind notices of its version."""
    alerts = [line for line in str(error).splitlines() if "[ALERT]" in line]
    return alerts[0].partition(" : ")[2].strip() if alerts else first(error)


def _end_serve(cluster: RayConnection) -> None:
    """End a Serve that was started here, unless others use it by now."""
    if cluster.own:
        with contextlib.suppress(Exception):  # Ray ends next, and Serve with it
            serve.shutdown()  # type: ignore[no-untyped-call]
    elif not serve.status().applications:
        serve.shutdown()  # type: ignore[no-untyped-call]


def url_of(host: str, port: int, cluster: RayConnection) -> str:
    """Where Serve's proxy is asked: a wildcard host is asked on this machine, or on the head."""
    if host in _WILDCARDS:
        host = _WILDCARDS[host] if cluster.own else cluster.head()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def await_route(url: str) -> None:
    """Wait until the proxy has heard of the gateway.

    Raises:
        ClusterError: it does not answer.
    """
    until = time.monotonic() + ROUTE_S
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            direct.open(f"{url}/v2/health/live", timeout=ROUTE_S).close()
            return
        except OSError as error:  # refused, or a status that is no success
            if time.monotonic() > until:
                raise ClusterError(
                    f"{url} does not answer: {error}.",
                    "Set serve.host (or --host) to an address of the cluster's head node that this "
                    "machine reaches, and serve.port (or --port) to a free port of it.",
                ) from error
            time.sleep(0.1)
