"""From a BuildSpec to verified local files: memory, disk, store, and then whatever `on_miss` does.

The miss handler is injected: a lazy server hands in one that has the variant compiled somewhere,
an aot server one that raises. Nothing here compiles.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from rlx_ray.errors import StoreError, VariantMissing
from rlx_ray.spec import BuildSpec
from rlx_ray.store import Miss, TieredStore
from rlx_ray.store.tiered import Fetched

OnMiss = Callable[[BuildSpec, str], None]
"""Called with the spec and the reason of the miss; returns once the store has the artifact."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A whole artifact on local disk, and where it came from: `disk`, `store` or `compiled`."""

    fetched: Fetched
    tier: str


def refuse(spec: BuildSpec, reason: str) -> None:
    """The miss handler of aot mode.

    Raises:
        VariantMissing: always.
    """
    variant = spec.component.variant
    raise VariantMissing(
        f"variant {variant} of {spec.model!r} for {spec.target.name} (key "
        f"{spec.component.cache_key_hex}) is not in the store: {reason}",
        f"Prebuild it: rlx-ray prebuild CONFIG --model {spec.model} --variant {variant}",
    )


class Resolver:
    """Finds artifacts for one process; threads that want the same one wait for one search.

    Args:
        store: disk cache over the store.
        on_miss: what to do when the store has nothing usable.
    """

    def __init__(self, store: TieredStore, on_miss: OnMiss) -> None:
        self.store = store
        self._on_miss = on_miss
        self._lock = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}

    def resolve(self, spec: BuildSpec) -> Resolved:
        """The artifact of a spec as verified local files.

        Raises:
            VariantMissing: aot mode and the store has none.
            StoreError: the store has none even after `on_miss` said that it made one.
            CompileError: `on_miss` compiled and failed.
        """
        with self._lock:
            gate = self._busy.setdefault(spec.digest, threading.Lock())
        with gate:
            found = self.store.fetch(spec)
            if not isinstance(found, Miss):
                return Resolved(found, found.tier)
            self._on_miss(spec, found.reason)
            made = self.store.fetch(spec)
            if isinstance(made, Miss):
                raise StoreError(
                    f"variant {spec.component.variant} of {spec.model!r} was built, yet the store "
                    f"does not have it: {made.reason}",
                    "Check that builders and this process use the same store.",
                )
            return Resolved(made, "compiled")
