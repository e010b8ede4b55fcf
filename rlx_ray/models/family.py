"""What a model family tells about a checkpoint, and where families are found.

A family from another distribution registers in the entry-point group `rlx_ray.models`, under its
name, a `Family` value.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from rlx_ray.component import LayerComposition, ModelPhase, QuantScheme
from rlx_ray.dtype import DType
from rlx_ray.errors import ConfigError, nearest
from rlx_ray.models.distribution import FAMILIES, entry_point, foreign, owner, source
from rlx_ray.spec import FamilySource, TensorSpec
from rlx_ray.weights.params import ParamSpec

_BUILT_IN = {
    "bert": "rlx_ray.models.bert:FAMILY",
    "llama": "rlx_ray.models.llama:FAMILY",
    "roberta": "rlx_ray.models.roberta:FAMILY",
}


class TensorInfo(Protocol):
    """What a family may know of a stored tensor."""

    @property
    def dtype(self) -> DType:
        """The stored type."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored shape."""
        ...

    @property
    def scheme(self) -> QuantScheme | None:
        """How its weights are packed; None for plain elements."""
        ...


Texts = Callable[[str], str | None]
"""A checkpoint's small text files by name relative to it; None for one that is not there."""

Tensors = Mapping[str, TensorInfo]
"""A checkpoint's tensors by name."""


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """How long a text may be, in tokens with the special ones.

    Attributes:
        max_tokens: what the checkpoint says that it is meant for; longer texts are truncated.
        max_positions: tokens that the position table has rows for: more is impossible.
    """

    max_tokens: int
    max_positions: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """All that the compiler and the server need to know of a checkpoint, but its bytes.

    Attributes:
        family: name of the family.
        family_source: where a family from outside this package comes from.
        config: canonical JSON text of the normalised model config.
        vocab: number of token ids.
        hidden: length of a token's vector.
        fingerprint: 64 hex digits over the needed tensors' names, dtypes and shapes.
        composition: the layers, as the cache key counts them.
        limits: on the length of texts.
        tensors: the checkpoint tensors that the model needs, sorted by name.
        params: the graph's parameters, in packing order.
        scheme: how most of the linear layers' weights are packed in the file; None for plain ones.
        stop_ids: tokens that end a generation.
        token_types: number of token types.
        window: tokens that a token attends to, of a sliding window; 0 for all.
    """

    family: str
    family_source: FamilySource | None
    config: str
    vocab: int
    hidden: int
    fingerprint: str
    composition: LayerComposition
    limits: TokenLimits
    tensors: tuple[TensorSpec, ...]
    params: tuple[ParamSpec, ...]
    scheme: QuantScheme | None = None
    stop_ids: tuple[int, ...] = ()
    token_types: int = 1
    window: int = 0


@dataclass(frozen=True, slots=True)
class Family:
    """A model family.

    Attributes:
        name: as a config spells it.
        read: makes a ModelInfo from a checkpoint's text files and tensors.
        phases: what its models can be compiled for.
        inputs: names of the graph's inputs, in call order.
        source: where it comes from, if not from this package; set by `family`.
    """

    name: str
    read: Callable[[Texts, Tensors], ModelInfo]
    phases: tuple[ModelPhase, ...]
    inputs: tuple[str, ...]
    source: FamilySource | None = None

    def info(self, texts: Texts, tensors: Tensors) -> ModelInfo:
        """What a checkpoint says of its model.

        Args:
            texts: such as the method `Checkpoint.text`.
            tensors: such as `Checkpoint.tensors`.

        Raises:
            CheckpointError: a file or tensor is missing or malformed.
            ConfigError: the model is a kind that the family does not know.
        """
        return replace(self.read(texts, tensors), family_source=self.source)


def family_names() -> tuple[str, ...]:
    """Names of all families that are installed, sorted; none is imported."""
    return tuple(sorted(_BUILT_IN.keys() | {point.name for point in foreign(FAMILIES)}))


def is_family(name: str) -> bool:
    """Whether a family is installed; looks at other distributions only where it has to."""
    return name in _BUILT_IN or name in family_names()


def family(name: str) -> Family:
    """The family with a name. A built-in one cannot be replaced by another distribution.

    Raises:
        ConfigError: no such family, or it cannot be loaded.
    """
    if name in _BUILT_IN:
        return _load(name, _BUILT_IN[name], f"{__package__}.{name}")
    point = entry_point(FAMILIES, name)
    if point is None:
        names = family_names()
        raise ConfigError(
            f"family {name!r} is not known.", nearest(name, names) or f"Use one of {list(names)}."
        )
    loaded = _load(name, point.value, f"distribution {owner(point)}")
    return replace(loaded, source=source(name))


def _load(name: str, value: str, origin: str) -> Family:
    module, _, attribute = value.partition(":")
    try:
        loaded: object = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # foreign code may raise anything while it is imported
        raise ConfigError(
            f"family {name!r} of {origin} cannot be loaded from {value!r}: "
            f"{type(error).__name__}: {error}.",
            "Reinstall or uninstall that distribution.",
        ) from error
    if not isinstance(loaded, Family) or loaded.name != name:
        raise ConfigError(
            f"family {name!r} of {origin}: {value!r} is no Family of that name.",
            "Correct its entry point.",
        )
    return loaded
