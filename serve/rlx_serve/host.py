"""What one replica process holds: the store, weights, and what loads a variant for its target.

No Ray here: a miss is handed to whoever was given for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rlx_ray.catalog import OpenModel, load_weights
from rlx_ray.component import CompilationMode
from rlx_ray.config.spec import Config
from rlx_ray.errors import ArtifactError, ConfigError
from rlx_ray.resolve import OnMiss, Resolver, refuse
from rlx_ray.runtime.executable import Executable
from rlx_ray.runtime.load import host_for, loader_for
from rlx_ray.runtime.weights import Weights
from rlx_ray.spec import BuildSpec
from rlx_ray.store import HostCache, TieredStore, open_store
from rlx_ray.target import Target


@dataclass(frozen=True, slots=True)
class Loaded:
    """A variant that is ready to run.

    Attributes:
        executable: runs it.
        digest: of the artifact that was loaded.
        weights: the weights digest of what it multiplies by.
        tier: `disk`, `store` or `compiled`.
        nbytes: bytes of its blobs and of one arena.
    """

    executable: Executable
    digest: str
    weights: str
    tier: str
    nbytes: int


class Host:
    """One process that runs variants for one target; its methods block and are thread-safe.

    Args:
        config: the whole config.
        wanted: the target.
        on_miss: called for a variant that the store lacks, unless its mode is aot.

    Raises:
        ConfigError: this host cannot run the target.
        DeviceError: its device does not start.
        StoreError: the cache folder cannot be used.
    """

    def __init__(self, config: Config, wanted: Target, on_miss: OnMiss) -> None:
        refusal = host_for((wanted,)).refusal(wanted)
        if refusal:
            raise ConfigError(
                f"target {wanted.name!r} cannot run here: {refusal}.",
                "Place its executor on other nodes, or take it out of the config's targets.",
            )
        store = open_store(config.store.url, config.store.storage_options)
        self.store = TieredStore(store, HostCache(Path(config.store.cache_dir)))
        self.target = wanted
        self._loader = loader_for(wanted, config.serve.threads)
        self._build = Resolver(self.store, on_miss)
        self._refuse = Resolver(self.store, refuse)
        self._weights: dict[tuple[str, str], Weights] = {}

    def add_weights(self, model: OpenModel, specs: Iterable[BuildSpec], wanted: str) -> int:
        """Map a model's packed weights, packing them first if nobody has; their bytes.

        Args:
            model: whose they are.
            specs: of the variants that will be loaded.
            wanted: the weights digest that was deployed.

        Raises:
            StoreError: the store cannot be reached or written.
            CheckpointError: a tensor cannot be read, or the store lacks what was deployed and the
                checkpoint holds something else now.
        """
        total = 0
        for spec in {spec.weights_family: spec for spec in specs}.values():
            weights = load_weights(self.store, model, spec, wanted)
            self._weights[spec.model, spec.weights_family] = weights
            total += weights.nbytes
        return total

    def load(self, spec: BuildSpec) -> Loaded:
        """Load a variant from disk or store; what a miss does depends on the variant's mode.

        Raises:
            VariantMissing: aot mode and the store has none.
            CompileError: it had to be compiled and that failed.
            StoreError, ArtifactError: what was found cannot be used.
            DeviceError: the device does not take it; DeviceMemoryError: it has no room.
        """
        aot = spec.component.mode is CompilationMode.AOT
        resolved = (self._refuse if aot else self._build).resolve(spec)
        manifest, paths = resolved.fetched.manifest, resolved.fetched.paths
        if manifest.spec.digest != spec.digest:
            raise ArtifactError(f"artifact {manifest.spec.digest} was loaded for {spec.digest}.")
        weights = self._weights[spec.model, spec.weights_family]
        executable = self._loader.load(manifest.binding, paths, weights)
        size = manifest.blob("code").size + executable.arena_bytes
        return Loaded(
            executable, manifest.spec.digest, weights.manifest.source, resolved.tier, size
        )

    def room(self, share: float) -> int:
        """How much memory there is for weights, variants and caches; see `Loader.room`."""
        return self._loader.room(share)

    def close(self) -> None:
        """Stop the threads; nothing can run after it."""
        self._loader.close()
