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
class ServeSpec:
    """How the HTTP endpoint runs. Sizes are in bytes, times in seconds.

    `max_slot_bytes` is what a replica may hold: weights, code, arenas and key-value caches, each of
    which has up to `kv_cache_bytes`. None: a share of the memory that there is.
    A build may take `build_timeout_s` of wall time, and `build_memory_bytes` resident: its process
    and the compilers that it starts, together.
    `executors` holds what is said of executors by target name or kind (`cpu`, `cuda`).
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
    executors: tuple[tuple[str, ExecutorSpec], ...] = ()

    def placement(self, wanted: Target) -> Placement:
        """How a target's replicas are placed: by its own entry, then its kind's, then so.

        A replica claims no logical CPUs: builds are Ray tasks of one CPU each and must find room.
        One for a CUDA target claims a device.
        """
        found = Placement(
            0.0, float(wanted.can.gpus), (), self.replicas, max_slot_bytes=self.max_slot_bytes
        )
        for name in (wanted.kind, wanted.name):
            found = found.changed(dict(self.executors).get(name, ExecutorSpec()))
        return found
