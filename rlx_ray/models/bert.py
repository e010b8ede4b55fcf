"""BERT encoders with a sentence-transformers head: facts of a checkpoint.

Source: Devlin et al., "BERT" (arXiv:1810.04805); Reimers and Gurevych, "Sentence-BERT"
(arXiv:1908.10084). Files: `config.json` as transformers writes it for `BertModel`;
`modules.json`, the pooling module's `config.json` and `sentence_bert_config.json` as
sentence-transformers writes them.

A checkpoint without `modules.json` is taken as sentence-transformers takes it: mean pooling over
the tokens, no normalisation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rlx_ray.component import Homogeneous, LayerComposition, ModelPhase, Pair, Single
from rlx_ray.digest import canonical_json, json_digest
from rlx_ray.dtype import DType
from rlx_ray.errors import CheckpointError, ConfigError
from rlx_ray.models.family import Family, Limits, ModelFacts, ParamSpec, Tensors, Texts
from rlx_ray.spec import TensorSpec

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}

_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
}

_FLOATS = (DType.F32, DType.F16, DType.BF16, DType.F64)

_REPAIR = "Fetch the checkpoint again, or correct the file."


def read(texts: Texts, tensors: Tensors) -> ModelFacts:
    """The facts of a BERT checkpoint.

    Raises:
        CheckpointError: a file or tensor is missing or malformed.
        ConfigError: a variety of BERT that is not known here.
    """
    raw = _json(texts, "config.json")
    if raw is None:
        raise CheckpointError("The checkpoint has no config.json.", "Point 'source' at its folder.")
    pooling, normalize = _head(texts)
    config = {**_sizes(raw), "pooling": pooling, "normalize": normalize}
    prefix = "" if "embeddings.word_embeddings.weight" in tensors else "bert."
    params: list[ParamSpec] = []
    specs: list[TensorSpec] = []
    for param, sources in _layout(config, prefix):
        params.append(param)
        specs.extend(_checked(tensors, name, shape) for name, shape in sources)
    specs.sort(key=lambda spec: spec.name)
    return ModelFacts(
        family="bert",
        family_source=None,
        config=canonical_json(config).decode(),
        fingerprint=json_digest([spec.to_json() for spec in specs]),
        composition=_composition(config),
        limits=_limits(texts, config["positions"]),
        tensors=tuple(specs),
        params=tuple(params),
    )


def _composition(config: Mapping[str, Any]) -> LayerComposition:
    body = Pair(Single("embed"), Homogeneous("bert_layer", config["layers"]))
    return Pair(body, Single(f"{config['pooling']}_pool"))


def _json(texts: Texts, name: str, kind: type = dict) -> Any:
    text = texts(name)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{name} is malformed JSON: {error}.", _REPAIR) from error
    if not isinstance(value, kind):
        raise CheckpointError(
            f"{name} is a {type(value).__name__}, not a {kind.__name__}.", _REPAIR
        )
    return value


def _sizes(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says, under our names."""
    _choice(raw, "model_type", "bert", {"bert": "bert"})
    _choice(raw, "position_embedding_type", "absolute", {"absolute": "absolute"})
    for flag in ("is_decoder", "add_cross_attention"):
        if raw.get(flag, False) is not False:
            raise ConfigError(
                f"config.json: {flag} is {raw[flag]!r}; only encoders (false) are known.",
                "Use an encoder checkpoint.",
            )
    sizes: dict[str, Any] = {
        "layers": _whole(raw, "num_hidden_layers"),
        "hidden": _whole(raw, "hidden_size"),
        "heads": _whole(raw, "num_attention_heads"),
        "intermediate": _whole(raw, "intermediate_size"),
        "activation": _choice(raw, "hidden_act", "gelu", _ACTIVATIONS),
        "positions": _whole(raw, "max_position_embeddings"),
        "vocab": _whole(raw, "vocab_size"),
        "token_types": _whole(raw, "type_vocab_size"),
        "eps": _epsilon(raw),
    }
    if sizes["hidden"] % sizes["heads"]:
        raise CheckpointError(
            f"config.json: hidden_size {sizes['hidden']} is no multiple of num_attention_heads "
            f"{sizes['heads']}.",
            _REPAIR,
        )
    return sizes


