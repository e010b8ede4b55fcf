"""What one process runs variants of one target with: store, weights, executables.

What compiles a miss is handed in as a function, so that nothing here knows a compiler.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rlx_ray.component import CompilationMode
from rlx_ray.config.schema import StoreSpec
from rlx_ray.errors import ArtifactError, ConfigError
from rlx_ray.inference.catalog import OpenModel, load_weights
from rlx_ray.inference.resolve import OnMiss, Resolver, refuse
from rlx_ray.runtime.executable import Executable
from rlx_ray.runtime.loaders import host_for, loader_for
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
        nbytes: bytes of its code and of one arena.
    """

    executable: Executable
    digest: str
    weights: str
    tier: str
    nbytes: int


def tiered(store: StoreSpec) -> TieredStore:
    """A config's store, with this host's cache before it.

    Raises:
        StoreError: the cache folder cannot be used.
        ConfigError: no such protocol, or its package is not installed.
    """
    opened = open_store(store.url, store.storage_options)
    return TieredStore(opened, HostCache(Path(store.cache_dir)))


class TargetLoader:
    """Loads the variants of one target in this process; its methods block and are thread-safe.

    Args:
        store: where artifacts and packed weights are.
        wanted: the target.
        threads: of the pool of a CPU target; 0 means the processors of this process.
        on_miss: called for a variant that the store lacks, unless its mode is aot.

    Raises:
        ConfigError: this host cannot run the target.
        DeviceError: its device does not start.
    """

    def __init__(self, store: TieredStore, wanted: Target, threads: int, on_miss: OnMiss) -> None:
        refusal = host_for((wanted,)).refusal(wanted)
        if refusal:
            raise ConfigError(
                f"target {wanted.name!r} cannot run here: {refusal}.",
                "Place its executor on other nodes, or take it out of the config's targets.",
            )
        self.store = store
        self.target = wanted
        self._loader = loader_for(wanted, threads)
        self._build = Resolver(store, on_miss)
        self._refuse = Resolver(store, refuse)
        self._weights: dict[tuple[str, str], Weights] = {}

    def add_weights(
        self, model: OpenModel, specs: Iterable[BuildSpec], wanted: str | None = None
    ) -> int:
        """Map a model's packed weights, packing them first if nobody has; the bytes of new ones.

        Args:
            model: whose they are.
            specs: of the variants that will be loaded.
            wanted: the weights digest that it must be; None for that of the checkpoint as it is.

        Raises:
            StoreError: the store cannot be reached or written.
            CheckpointError: a tensor cannot be read, or the store lacks what is wanted and the
                checkpoint holds something else now.
        """
        total = 0
        for spec in {spec.weights_family: spec for spec in specs}.values():
            if (spec.model, spec.weights_family) not in self._weights:
                weights = load_weights(self.store, model, spec, wanted)
                self._weights[spec.model, spec.weights_family] = weights
                total += weights.nbytes
        return total

    def weights(self, spec: BuildSpec) -> Weights:
        """The packed weights that a variant reads; they have been added."""
        return self._weights[spec.model, spec.weights_family]

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
        weights = self.weights(spec)
        executable = self._loader.load(manifest.binding, paths, weights)
        size = manifest.blob("code").size + executable.arena_bytes
        source = weights.manifest.source
        return Loaded(executable, manifest.spec.digest, source, resolved.tier, size)

    def room(self, share: float) -> int:
        """How much memory there is for weights, variants and caches; see `Loader.room`."""
        return self._loader.room(share)

    def close(self) -> None:
        """Stop the threads; nothing can run after it."""
        self._loader.close()
