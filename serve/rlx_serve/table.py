"""What a config's models look like to a server: one row for each variant and target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rlx_ray.component import CompilationMode, ModelPhase, ModelVariant
from rlx_ray.config.schema import Config
from rlx_ray.errors import ConfigError, nearest
from rlx_ray.inference.catalog import OpenModel, open_model
from rlx_ray.inference.text_engine import PHASES
from rlx_ray.matrix.expand import expand
from rlx_ray.spec import BuildSpec
from rlx_ray.target import Target
from rlx_serve.deployed import Deployed, check, decide
from rlx_serve.wire import Route


@dataclass(frozen=True, slots=True)
class ServedVariant:
    """One variant of one model for one target; `unsupported` says why it cannot be built."""

    route: Route
    spec: BuildSpec
    unsupported: str

    @property
    def variant(self) -> ModelVariant:
        """The variant."""
        return self.spec.component.variant

    @property
    def mode(self) -> CompilationMode:
        """When it is compiled."""
        return self.spec.component.mode


@dataclass(frozen=True, slots=True)
class Table:
    """All models of a config with their rows, in the config's order.

    `deployed` says by model's name what is served of it.
    """

    models: Mapping[str, OpenModel]
    deployed: Mapping[str, Deployed]
    rows: tuple[ServedVariant, ...]

    def targets(self, model: str) -> tuple[Target, ...]:
        """The targets of a model, in serving order."""
        listed = self.models[model].spec.targets
        found = {row.spec.target: None for row in self.rows if row.route.model == model}
        return tuple(t for t in listed if t in found) + tuple(t for t in found if t not in listed)

    def routes(self, model: str, target: Target) -> dict[ModelVariant, Route]:
        """The encoder variants of a model for a target that texts can be routed to.

        Where two rows make one variant (another profile, say), the first is taken.
        """
        found: dict[ModelVariant, Route] = {}
        for row in self.select(target):
            if row.route.model == model and row.variant.phase is ModelPhase.ENCODER:
                found.setdefault(row.variant, row.route)
        return found

    def select(self, target: Target) -> tuple[ServedVariant, ...]:
        """The rows for a target that can be built."""
        return tuple(r for r in self.rows if r.spec.target == target and not r.unsupported)

    def generates(self, model: str) -> bool:
        """Whether a model is a language model."""
        return any(r.variant.phase in PHASES for r in self.rows if r.route.model == model)

    @property
    def all_targets(self) -> tuple[Target, ...]:
        """The targets that an executor is needed for, in order of first use."""
        found: dict[Target, None] = {}
        for model in self.models:
            found.update(dict.fromkeys(t for t in self.targets(model) if self.select(t)))
        return tuple(found)


def open_table(config: Config, deployed: Mapping[str, Deployed] | None = None) -> Table:
    """Open every model of a config and expand its matrix. No tensor's weights are packed here.

    Args:
        config: the whole config.
        deployed: what is served of each model, by its name; None decides it, by what the
            checkpoints hold now.

    Raises:
        ConfigError: the config has no models, a matrix that is invalid, or names something as
            warm that is not there.
        CheckpointError: a checkpoint is missing or damaged, or its config or tokenizer has changed
            since it was deployed.
    """
    if not config.models:
        raise ConfigError("$.models is empty.", "Name at least one model to serve.")
    models = {spec.name: open_model(spec) for spec in config.models}
    if deployed is None:
        deployed = decide(models, config.store)
    for name, model in models.items():
        check(name, model, deployed[name])
    rows: list[ServedVariant] = []
    for name, model in models.items():
        cells = expand(model.spec, model.family, model.info, dict(config.toolchain))
        for cell in cells:
            component = cell.spec.component
            route = Route(
                name,
                str(component.variant),
                component.cache_key_hex,
                cell.spec.digest,
                deployed[name].weights,
                cell.spec.packed_rows,
            )
            rows.append(ServedVariant(route, cell.spec, cell.unsupported))
    _check_warm(config.serve.warm, rows)
    return Table(models, deployed, tuple(rows))


def names_of(route: Route) -> frozenset[str]:
    """What a hot set may name a variant by: `MODEL`, or `MODEL/VARIANT`."""
    return frozenset((route.model, f"{route.model}/{route.variant}"))


def _check_warm(warm: Iterable[str], rows: Iterable[ServedVariant]) -> None:
    known = sorted({name for row in rows for name in names_of(row.route)})
    for place, name in enumerate(warm):
        if name not in known:
            raise ConfigError(
                f"$.serve.warm[{place}] is {name!r}, which is no model or variant here.",
                nearest(name, known) or "Name a model, or MODEL/VARIANT as `rlx-ray plan` has it.",
            )
