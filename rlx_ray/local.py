"""A model in this process, no Ray: what `rlx-ray embed` and `rlx_ray.load` run on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rlx_ray.catalog import OpenModel, load_weights, open_model
from rlx_ray.checkpoint.tokenizer import Tokenizer
from rlx_ray.component import CompilationMode, ModelPhase, ModelVariant
from rlx_ray.config.load import load as load_config
from rlx_ray.config.spec import Config, ModelSpec
from rlx_ray.errors import (
    ArtifactError,
    ConfigError,
    DeviceError,
    InputError,
    RlxError,
    UnknownModelError,
    VariantMissing,
    nearest,
)
from rlx_ray.job.build import Limits, build
from rlx_ray.job.matrix import Cell, expand
from rlx_ray.resolve import Resolver, refuse
from rlx_ray.routing.ladder import Rung, bucket, pad_waste
from rlx_ray.runtime.executable import Executable, pad_tokens
from rlx_ray.runtime.load import Loader, host_for, loader_for
from rlx_ray.runtime.weights import Weights
from rlx_ray.spec import BuildSpec
from rlx_ray.store import HostCache, TieredStore, open_store
from rlx_ray.store.tiered import Fetched

_LOG = logging.getLogger(__name__)

_PASSED_OVER = (ArtifactError, DeviceError, VariantMissing)
"""Errors of one target; the next one's artifact may load."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of some texts, and how they came to be.

    Attributes:
        vectors: float32 [texts, hidden].
        tokens: tokens of each text, special ones included.
        truncated: how many texts were cut to the model's limit.
        calls: the variants that ran, in order of use.
        tiers: for each call where its artifact came from: memory, disk, store or compiled.
        pad_waste: padded rows over all rows.
    """

    vectors: np.ndarray
    tokens: tuple[int, ...]
    truncated: int
    calls: tuple[ModelVariant, ...]
    tiers: tuple[str, ...]
    pad_waste: float


class LocalModel:
    """One model of a config, in this process; thread-safe.

    In lazy and eager mode a missing variant is compiled in a child process and published; in aot
    mode it is an error that names the prebuild command. All its variants are for one target: the
    best that this host can run, or, where its first variant does not load, the next one.

    Args:
        config: the config.
        name: the model's name.
        threads: threads of the pool; 0 means the processors of this process.

    Raises:
        UnknownModelError: the config has no such model.
        ConfigError: the model has no target that this host can run.
        CheckpointError, StoreError: the checkpoint or the store cannot be used.

    Attributes:
        cells: its variants for the target.
        passed_over: why better targets' artifacts are not used.
    """

    def __init__(self, config: Config, name: str, threads: int = 0) -> None:
        self.config = config
        self.model: OpenModel = open_model(find_model(config, name))
        self.cells, *self._others = runnable_cells(config, self.model)
        self.passed_over: list[str] = []
        store = open_store(config.store.url, config.store.storage_options)
        self.store = TieredStore(store, HostCache(Path(config.store.cache_dir)))
        self._threads = threads
        self._loader: Loader | None = None
        self._weights: dict[str, Weights] = {}
        self._loaded: dict[str, Executable] = {}
        self._lock = threading.Lock()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, read at first use.

        Raises:
            CheckpointError: the checkpoint has none.
        """
        return self.model.tokenizer()

    @property
    def variants(self) -> tuple[ModelVariant, ...]:
        """The encoder variants that texts can be routed to."""
        return tuple(
            v for c in self.cells if (v := c.spec.component.variant).phase is ModelPhase.ENCODER
        )

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The same, with what routing has to know of them."""
        return tuple(Rung(v, self.spec(v).packed_rows) for v in dict.fromkeys(self.variants))

    def executable(self, variant: ModelVariant) -> tuple[Executable, str]:
        """A loaded variant and its tier; loads or compiles it at first use.

        Raises:
            VariantMissing: aot mode and the store has none.
            CompileError: it had to be compiled and that failed.
            DeviceError: the device does not take it, or has no room for it.
        """
        with self._lock:
            while True:
                try:
                    return self._executable(self.spec(variant))
                except _PASSED_OVER as error:
                    if self._loaded or not self._others:
                        raise
                    self._pass_over(error)

    def _executable(self, spec: BuildSpec) -> tuple[Executable, str]:
        if spec.digest in self._loaded:
            return self._loaded[spec.digest], "memory"
        aot = spec.component.mode is CompilationMode.AOT
        resolver = Resolver(self.store, refuse if aot else self._compile)
        resolved = resolver.resolve(spec)
        if self._loader is None:
            self._loader = loader_for(spec.target, self._threads)
        kind = spec.weights_family
        if kind not in self._weights:
            self._weights[kind] = load_weights(self.store, self.model, spec)
        fetched = resolved.fetched
        executable = self._loader.load(fetched.manifest.binding, fetched.paths, self._weights[kind])
        self._loaded[spec.digest] = executable
        return executable, resolved.tier

    def _pass_over(self, error: RlxError) -> None:
        """Take the next target, since the artifact of this one does not load."""
        reason = f"{self.cells[0].spec.target.name}: {error}"
        _LOG.warning("%s is passed over: %s", self.model.spec.name, reason)
        self.passed_over.append(reason)
        self.cells, *self._others = self._others
        self.close()
        self._loader = None

    def parts(self, variant: ModelVariant) -> tuple[Weights, Path]:
        """The packed weights and the thread pool's library, as a loaded variant has them.

        Raises:
            ConfigError: the variant is for a GPU, where no thread pool is.
        """
        self.executable(variant)
        spec = self.spec(variant)
        if spec.target.can.gpus:
            raise ConfigError(
                f"variant {variant} is for {spec.target.name}, this is about CPU targets.",
                "Give the model a CPU target.",
            )
        fetched = self.store.fetch(spec)
        assert isinstance(fetched, Fetched)
        return self._weights[spec.weights_family], fetched.paths["pool"]

    def spec(self, variant: ModelVariant) -> BuildSpec:
        """The BuildSpec of a variant for this host.

        Raises:
            InputError: the model's matrix has no such variant.
        """
        return pick(self.cells, self.model.spec.name, variant)

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Embed texts, on the variants that pad least.

        Raises:
            InputError: no texts, or one longer than the largest variant.
            VariantMissing, CompileError: see `executable`.
        """
        if not texts:
            raise InputError("input is an empty list.", "Send at least one text.")
        encoded = self.tokenizer.encode_batch(texts)
        lengths = [len(e.ids) for e in encoded]
        name = self.model.spec.name
        index = [m.name for m in self.config.models].index(name)
        batches = bucket(lengths, self.rungs, name, f"$.models[{index}]")
        vectors: np.ndarray | None = None
        tiers = []
        for batch in batches:
            executable, tier = self.executable(batch.variant)
            tiers.append(tier)
            tokens = [(encoded[i].ids, encoded[i].type_ids) for i in batch.items]
            rows = executable.run(pad_tokens(batch.variant, tokens))["embedding"]
            if vectors is None:
                vectors = np.empty((len(texts), rows.shape[1]), np.float32)
            vectors[list(batch.items)] = rows[: len(batch.items)]
        assert vectors is not None
        return Embedded(
            vectors,
            tuple(lengths),
            sum(e.truncated for e in encoded),
            tuple(b.variant for b in batches),
            tuple(tiers),
            pad_waste(batches, lengths),
        )

    def close(self) -> None:
        """Stop the threads; the model cannot be used after it."""
        if self._loader is not None:
            self._loader.close()

    def _compile(self, spec: BuildSpec, reason: str) -> None:
        serve = self.config.serve
        limits = Limits(serve.build_timeout_s, serve.build_memory_bytes)
        self.store.store.put(build(spec, limits))