def _whole(raw: Mapping[str, Any], name: str) -> int:
    value = raw.get(name)
    if type(value) is not int or value < 1:
        found = f"is {value!r}" if name in raw else "is missing"
        raise CheckpointError(f"config.json: {name} {found}, expected a whole number.", _REPAIR)
    return value


def _choice(raw: Mapping[str, Any], name: str, default: str, allowed: Mapping[str, str]) -> str:
    value = raw.get(name, default)
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(
            f"config.json: {name} {value!r} is not known for family bert.",
            f"Known are {sorted(allowed)}.",
        )
    return allowed[value]


def _epsilon(raw: Mapping[str, Any]) -> float:
    value = raw.get("layer_norm_eps", 1e-12)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise CheckpointError(
            f"config.json: layer_norm_eps is {value!r}, expected a number between 0 and 1.",
            _REPAIR,
        )
    return float(value)


def _head(texts: Texts) -> tuple[str, bool]:
    """Pooling, and whether the embedding is normalised."""
    rows = _json(texts, "modules.json", list)
    if rows is None:
        return "mean", False
    if not all(isinstance(r, dict) and isinstance(r.get("type"), str) for r in rows):
        raise CheckpointError("modules.json has an entry without a 'type'.", _REPAIR)
    kinds = [row["type"].rpartition(".")[2] for row in rows]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ConfigError(
            f"modules.json: the modules {kinds} are not known for family bert.",
            "Known are Transformer, Pooling and then perhaps Normalize.",
        )
    return _pooling(texts, f"{rows[1].get('path', '1_Pooling')}/config.json"), len(kinds) == 3


def _pooling(texts: Texts, name: str) -> str:
    flags = _json(texts, name)
    if flags is None:
        raise CheckpointError(f"The checkpoint has no {name}, which modules.json names.", _REPAIR)
    mode = flags.get("pooling_mode")
    if isinstance(mode, str):
        modes = [mode]
    else:
        # sentence-transformers takes the mean unless the file says that it does not.
        flags = {"pooling_mode_mean_tokens": True, **flags}
        on = sorted(k for k, v in flags.items() if k.startswith("pooling_mode_") and v)
        modes = [_POOLINGS.get(k, k) for k in on]
    if len(modes) != 1 or modes[0] not in _POOLINGS.values():
        raise ConfigError(
            f"{name}: pooling {modes} is not known for family bert.",
            f"Known is exactly one of {sorted(_POOLINGS.values())}.",
        )
    return modes[0]


def _limits(texts: Texts, positions: int) -> Limits:
    """The head's limit wins over the tokenizer's; no text is longer than the position table."""
    for name, key in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        value = (_json(texts, name) or {}).get(key)
        if value is None:
            continue
        # transformers writes int(1e30) for "no limit".
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
            raise CheckpointError(f"{name}: {key} is {value!r}, expected a whole number.", _REPAIR)
        return Limits(int(min(value, positions)), positions)
    return Limits(positions, positions)


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
            "Check that the checkpoint is a BERT of the layers that its config.json counts.",
        )
    if tuple(found.shape) != shape:
        raise CheckpointError(
            f"tensor {name!r} has shape {list(found.shape)}; config.json says {list(shape)}.",
            _REPAIR,
        )
    if found.dtype not in _FLOATS:
        raise CheckpointError(
            f"tensor {name!r} has dtype {found.dtype}.",
            f"Use a checkpoint in one of {[str(d) for d in _FLOATS]}.",
        )
    return TensorSpec(name, found.dtype.text, shape)


FAMILY = Family(
    name="bert",
    read=read,
    phases=(ModelPhase.ENCODER,),
    inputs=("input_ids", "token_type_ids", "lengths"),
)
