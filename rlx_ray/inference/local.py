"""A model in this process, no Ray: what `rlx-ray embed`, `generate` and `rlx_ray.load` run on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

from rlx_ray.checkpoint.tokenizer import Tokenizer
from rlx_ray.component import ModelPhase, ModelVariant
from rlx_ray.config.schema import Config, ModelSpec
from rlx_ray.errors import ConfigError, InputError, RlxError, UnknownModelError, nearest
from rlx_ray.inference.catalog import OpenModel, open_model
from rlx_ray.inference.embedding import OUTPUT, Embedded, ForwardPass, Ran, drive, merge, plan
from rlx_ray.inference.fallback import PASSED_ON
from rlx_ray.inference.loader import TargetLoader, tiered
from rlx_ray.inference.resolve import OnMiss
from rlx_ray.matrix.expand import BuildCell, expand
from rlx_ray.routing.buckets import ShapeBucket
from rlx_ray.runtime.executable import Executable
from rlx_ray.runtime.loaders import host_for
from rlx_ray.runtime.weights import Weights
from rlx_ray.spec import BuildSpec
from rlx_ray.store.tiered import Fetched
from rlx_ray.target import Target

_LOG = logging.getLogger(__name__)


class TargetVariants:
    """A model's variants for one target, in this process.

    Attributes:
        cells: the variants; at least one.
        loaded: the executables that were loaded, by artifact digest.
    """

    def __init__(self, cells: Sequence[BuildCell]) -> None:
        self.cells = tuple(cells)
        self.loaded: dict[str, Executable] = {}
        self._loader: TargetLoader | None = None

    @property
    def target(self) -> Target:
        """The target of all of them."""
        return self.cells[0].spec.target

    @property
    def buckets(self) -> tuple[ShapeBucket, ...]:
        """The encoder variants that texts can be routed to."""
        specs = {c.spec.component.variant: c.spec for c in reversed(self.cells)}
        return tuple(
            ShapeBucket(variant, specs[variant].packed_rows)
            for variant in dict.fromkeys(c.spec.component.variant for c in self.cells)
            if variant.phase is ModelPhase.ENCODER
        )

    def load(
        self, model: OpenModel, spec: BuildSpec, start: Callable[[], TargetLoader]
    ) -> tuple[Executable, str]:
        """A variant and its tier; `start` makes the lane's loader at its first use."""
        if spec.digest in self.loaded:
            return self.loaded[spec.digest], "memory"
        if self._loader is None:
            self._loader = start()
        self._loader.add_weights(model, [spec])
        found = self._loader.load(spec)
        self.loaded[spec.digest] = found.executable
        return found.executable, found.tier

    def weights(self, spec: BuildSpec) -> Weights:
        """The packed weights that a loaded variant reads."""
        assert self._loader is not None
        return self._loader.weights(spec)

    def close(self) -> None:
        """Stop the threads; nothing can run after it."""
        self.loaded.clear()
        if self._loader is not None:
            self._loader.close()
            self._loader = None