def pick(cells: Iterable[Cell], model: str, variant: ModelVariant | None) -> BuildSpec:
    """The spec of a variant among a model's cells; of the first one if None.

    Raises:
        InputError: the matrix has no such variant.
    """
    known = list(cells)
    for cell in known:
        if variant in (None, cell.spec.component.variant):
            return cell.spec
    names = [str(c.spec.component.variant) for c in known]
    raise InputError(
        f"variant {str(variant)!r} is not in the matrix of {model!r}.",
        nearest(str(variant), names) or f"It has {', '.join(names[:8])} ...",
    )


def find_model(config: Config, name: str) -> ModelSpec:
    """The model of a config with a name.

    Raises:
        UnknownModelError: it has none.
    """
    for model in config.models:
        if model.name == name:
            return model
    names = [m.name for m in config.models]
    raise UnknownModelError(
        f"model {name!r} is not in {config.path}.", nearest(name, names) or f"It has {names}."
    )


def runnable_cells(config: Config, model: OpenModel) -> tuple[tuple[Cell, ...], ...]:
    """The model's cells for each of its targets that this host can run, the best first.

    Raises:
        ConfigError: this host can run none of the model's targets.
    """
    cells = expand(model.spec, model.family, model.facts, dict(config.toolchain))
    host = host_for(c.spec.target for c in cells)
    rungs = (
        tuple(c for c in cells if c.spec.target == rung and not c.unsupported)
        for rung in host.ladder()
    )
    found = tuple(rung for rung in rungs if rung)
    if found:
        return found
    refused = {c.spec.target.name: host.refusal(c.spec.target) or c.unsupported for c in cells}
    reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
    raise ConfigError(
        f"model {model.spec.name!r} has no target that this host can run: {reasons}.",
        "Add 'host' to its targets.",
    )


def load(config: str | Path | Config, model: str, threads: int = 0) -> LocalModel:
    """Open a model of a config in this process.

    Args:
        config: a path, or a config already read.
        model: the model's name.
        threads: threads of the pool; 0 means the processors of this process.

    Raises:
        RlxError: as `rlx_ray.config.load` and `LocalModel` do.
    """
    found = config if isinstance(config, Config) else load_config(config)
    return LocalModel(found, model, threads)
