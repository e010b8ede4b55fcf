"""Values that cross the processes of an application."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from ray.serve.handle import DeploymentHandle

from rlx_ray.engine.sampling import Chosen

Handle: TypeAlias = DeploymentHandle[Any]
"""A Serve handle; it is generic over the deployment's class, which Serve wraps."""


@dataclass(frozen=True, slots=True)
class Route:
    """One variant of one model for one target, as a caller names it.

    Attributes:
        model: the model's name.
        variant: the variant text.
        cache_key: 16 hex digits.
        digest: the artifact digest; an executor whose own differs refuses.
        weights: the weights digest; the same.
        packed: whether it runs on the real token rows alone.
    """

    model: str
    variant: str
    cache_key: str
    digest: str
    weights: str
    packed: bool = True

    @property
    def route_id(self) -> str:
        """What Ray routes on: `<model>.<cache_key>`."""
        return f"{self.model}.{self.cache_key}"

    @property
    def slot_id(self) -> str:
        """Which slot runs it, as replicas report it: `<model>.<digest>.<weights>`."""
        return f"{self.model}.{self.digest}.{self.weights}"


@dataclass(frozen=True, slots=True)
class CallResult:
    """Output arrays by name, and the tier that the variant came from."""

    outputs: Mapping[str, np.ndarray]
    tier: str


@dataclass(frozen=True, slots=True)
class Held:
    """What a replica holds, as it says itself.

    Attributes:
        slots: the state of each variant's slot by its id, `Route.slot_id`.
        engines: by model the state of its text engine and the bytes of its key-value cache.
    """

    slots: Mapping[str, str]
    engines: Mapping[str, tuple[str, int]]


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Some tokens of a stream as one.

    Attributes:
        text: what they added.
        finish: why the stream ended; empty while it goes on.
        chosen: their tokens.
        used: routes and tiers of variants that ran for the first time in this stream.
    """

    text: str
    finish: str
    chosen: tuple[Chosen, ...]
    used: tuple[tuple[Route, str], ...] = ()
