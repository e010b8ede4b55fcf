"""Ports to listen on."""

from __future__ import annotations

import random
import socket

from rlx_ray.errors import ClusterError


def free_port(host: str, port: int) -> int:
    """The port if it can be listened on; for 0 one that is free.

    A free one is looked for below the range from which the system takes ports for outgoing
    connections and Ray for its own servers: there it might be gone before Serve listens.

    Raises:
        ClusterError: it is in use, or not this process's to take.
    """
    choices = random.sample(range(20_000, 32_000), 20) if port == 0 else [port]
    for choice in choices[:-1]:
        if not _refusal(host, choice):
            return choice
    refusal = _refusal(host, choices[-1])
    if refusal:
        raise ClusterError(
            f"port {choices[-1]} on {host} cannot be listened on: {refusal}.",
            "Stop what uses it, or set serve.port or --port (0 picks a free one).",
        )
    return choices[-1]


def free_ports(host: str, count: int) -> list[int]:
    """Some ports that are free, each another one."""
    found: dict[int, None] = {}
    while len(found) < count:
        found[free_port(host, 0)] = None
    return list(found)


def _refusal(host: str, port: int) -> str:
    """Why a port cannot be listened on; empty if it can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            return str(error)
    return ""
