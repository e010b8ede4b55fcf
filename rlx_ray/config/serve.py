"""What a config says of the HTTP endpoint: limits, and where the executors run. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from rlx_ray.target import Target


@dataclass(frozen=True, slots=True)
class ExecutorSpec:
    """What a config says of the replicas for a target or a kind; None is nothing.

    Attributes:
        num_cpus: logical CPUs of a replica.
        num_gpus: devices of a replica, or the share of one.
        label_selector: node labels that a replica needs, as Ray spells them.
        replicas: how many there are, or the fewest.
        max_replicas: the most; from `replicas` up Ray Serve scales by load.
        max_slot_bytes: what a replica may hold.
    """

    num_cpus: float | None = None
    num_gpus: float | None = None
    label_selector: tuple[tuple[str, str], ...] | None = None
    replicas: int | None = None
    max_replicas: int | None = None
    max_slot_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the replicas for one target run, and how many: ExecutorSpec with nothing left open.

    Without `max_replicas` their number is fixed; without `max_slot_bytes` a replica looks how much
    memory there is.
    """

    num_cpus: float
    num_gpus: float
    label_selector: tuple[tuple[str, str], ...]
    replicas: int
    max_replicas: int | None = None
    max_slot_bytes: int | None = None

    def changed(self, spec: ExecutorSpec) -> Placement:
        """This with what a spec says."""
        values = {f.name: getattr(spec, f.name) for f in fields(spec)}
        return replace(self, **{name: v for name, v in values.items() if v is not None})


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """What a config says of the HTTP deployment, whose replicas run CPU targets themselves.

    Attributes:
        replicas: how many there are; None for `serve.replicas`.
        num_cpus: logical CPUs of a replica.
        label_selector: node labels that a replica needs, as Ray spells them.
        max_slot_bytes: what a replica may hold of each target that it runs; None for
            `serve.max_slot_bytes`.
    """

    replicas: int | None = None
    num_cpus: float = 0.0
    label_selector: tuple[tuple[str, str], ...] = ()
    max_slot_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ServeSpec:
    """How the HTTP endpoint runs. Sizes are in bytes, times in seconds.

    `max_slot_bytes` is what a replica may hold: weights, code, arenas and key-value caches, each of
    which has up to `kv_cache_bytes`. None: a share of the memory that there is.
    A build may take `build_timeout_s` of wall time, and `build_memory_bytes` resident: its process
    and the compilers that it starts, together.
    `gateway` is the HTTP deployment; `executors` holds what is said of executors by target name or
    kind (`cpu`, `cuda`). A CPU target that it names has executors; gateways run the others.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    threads: int = 0
    max_slots: int = 64
    max_slot_bytes: int | None = None
    kv_cache_bytes: int = 512 << 20
    max_body_bytes: int = 8 << 20
    max_texts: int = 2048
    max_ongoing_requests: int = 32
    max_queued_requests: int = 256
    request_timeout_s: float = 60.0
    build_timeout_s: float = 300.0
    build_memory_bytes: int = 4 << 30
    warm: tuple[str, ...] = ()
    gateway: GatewaySpec = GatewaySpec()
    executors: tuple[tuple[str, ExecutorSpec], ...] = ()

    @property
    def gateways(self) -> int:
        """Replicas of the HTTP deployment."""
        return self.gateway.replicas or self.replicas

    def names_executor(self, wanted: Target) -> bool:
        """Whether the config says something of a target's executors."""
        return bool({name for name, _ in self.executors} & {wanted.kind, wanted.name})

    def placement(self, wanted: Target) -> Placement:
        """How a target's replicas are placed: by its own entry, then its kind's, then so.

        A replica claims no logical CPUs: builds are Ray tasks of one CPU each and must find room.
        One for a CUDA target claims a device.
        """
        most = self.max_slot_bytes
        if not (wanted.can.gpus or self.names_executor(wanted)):
            most = self.gateway.max_slot_bytes or most
        found = Placement(0.0, float(wanted.can.gpus), (), self.replicas, max_slot_bytes=most)
        for name in (wanted.kind, wanted.name):
            found = found.changed(dict(self.executors).get(name, ExecutorSpec()))
        return found
