"""BERT encoders and their kin: what a checkpoint says.

Source: Devlin et al., "BERT" (arXiv:1810.04805). Files: `config.json` as transformers writes it
for `BertModel`, `RobertaModel` and `XLMRobertaModel`; the head's are read in `models.head`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlx_ray.component import Homogeneous, LayerComposition, ModelPhase, Pair, Single
from rlx_ray.digest import canonical_json, json_digest
from rlx_ray.dtype import DType
from rlx_ray.errors import CheckpointError, ConfigError
from rlx_ray.models.family import Family, ModelInfo, Tensors, Texts
from rlx_ray.models.head import REPAIR, read_head, read_json, read_limits
from rlx_ray.spec import TensorSpec
from rlx_ray.weights.params import ParamSpec

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}

_FLOATS = (DType.F32, DType.F16, DType.BF16, DType.F64)

_FAMILY_OF = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta"}
"""The family of each model_type of config.json."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What sets one family apart from its kin.

    Attributes:
        family: its name, which also begins the names of tensors where they have a prefix.
        first_position: the row of the position table that a text's first token takes, from
            config.json.
    """

    family: str
    first_position: Callable[[Mapping[str, Any]], int]


def read(kind: Kind, texts: Texts, tensors: Tensors) -> ModelInfo:
    """What a checkpoint says.

    Raises:
        CheckpointError: a file or tensor is missing or malformed.
        ConfigError: a variety that is not known here, or one of another family.
    """
    raw = read_json(texts, "config.json")
    if raw is None:
        raise CheckpointError("The checkpoint has no config.json.", "Point 'source' at its folder.")
    pooling, normalize = read_head(texts, kind.family)
    config = {**_sizes(raw, kind), "pooling": pooling, "normalize": normalize}
    bare = "embeddings.word_embeddings.weight" in tensors
    params: list[ParamSpec] = []
    specs: list[TensorSpec] = []
    for param, sources in _layout(config, "" if bare else f"{kind.family}."):
        params.append(param)
        specs.extend(_checked(tensors, name, shape) for name, shape in sources)
    specs.sort(key=lambda spec: spec.name)
    return ModelInfo(
        family=kind.family,
        family_source=None,
        config=canonical_json(config).decode(),
        vocab=config["vocab"],
        hidden=config["hidden"],
        fingerprint=json_digest([spec.to_json() for spec in specs]),
        composition=_composition(config, kind.family),
        limits=read_limits(texts, config["positions"] - config["first_position"]),
        tensors=tuple(specs),
        params=tuple(params),
        token_types=config["token_types"],
    )


def _composition(config: Mapping[str, Any], family: str) -> LayerComposition:
    body = Pair(Single("embed"), Homogeneous(f"{family}_layer", config["layers"]))
    return Pair(body, Single(f"{config['pooling']}_pool"))


def _sizes(raw: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """What config.json says, under our names."""
    _check_model_type(raw, kind.family)
    absolute = {"absolute": "absolute"}
    _choice(raw, "position_embedding_type", "absolute", absolute, kind.family)
    for flag in ("is_decoder", "add_cross_attention"):
        if raw.get(flag, False) is not False:
            raise ConfigError(
                f"config.json: {flag} is {raw[flag]!r}; only encoders (false) are known.",
                "Use an encoder checkpoint.",
            )
    sizes: dict[str, Any] = {
        "layers": whole(raw, "num_hidden_layers"),
        "hidden": whole(raw, "hidden_size"),
        "heads": whole(raw, "num_attention_heads"),
        "intermediate": whole(raw, "intermediate_size"),
        "activation": _choice(raw, "hidden_act", "gelu", _ACTIVATIONS, kind.family),
        "positions": whole(raw, "max_position_embeddings"),
        "first_position": kind.first_position(raw),
        "vocab": whole(raw, "vocab_size"),
        "token_types": whole(raw, "type_vocab_size"),
        "eps": _epsilon(raw),
    }
    if sizes["hidden"] % sizes["heads"]:
        raise CheckpointError(
            f"config.json: hidden_size {sizes['hidden']} is no multiple of num_attention_heads "
            f"{sizes['heads']}.",
            REPAIR,
        )
    return sizes


def _check_model_type(raw: Mapping[str, Any], family: str) -> None:
    found = raw.get("model_type", "bert" if family == "bert" else None)
    owner = _FAMILY_OF.get(found) if isinstance(found, str) else None
    if owner is None:
        raise ConfigError(
            f"config.json: model_type {found!r} is not known for family {family}.",
            f"Known are {sorted(k for k, v in _FAMILY_OF.items() if v == family)}.",
        )
    if owner != family:
        raise ConfigError(
            f"config.json: model_type {found!r} is of family {owner}, not {family}.",
            f"Write 'family: {owner}' for this model.",
        )


def whole(raw: Mapping[str, Any], name: str) -> int:
    """A positive whole number of config.json.

    Raises:
        CheckpointError: it is missing or something else.
    """
    value = raw.get(name)
    if type(value) is not int or value < 1:
        found = f"is {value!r}" if name in raw else "is missing"
        raise CheckpointError(f"config.json: {name} {found}, expected a whole number.", REPAIR)
    return value


def _choice(
    raw: Mapping[str, Any], name: str, default: str, allowed: Mapping[str, str], family: str
) -> str:
    value = raw.get(name, default)
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(
            f"config.json: {name} {value!r} is not known for family {family}.",
            f"Known are {sorted(allowed)}.",
        )
    return allowed[value]


def _epsilon(raw: Mapping[str, Any]) -> float:
    value = raw.get("layer_norm_eps", 1e-12)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise CheckpointError(
            f"config.json: layer_norm_eps is {value!r}, expected a number between 0 and 1.",
            REPAIR,
        )
    return float(value)


_Row = tuple[ParamSpec, list[tuple[str, tuple[int, ...]]]]


def _layout(config: Mapping[str, Any], prefix: str) -> Iterator[_Row]:
    """Every parameter in packing order, with the checkpoint tensors and shapes that it needs."""
    hidden = config["hidden"]
    base = f"{prefix}embeddings"
    yield _plain("embed.word", f"{base}.word_embeddings.weight", (config["vocab"], hidden))
    yield _plain(
        "embed.position", f"{base}.position_embeddings.weight", (config["positions"], hidden)
    )
    yield _plain(
        "embed.type", f"{base}.token_type_embeddings.weight", (config["token_types"], hidden)
    )
    yield from _norm("embed.norm", f"{base}.LayerNorm", hidden)
    for i in range(config["layers"]):
        yield from _layer(f"layer.{i}", f"{prefix}encoder.layer.{i}", hidden, config)


def _layer(name: str, base: str, hidden: int, config: Mapping[str, Any]) -> Iterator[_Row]:
    inner = config["intermediate"]
    heads = tuple(f"{base}.attention.self.{part}" for part in ("query", "key", "value"))
    yield from _linear(f"{name}.qkv", heads, hidden, hidden)
    yield from _linear(f"{name}.out", (f"{base}.attention.output.dense",), hidden, hidden)
    yield from _norm(f"{name}.norm1", f"{base}.attention.output.LayerNorm", hidden)
    yield from _linear(f"{name}.up", (f"{base}.intermediate.dense",), hidden, inner)
    yield from _linear(f"{name}.down", (f"{base}.output.dense",), inner, hidden)
    yield from _norm(f"{name}.norm2", f"{base}.output.LayerNorm", hidden)


def _plain(name: str, source: str, shape: tuple[int, ...]) -> _Row:
    return ParamSpec(name, shape, "plain", (source,)), [(source, shape)]


def _norm(name: str, base: str, hidden: int) -> Iterator[_Row]:
    yield _plain(f"{name}.weight", f"{base}.weight", (hidden,))
    yield _plain(f"{name}.bias", f"{base}.bias", (hidden,))


def _linear(name: str, bases: tuple[str, ...], k: int, n: int) -> Iterator[_Row]:
    """A linear map of K inputs, made of one or more maps of N outputs each."""
    weights = tuple(f"{base}.weight" for base in bases)
    biases = tuple(f"{base}.bias" for base in bases)
    total = n * len(bases)
    yield (
        ParamSpec(f"{name}.weight", (k, total), "matrix", weights),
        [(source, (n, k)) for source in weights],
    )
    yield (
        ParamSpec(f"{name}.bias", (total,), "vector", biases),
        [(source, (n,)) for source in biases],
    )


def _checked(tensors: Tensors, name: str, shape: tuple[int, ...]) -> TensorSpec:
    found = tensors.get(name)
    if found is None:
        raise CheckpointError(
            f"tensor {name!r} is missing; expected shape {list(shape)}.",
            "Check that the checkpoint has the layers that its config.json counts.",
        )
    if tuple(found.shape) != shape:
        raise CheckpointError(
            f"tensor {name!r} has shape {list(found.shape)}; config.json says {list(shape)}.",
            REPAIR,
        )
    if found.dtype not in _FLOATS:
        raise CheckpointError(
            f"tensor {name!r} has dtype {found.dtype}.",
            f"Use a checkpoint in one of {[str(d) for d in _FLOATS]}.",
        )
    return TensorSpec(name, found.dtype.text, shape)


def family_of(kind: Kind) -> Family:
    """The family of a kind."""
    return Family(
        name=kind.family,
        read=partial(read, kind),
        phases=(ModelPhase.ENCODER,),
        inputs=("input_ids", "token_type_ids", "lengths"),
    )


FAMILY = family_of(Kind("bert", lambda raw: 0))
