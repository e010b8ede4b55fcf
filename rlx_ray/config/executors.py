"""The sections `serve.gateway` and `serve.executors` of a config: where replicas run."""

from __future__ import annotations

from rlx_ray.config.reader import ConfigNode
from rlx_ray.config.serve import ExecutorSpec, GatewaySpec, ServeSpec
from rlx_ray.errors import ConfigError
from rlx_ray.target import TARGETS

_KINDS = tuple(dict.fromkeys(t.kind for t in TARGETS))
_ON_GPUS = {name for t in TARGETS if t.can.gpus for name in (t.kind, t.name)}
_FIELDS = ("num_cpus", "num_gpus", "label_selector", "replicas", "max_replicas", "max_slot_bytes")
_MOST_REPLICAS = 100_000
_MOST_RESOURCES = 1024


def read_executors(node: ConfigNode) -> tuple[tuple[str, ExecutorSpec], ...]:
    """The entries, sorted; each is named by a target or by a kind, which all its targets share.

    Raises:
        ConfigError: a name or field that is not known, or a value that is invalid.
    """
    nodes = node.section((*_KINDS, *(t.name for t in TARGETS)))
    return tuple((name, _executor(name, nodes[name])) for name in sorted(nodes))


def _executor(name: str, node: ConfigNode) -> ExecutorSpec:
    nodes = node.section(_FIELDS)
    if "num_gpus" in nodes and name not in _ON_GPUS:
        raise ConfigError(
            f"{nodes['num_gpus'].path} is for executors that use no GPU.",
            "Drop it, or name 'cuda' or a CUDA target.",
        )
    return ExecutorSpec(
        num_cpus=_cpus(nodes["num_cpus"]) if "num_cpus" in nodes else None,
        num_gpus=_gpus(nodes["num_gpus"]) if "num_gpus" in nodes else None,
        label_selector=_labels(nodes["label_selector"]) if "label_selector" in nodes else None,
        replicas=_replicas(nodes["replicas"]) if "replicas" in nodes else None,
        max_replicas=_replicas(nodes["max_replicas"]) if "max_replicas" in nodes else None,
        max_slot_bytes=slot_bytes(nodes["max_slot_bytes"]) if "max_slot_bytes" in nodes else None,
    )


def read_gateway(node: ConfigNode) -> GatewaySpec:
    """The HTTP deployment.

    Raises:
        ConfigError: a field that is not known, or a value that is invalid.
    """
    nodes = node.section(("replicas", "num_cpus", "label_selector", "max_slot_bytes"))
    return GatewaySpec(
        replicas=_replicas(nodes["replicas"]) if "replicas" in nodes else None,
        num_cpus=_cpus(nodes["num_cpus"]) if "num_cpus" in nodes else 0.0,
        label_selector=_labels(nodes["label_selector"]) if "label_selector" in nodes else (),
        max_slot_bytes=slot_bytes(nodes["max_slot_bytes"]) if "max_slot_bytes" in nodes else None,
    )


def check_executors(serve: ServeSpec) -> None:
    """Check that no target has fewer replicas at most than it has at least.

    Raises:
        ConfigError: one has.
    """
    for one in TARGETS:
        found = serve.placement(one)
        if found.max_replicas is not None and found.max_replicas < found.replicas:
            raise ConfigError(
                f"$.serve.executors: {one.name} has max_replicas {found.max_replicas}, fewer than "
                f"its {found.replicas} replicas.",
                "Raise max_replicas, or lower replicas there or in $.serve.",
            )


def slot_bytes(node: ConfigNode) -> int:
    """The bytes that a replica may hold."""
    return node.whole(1, 1 << 40)


def _replicas(node: ConfigNode) -> int:
    return node.whole(1, _MOST_REPLICAS)


def _cpus(node: ConfigNode) -> float:
    zero = node.value == 0 and not isinstance(node.value, bool)
    return 0.0 if zero else node.number(0, _MOST_RESOURCES)


def _gpus(node: ConfigNode) -> float:
    """Ray shares one device, and gives several of them whole."""
    amount = node.number(0, _MOST_RESOURCES)
    if amount > 1 and not amount.is_integer():
        raise node.wrong("a share below 1, or a whole number")
    return amount


def _labels(node: ConfigNode) -> tuple[tuple[str, str], ...]:
    """Labels with what they must be: a value, or `!value`, `in(a, b)`, `!in(a, b)`."""
    return tuple(sorted((key, child.text()) for key, child in node.mapping().items()))
