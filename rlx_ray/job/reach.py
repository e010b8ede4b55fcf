"""Reaching a Ray cluster before it is joined: Ray itself would try for minutes, and say little."""

from __future__ import annotations

import os
import socket

from rlx_ray.errors import ClusterError

_CONNECT_SECONDS = 5.0


def reach(address: str) -> str:
    """The address of a cluster that answers us.

    Raises:
        ClusterError: nothing listens there, or what listens does not take our token.
    """
    from ray._private import services
    from ray._private.authentication import authentication_token_setup as setup
    from ray.exceptions import AuthenticationError

    try:
        if address == "auto":
            setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
            address = str(services.canonicalize_bootstrap_address("auto"))
        host, port = host_and_port(address) or ("", 0)
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
        if not address.startswith("ray://"):
            setup.ensure_token_if_auth_enabled(create_token_if_missing=False)
            _ask(str(services.canonicalize_bootstrap_address(address)), address)
    except OSError as error:
        raise unusable(address, error) from error
    except AuthenticationError as error:
        raise _refused(address, "RAY_AUTH_MODE is token, but there is no token") from error
    return address


def _ask(where: str, address: str) -> None:
    """Make the first call of every client.

    Raises:
        ClusterError: it is not answered.
    """
    import grpc
    from ray._private.grpc_utils import init_grpc_channel

    with init_grpc_channel(where) as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            call(b"", timeout=_CONNECT_SECONDS)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                mode = os.environ.get("RAY_AUTH_MODE", "")
                why = "the token is wrong" if mode == "token" else f"RAY_AUTH_MODE is {mode!r}"
                raise _refused(address, why) from error
            raise unusable(address, f"Ray does not answer there ({error.code().name})") from error


def _refused(address: str, why: str) -> ClusterError:
    return ClusterError(
        f"the Ray cluster at {address} refuses this process: {why}.",
        "Set RAY_AUTH_MODE to token and RAY_AUTH_TOKEN to the cluster's token.",
    )


def unusable(address: str, error: object) -> ClusterError:
    """The error of a cluster that cannot be joined."""
    return ClusterError(
        f"the Ray cluster at {address} cannot be used: {first(error)}",
        "Check that the address is right and the cluster runs: ray status --address ADDRESS",
    )


def first(error: object) -> str:
    """The first line of what an error says, as a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".") + "."


def host_and_port(address: str) -> tuple[str, int] | None:
    """What an address is made of; None if it is no HOST:PORT or ray://HOST:PORT."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    good = host and "/" not in host and port.isdigit() and 0 < int(port) < 65536
    return (host.strip("[]"), int(port)) if good else None