class LocalModel:
    """One model of a config, in this process; thread-safe.

    Its variants run on the best target that this host can run, or, where that target cannot have
    one, on the next: the same errors pass a request on as in the server (`fallback`). A target of
    which nothing could be loaded is not tried again.

    Args:
        config: the config.
        name: the model's name.
        threads: threads of the pool; 0 means the processors of this process.
        on_miss: called for a variant that the store lacks, unless its mode is aot.

    Raises:
        UnknownModelError: the config has no such model.
        ConfigError: the model has no target that this host can run.
        CheckpointError, StoreError: the checkpoint or the store cannot be used.

    Attributes:
        passed_over: why better targets are not used.
    """

    def __init__(self, config: Config, name: str, threads: int, on_miss: OnMiss) -> None:
        self.config = config
        self.model: OpenModel = open_model(find_model(config, name))
        self.lanes = [TargetVariants(cells) for cells in runnable_cells(config, self.model)]
        self.passed_over: list[str] = []
        self.store = tiered(config.store)
        self._threads = threads
        self._on_miss = on_miss
        self._lock = threading.Lock()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, read at first use.

        Raises:
            CheckpointError: the checkpoint has none.
        """
        return self.model.tokenizer()

    @property
    def cells(self) -> tuple[BuildCell, ...]:
        """The variants for the target that is used."""
        return self.lanes[0].cells

    @property
    def variants(self) -> tuple[ModelVariant, ...]:
        """The encoder variants that texts can be routed to."""
        return tuple(bucket.variant for bucket in self.buckets)

    @property
    def buckets(self) -> tuple[ShapeBucket, ...]:
        """The same, with what routing has to know of them."""
        return self.lanes[0].buckets

    def executable(self, variant: ModelVariant) -> tuple[Executable, str]:
        """A loaded variant and its tier; loads or compiles it at first use.

        Raises:
            InputError: the model's matrix has no such variant.
            VariantMissing: aot mode and the store has none.
            CompileError: it had to be compiled and that failed.
            DeviceError: the device does not take it, or has no room for it.
        """
        first: RlxError | None = None
        while True:
            lane = self.lanes[0]
            try:
                return self.load(lane, variant)
            except PASSED_ON as error:
                first = first or error
                if lane is self.lanes[0]:  # there is no other, or it is in use
                    raise first from None

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Embed texts, on the variants that pad least.

        Raises:
            InputError: no texts, or one longer than the largest variant.
            VariantMissing, CompileError: see `executable`.
        """
        if not texts:
            raise InputError("input is an empty list.", "Send at least one text.")
        encoded = self.tokenizer.encode_batch(texts)
        name, lanes = self.model.spec.name, list(self.lanes)
        index = [m.name for m in self.config.models].index(name)

        def run(call: ForwardPass) -> Ran:
            lane = lanes[call.lane]
            executable, tier = self.load(lane, call.batch.variant)
            return Ran(executable.run(call.inputs(encoded))[OUTPUT], tier)

        lengths = [len(one.ids) for one in encoded]
        calls = plan(lengths, [lane.buckets for lane in lanes], name, f"$.models[{index}]")
        return merge(encoded, drive(calls, run))

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
        return self.lanes[0].weights(spec), fetched.paths["pool"]

    def spec(self, variant: ModelVariant) -> BuildSpec:
        """The BuildSpec of a variant for the target that is used.

        Raises:
            InputError: the model's matrix has no such variant.
        """
        return pick(self.cells, self.model.spec.name, variant)

    def close(self) -> None:
        """Stop the threads; the model cannot be used after it."""
        for lane in self.lanes:
            lane.close()

    def load(self, lane: TargetVariants, variant: ModelVariant) -> tuple[Executable, str]:
        """A variant of one lane and its tier; a lane of which nothing can be loaded is given up.

        Raises:
            InputError: the lane has no such variant.
            RlxError: see `executable`.
        """
        spec = pick(lane.cells, self.model.spec.name, variant)
        with self._lock:
            try:
                return lane.load(self.model, spec, lambda: self._start(spec))
            except PASSED_ON as error:
                if lane in self.lanes[:-1] and not lane.loaded:
                    self._pass_over(lane, error)
                raise

    def _start(self, spec: BuildSpec) -> TargetLoader:
        return TargetLoader(self.store, spec.target, self._threads, self._on_miss)

    def _pass_over(self, lane: TargetVariants, error: RlxError) -> None:
        reason = f"{lane.target.name}: {error}"
        _LOG.warning("%s is passed over: %s", self.model.spec.name, reason)
        self.passed_over.append(reason)
        self.lanes.remove(lane)
        lane.close()


def pick(cells: Iterable[BuildCell], model: str, variant: ModelVariant | None) -> BuildSpec:
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


def runnable_cells(config: Config, model: OpenModel) -> tuple[tuple[BuildCell, ...], ...]:
    """The model's cells for each of its targets that this host can run, the best first.

    Raises:
        ConfigError: this host can run none of the model's targets.
    """
    cells = expand(model.spec, model.family, model.info, dict(config.toolchain))
    host = host_for(c.spec.target for c in cells)
    lanes = (
        tuple(c for c in cells if c.spec.target == target and not c.unsupported)
        for target in host.ladder()
    )
    found = tuple(lane for lane in lanes if lane)
    if found:
        return found
    refused = {c.spec.target.name: host.refusal(c.spec.target) or c.unsupported for c in cells}
    reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
    raise ConfigError(
        f"model {model.spec.name!r} has no target that this host can run: {reasons}.",
        "Add 'host' to its targets.",
    )
