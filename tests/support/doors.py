"""Every port that a Ray of our own opens: why, and what keeps strangers out.

All but one are bound to loopback. All that take commands want the token, on loopback too: another
user of the host is a stranger. What answers without one is said in `reveals`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import grpc
import httpx

from tests.support.sockets import Listener

GRPC_REVEALS = "gRPC's own health, channelz, reflection: that it serves, names and numbers of calls"
SECONDS = 10.0
CLOSED, OPEN = ("refused", "ok"), ("ok", "ok")


@dataclass(frozen=True)
class Door:
    """A kind of listening socket.

    Attributes:
        who: what the command line of the process matches.
        call: a gRPC method, or an HTTP method and path, that this socket alone has there.
        reason: why Ray, or we, open it.
        reveals: what it answers without the token; it takes no commands.
        everywhere: why it is not on loopback, if it is not.
        answers: what the call comes to without the token, and with it.
    """

    who: str
    call: str
    reason: str
    reveals: str = ""
    everywhere: str = ""
    answers: tuple[str, str] = CLOSED

    def ask(self, where: Listener, token: str | None) -> str:
        """What the call comes to: `ok`, `refused`, or anything else."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        if " " in self.call:
            return _http(*self.call.split(" "), where.port, headers)
        return _grpc(self.call, where.port, headers)


def _http(method: str, path: str, port: int, headers: dict[str, str]) -> str:
    try:
        with httpx.Client(trust_env=False, timeout=SECONDS) as client:
            reply = client.request(method, f"http://127.0.0.1:{port}{path}", headers=headers)
    except httpx.HTTPError as error:
        return type(error).__name__
    found = {200: "ok", 401: "refused", 403: "refused"}
    return found.get(reply.status_code, str(reply.status_code))


def _grpc(method: str, port: int, headers: dict[str, str]) -> str:
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=SECONDS, metadata=list(headers.items()))
        except grpc.RpcError as error:
            refused = error.code() is grpc.StatusCode.UNAUTHENTICATED
            return "refused" if refused else str(error.code().name)
    return "ok"


WORKER = "/ray.rpc.CoreWorkerService/GetCoreWorkerStats"
DOORS = (
    Door(
        r"gcs_server",
        "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
        "GCS: the cluster's state; who joins it may run anything",
        GRPC_REVEALS,
    ),
    Door(
        r"raylet/raylet",
        "/ray.rpc.NodeManagerService/GetNodeStats",
        "the raylet: starts workers",
        GRPC_REVEALS,
    ),
    Door(
        r"raylet/raylet",
        "/ray.rpc.ObjectManagerService/Pull",
        "the object manager: copies objects between nodes",
        GRPC_REVEALS,
    ),
    Door(r"rlx_ray\.cli", WORKER, "the driver, a worker to Ray", GRPC_REVEALS),
    Door(r"^ray::|default_worker", WORKER, "workers and actors: run tasks", GRPC_REVEALS),
    Door(
        r"^ray::ServeReplica",
        "/ray.serve.ASGIService/HandleRequest",
        "a replica: calls between deployments by gRPC, which nothing here makes",
        everywhere="Ray Serve binds [::] and has no option; each of its calls wants the token",
        answers=("refused", "UNKNOWN"),  # nothing is no call
    ),
    Door(
        r"DashboardAgent|dashboard/agent",
        "/ray.rpc.ReporterService/HealthCheck",
        "the node's agent: takes metrics from workers",
    ),
    Door(
        r"DashboardAgent|dashboard/agent",
        "POST /api/job_agent/jobs/",
        "the node's agent: the job API, which runs any command",
        "/api/healthz and /api/local_raylet_healthz: that the node is alive",
        answers=("refused", "500"),  # nothing is no job
    ),
    Door(
        r"DashboardAgent|dashboard/agent",
        "GET /metrics",
        "the node's agent: metrics for Prometheus",
        "counters with names of deployments",
        answers=OPEN,
    ),
    Door(
        r"RuntimeEnvAgent|runtime_env/agent",
        "POST /get_runtime_envs_info",
        "makes environments for workers",
    ),
    Door(
        r"dashboard/dashboard",
        "GET /metrics",
        "the head's dashboard, of which only metrics are left: port 44227",
        "counters of its own work",
        answers=OPEN,
    ),
    Door(
        r"autoscaler",
        "GET /metrics",
        "the autoscaler's monitor: port 44217",
        "counters of its own work",
        answers=OPEN,
    ),
    Door(
        r"^ray::ProxyActor",
        "GET /v2/health/live",
        "ours: serve.host and serve.port with --proxy python; beside HAProxy nobody asks it",
        "the endpoint, which has no token",
        answers=OPEN,
    ),
    Door(
        r"bin/haproxy",
        "GET /v2/health/live",
        "ours: serve.host and serve.port, where users ask",
        "the endpoint, which has no token",
        answers=OPEN,
    ),
    Door(
        r"bin/haproxy",
        "GET /stats",
        "HAProxy's statistics, which Ray asks for",
        "counters of requests and addresses of gateways",
        answers=OPEN,
    ),
    Door(
        r"bin/haproxy",
        "GET /metrics",
        "HAProxy's metrics for Prometheus",
        "counters of requests",
        answers=OPEN,
    ),
    Door(
        r"^ray::ServeReplica:\w+:Gateway",
        "GET /v2/health/live",
        "a gateway's HTTP port, which HAProxy asks",
        "the endpoint, which has no token",
        answers=OPEN,
    ),
)


def doors_of(listener: Listener, token: str) -> list[Door]:
    """Which a socket is: its process has them, and it answers as they do; one, if all is well."""
    return [
        door
        for door in DOORS
        if re.search(door.who, listener.name)
        and (door.ask(listener, None), door.ask(listener, token)) == door.answers
    ]
