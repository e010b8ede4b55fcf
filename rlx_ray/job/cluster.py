"""The one place that starts or joins Ray.

A cluster of this process's own is closed: it listens on loopback, wants a token that only this
process tree knows, and keeps its sockets and logs in a folder that only this user enters. A cluster
that is joined keeps its own mode and token (`RAY_AUTH_MODE`, `RAY_AUTH_TOKEN`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rlx_ray.errors import ClusterError, ConfigError
from rlx_ray.job import processes
from rlx_ray.job.reach import first, host_and_port, reach, unusable

_LOOPBACK = "127.0.0.1"

_TEMPORARY_CHARACTERS = 29
"""Of a folder for temporary files; a path of Ray's sockets adds 78, and Linux takes 107."""

_DEFAULTS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
_SEVERAL_HOSTS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_KEPT = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", _SEVERAL_HOSTS, *_DEFAULTS)
"""Variables that are put back when a connection ends."""

_QUIET: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}


@dataclass(frozen=True, slots=True)
class RayConnection:
    """A connection to Ray.

    Attributes:
        ray: the module, connected.
        own: whether the cluster was started here, and ends with the connection.
    """

    ray: Any
    own: bool

    def nodes(self) -> int:
        """How many nodes there are."""
        return sum(bool(node["Alive"]) for node in self.ray.nodes())

    def head(self) -> str:
        """The address of the head node."""
        heads = [n for n in self.ray.nodes() if "node:__internal_head__" in n["Resources"]]
        return str(heads[0]["NodeManagerAddress"])


def named(address: str | None) -> str | None:
    """The cluster to join: an option's, else that of `RAY_ADDRESS`; None for one of our own.

    Raises:
        ConfigError: the address has no form that Ray knows.
    """
    found = os.environ.get("RAY_ADDRESS") or None
    name = "RAY_ADDRESS"
    if address is not None and (address != "auto" or found is None):
        name, found = "--address", address
    if found is None or (name == "RAY_ADDRESS" and found == "local"):
        return None
    if found != "auto" and host_and_port(found) is None:
        raise ConfigError(f"{name} is {found!r}.", "Use auto, HOST:PORT or ray://HOST:PORT.")
    return found


@contextmanager
def connected(address: str | None, **options: Any) -> Iterator[RayConnection]:
    """Ray, connected: to a running cluster, or to one of our own that ends with the block.

    A block inside another one, or in a process that is connected, uses what is there.

    Args:
        address: as `named` gives it.
        options: of `ray.init` for a cluster of our own.

    Raises:
        ClusterError: the cluster does not start, cannot be reached, or refuses us.
    """
    with _environment():
        import ray

        if ray.is_initialized():
            yield RayConnection(ray, own=False)
            return
        with _joined(address) if address else _own(options) as cluster:
            yield cluster


@contextmanager
def _own(options: dict[str, Any]) -> Iterator[RayConnection]:
    import ray

    folder = _folder()
    try:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=_token())
        os.environ[_SEVERAL_HOSTS] = "0"  # for Ray's other processes, see _arranged
        _read_environment()
        try:
            with _arranged():
                found: Any = ray.init(
                    address="local",
                    include_dashboard=False,
                    _node_ip_address=_LOOPBACK,
                    _temp_dir=str(folder / "r"),  # Ray opens its own folder to everybody
                    **_QUIET,
                    **options,
                )
        except Exception as error:  # Ray raises plain ones
            raise ClusterError(
                f"Ray did not start on this machine: {first(error)}",
                "Free memory and processors, or name a running cluster by RAY_ADDRESS.",
            ) from error
        _see_that_it_is_closed(found.address_info["node_ip_address"])
        yield RayConnection(ray, own=True)
    finally:
        started = processes.below(folder)
        with contextlib.suppress(Exception):  # whatever is left is ended next
            ray.shutdown(wait_for_processes=True)
        processes.end(started)
        shutil.rmtree(folder, ignore_errors=True)


def _token() -> str:
    """The user's own if there is one in the environment, else a random one."""
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    return (mode == "token" and os.environ.get("RAY_AUTH_TOKEN")) or secrets.token_hex(32)


def _see_that_it_is_closed(address: str) -> None:
    if address != _LOOPBACK:
        raise ClusterError(
            f"Ray listens on {address}, where others reach it, and not on {_LOOPBACK}.",
            "Install the Ray that pyproject.toml names.",
        )


@contextmanager
def _joined(address: str) -> Iterator[RayConnection]:
    import ray

    try:
        _read_environment()
        found = reach(address)
        try:
            ray.init(address=found, **_QUIET)
        except Exception as error:  # Ray raises plain ones
            raise unusable(address, error) from error
        yield RayConnection(ray, own=False)
    finally:
        ray.shutdown()


def _folder() -> Path:
    """A folder that only this user enters, with a path short enough for Ray's sockets."""
    base = tempfile.gettempdir()
    try:
        return Path(
            tempfile.mkdtemp("", "rlx", base if len(base) <= _TEMPORARY_CHARACTERS else "/tmp")
        )
    except OSError as error:
        raise ClusterError(
            f"Ray has no place for its sockets: {error}.",
            f"Set TMPDIR to a folder of at most {_TEMPORARY_CHARACTERS} characters.",
        ) from error


@contextmanager
def _environment() -> Iterator[None]:
    """Put variables back at the end, and have Ray's core read them again."""
    before = {name: os.environ.get(name) for name in _KEPT}
    for name, default in _DEFAULTS.items():
        os.environ.setdefault(name, default)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_environment()


def _read_environment() -> None:
    """Ray's core keeps mode and token as it found them first."""
    from ray import _raylet

    core: Any = _raylet
    core.Config.initialize("")
    core.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _arranged() -> Iterator[None]:
    """Have Ray's servers listen on loopback, the node's agent on a free port.

    They do listen there where a node's address is a loopback one; Ray replaces such an address by
    the host's outside one wherever it takes clusters of several hosts to be possible. The agent's
    port is fixed otherwise, and where another Ray has it this one starts late and without.
    """
    from ray._private import parameter, ray_constants

    several, params = ray_constants.ENABLE_RAY_CLUSTER, parameter.RayParams
    ray_constants.ENABLE_RAY_CLUSTER = False
    setattr(parameter, "RayParams", partial(params, dashboard_agent_listen_port=0))  # noqa: B010
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = several
        setattr(parameter, "RayParams", params)  # noqa: B010
