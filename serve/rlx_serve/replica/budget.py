"""What a replica's memory must hold, from the config alone: refused at start if it cannot."""

from __future__ import annotations

from dataclasses import dataclass

from rlx_ray.component import CompilationMode
from rlx_ray.config.schema import Config
from rlx_ray.errors import ConfigError
from rlx_ray.inference.text_engine import PHASES
from rlx_ray.target import Target
from rlx_ray.weights.packing import packed_bytes
from rlx_serve.table import Table


@dataclass(frozen=True, slots=True)
class Need:
    """What a model takes of a replica beside its variants' code and arenas, in bytes."""

    name: str
    weights: int
    cache: int
    eager: bool

    def __str__(self) -> str:
        cache = f" and {self.cache} of key-value cache" if self.cache else ""
        return f"{self.name!r} takes {self.weights} of weights{cache}"


def needs(config: Config, table: Table, target: Target) -> tuple[Need, ...]:
    """What each model takes that has variants for a target, in the table's order.

    A cache is counted as large as it may be: whole pages within `serve.kv_cache_bytes`.
    """
    found = []
    for name, model in table.models.items():
        rows = [row for row in table.select(target) if row.route.model == name]
        if rows:
            packed = {row.spec.weights_family: row.spec for row in rows}
            generates = any(row.variant.phase in PHASES for row in rows)
            found.append(
                Need(
                    name,
                    sum(packed_bytes(spec, model.info.params) for spec in packed.values()),
                    config.serve.kv_cache_bytes if generates else 0,
                    any(row.mode is CompilationMode.EAGER for row in rows),
                )
            )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a replica may hold, in bytes; `given` by the config, else what its host has for it."""

    nbytes: int
    given: bool = True

    def __str__(self) -> str:
        if self.given:
            return f"$.serve.max_slot_bytes is {self.nbytes}"
        return f"$.serve.max_slot_bytes is not given and the host has {self.nbytes} for it"


def budget_of(config: Config, target: Target) -> Budget | None:
    """What the config lets a replica for a target hold; None if that is for its host to say."""
    most = config.serve.placement(target).max_slot_bytes
    return None if most is None else Budget(most)


def check_budget(
    config: Config, table: Table, target: Target, budget: Budget | None, code: int = 0
) -> None:
    """Check that a target's replica has room for what it never gives back, and a model beside it.

    Eager variants are held for good, with their models' weights and caches. The other models can
    take turns, so each of them must fit beside these.

    Args:
        config: the whole config.
        table: its models and variants.
        target: what the replica runs.
        budget: what it may hold; None where only its host can say.
        code: bytes of code and arenas of its eager variants, as soon as they are known.

    Raises:
        ConfigError: too many variants are eager, or too few bytes are allowed.
    """
    limits = config.serve
    eager = sum(row.mode is CompilationMode.EAGER for row in table.select(target))
    if eager > limits.max_slots:
        raise ConfigError(
            f"$.serve.max_slots is {limits.max_slots}, but {eager} variants for "
            f"{target.name} have mode eager.",
            f"Set serve.max_slots to at least {eager}, or give some rows mode lazy.",
        )
    found = needs(config, table, target)
    fixed = [need for need in found if need.eager]
    others = [need for need in found if not need.eager]
    largest = sorted(others, key=lambda need: need.weights + need.cache)[-1:]
    at_once = [*fixed, *largest]
    total = code + sum(need.weights + need.cache for need in at_once)
    if budget is not None and total > budget.nbytes:
        said = [str(need) for need in at_once]
        said += [f"code and arenas of eager variants take {code}"] if code else []
        ways = [f"Raise it to at least {total}" if budget.given else "Take a larger host"]
        ways += ["lower serve.kv_cache_bytes"] if any(need.cache for need in at_once) else []
        ways += ["give eager rows mode lazy"] if fixed else []
        raise ConfigError(
            f"{budget}, but a replica for {target.name} holds {total} bytes at once: "
            f"{'; '.join(said)}.",
            f"{', or '.join(ways)}.",
        )
