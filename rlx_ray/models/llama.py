"""Llama and its kin: facts of a checkpoint, from a Hugging Face folder or a GGUF file.

Llama 2 and 3, SmolLM2, TinyLlama, Mistral (sliding window), Qwen2 (QKV bias), Qwen3 (QK norm).
Source: Touvron et al., arXiv:2302.13971; `config.json` as transformers writes it; GGUF keys as
llama.cpp does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from rlx_ray.component import Homogeneous, ModelPhase, Pair, QuantScheme, Single
from rlx_ray.digest import canonical_json, json_digest
from rlx_ray.dtype import DType
from rlx_ray.errors import CheckpointError, ConfigError
from rlx_ray.models.family import Family, Limits, ModelFacts, ParamSpec, TensorInfo, Tensors, Texts
from rlx_ray.models.head import REPAIR, read_json
from rlx_ray.spec import TensorSpec

_FLOATS = (DType.F32, DType.F16, DType.BF16, DType.F64)

_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Values of config.json's model_type, and of GGUF's general.architecture (mistral's is llama)."""


def read(texts: Texts, tensors: Tensors) -> ModelFacts:
    """The facts of a checkpoint.

    Raises:
        CheckpointError: a file or tensor is missing or malformed.
        ConfigError: a variety that is not known here.
    """
    metadata = read_json(texts, "gguf.json")
    if metadata is not None:
        config, names = _from_gguf(metadata, tensors), _GGUF_NAMES
    else:
        raw = read_json(texts, "config.json")
        if raw is None:
            raise CheckpointError(
                "The checkpoint has no config.json.", "Point 'source' at its folder or .gguf file."
            )
        config, names = _from_config(raw, tensors), _HF_NAMES
    params: list[ParamSpec] = []
    specs: dict[str, TensorSpec] = {}
    kinds: Counter[str] = Counter()
    for param, sources in _layout(config, names, metadata is not None, tensors):
        params.append(param)
        for name, shape in sources:
            specs[name] = _checked(tensors, name, shape)
            if param.layout == "matrix":
                kinds[specs[name].quant or ""] += math.prod(shape)
    rows = sorted(specs.values(), key=lambda spec: spec.name)
    dominant = kinds.most_common(1)[0][0]
    return ModelFacts(
        family="llama",
        family_source=None,
        config=canonical_json(config).decode(),
        fingerprint=json_digest([spec.to_json() for spec in rows]),
        composition=Pair(Single("embed"), Homogeneous("llama_layer", config["layers"])),
        limits=Limits(config["positions"], config["positions"]),
        tensors=tuple(rows),
        params=tuple(params),
        scheme=QuantScheme.parse(dominant) if dominant else None,
        stop_ids=_stop_ids(texts, metadata),
    )


def _stop_ids(texts: Texts, metadata: Mapping[str, Any] | None) -> tuple[int, ...]:
    """The tokens that end a generation, from the file that says so."""
    if metadata is not None:
        found = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    else:
        generation = read_json(texts, "generation_config.json") or {}
        config = read_json(texts, "config.json")
        value = generation.get("eos_token_id", config.get("eos_token_id"))
        found = value if isinstance(value, list) else [value]
    return tuple(sorted({i for i in found if type(i) is int}))


# config.json ------------------------------------------------------------------------------------


def _from_config(raw: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """What config.json says, under our names."""
    kind = raw.get("model_type")
    if kind not in _TYPES:
        raise ConfigError(
            f"config.json: model_type {kind!r} is not known for family llama.",
            f"Known are {list(_TYPES)}.",
        )
    act = raw.get("hidden_act", "silu")
    if act != "silu":
        raise ConfigError(
            f"config.json: hidden_act {act!r} is not known for family llama.", "Known is 'silu'."
        )
    if raw.get("mlp_bias"):
        raise ConfigError(
            "config.json: mlp_bias is true, which is not known for family llama.",
            "Use a checkpoint whose feed-forward layers have no bias.",
        )
    heads, hidden = _whole(raw, "num_attention_heads"), _whole(raw, "hidden_size")
    layers = _whole(raw, "num_hidden_layers")
    return _complete(
        {
            "layers": layers,
            "hidden": hidden,
            "heads": heads,
            "kv_heads": _whole(raw, "num_key_value_heads", heads),
            "dim": _whole(raw, "head_dim", hidden // heads),
            "intermediate": _whole(raw, "intermediate_size"),
            "positions": _whole(raw, "max_position_embeddings"),
            "vocab": _whole(raw, "vocab_size"),
            "eps": _real(raw, "rms_norm_eps", 1e-6),
            "window": _window_of_config(raw, layers),
            "rope": _rope_of_config(raw),
        },
        tensors,
        "model.layers.0.self_attn",
        ("q_proj.bias", "o_proj.bias", "q_norm.weight"),
        "lm_head.weight",
        "config.json",
    )


def _window_of_config(raw: Mapping[str, Any], layers: int) -> int:
    """Most tokens that a token sees; 0 for all of them."""
    used = raw.get("use_sliding_window", raw.get("model_type") == "mistral")
    if not used or raw.get("sliding_window") is None:
        return 0
    kinds = raw.get("layer_types")
    if kinds is None:  # Qwen2 and Qwen3 see everything in their first max_window_layers
        first = 0 if raw.get("model_type") == "mistral" else raw.get("max_window_layers", 28)
        if type(first) is not int:
            raise CheckpointError(f"max_window_layers is {first!r}, expected a number.", REPAIR)
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise CheckpointError(f"layer_types is {kinds!r}, expected {layers} names.", REPAIR)
    windowed = kinds.count("sliding_attention")
    if 0 < windowed < layers:
        raise ConfigError(
            f"config.json: sliding_window holds for {windowed} of the {layers} layers "
            "(max_window_layers, layer_types), which is not known for family llama.",
            "Use a checkpoint with a window in all layers or in none.",
        )
    return _whole(raw, "sliding_window") if windowed else 0


def _rope_of_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    parameters = raw.get("rope_parameters")
    scaling = (parameters if isinstance(parameters, dict) else raw.get("rope_scaling")) or {}
    theta = scaling.get("rope_theta", raw.get("rope_theta", 10000.0))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    rope: dict[str, Any] = {"theta": _positive(theta, "rope_theta"), "kind": kind}
    positions = _whole(raw, "max_position_embeddings")
    if kind == "default":
        return rope
    if kind not in ("linear", "llama3", "yarn"):
        raise ConfigError(
            f"config.json: rope_scaling type {kind!r} is not known.",
            "Known are linear, llama3 and yarn.",
        )

    def value(name: str, default: float | None = None) -> float:
        return _positive(scaling.get(name, default), f"rope_scaling.{name}")

    rope["factor"] = value("factor")
    if kind == "llama3":
        rope |= {
            "original": value("original_max_position_embeddings"),
            "low": value("low_freq_factor"),
            "high": value("high_freq_factor"),
        }
    if kind == "yarn":
        rope |= _yarn(rope["factor"], value("original_max_position_embeddings", positions))
        for ours, theirs in (("beta_fast", "beta_fast"), ("beta_slow", "beta_slow")):
            rope[ours] = value(theirs, rope[ours])
        rope["attention"] = value("attention_factor", rope["attention"])
    return rope


def _yarn(factor: float, original: float) -> dict[str, float]:
    attention = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    return {"original": original, "beta_fast": 32.0, "beta_slow": 1.0, "attention": attention}


# GGUF -------------------------------------------------------------------------------------------


def _from_gguf(raw: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """What the metadata of a GGUF file says, under our names."""
    arch = raw.get("general.architecture")
    if arch not in _TYPES:
        raise ConfigError(
            f"GGUF: general.architecture {arch!r} is not known for family llama.",
            f"Known are {list(_TYPES)}.",
        )
    heads = _whole(raw, f"{arch}.attention.head_count")
    hidden = _whole(raw, f"{arch}.embedding_length")
    table = tensors.get("token_embd.weight")
    vocab = table.shape[0] if table is not None and len(table.shape) == 2 else 0
    return _complete(
        {
            "layers": _whole(raw, f"{arch}.block_count"),
            "hidden": hidden,
            "heads": heads,
            "kv_heads": _whole(raw, f"{arch}.attention.head_count_kv", heads),
            "dim": _whole(raw, f"{arch}.attention.key_length", hidden // heads),
            "intermediate": _whole(raw, f"{arch}.feed_forward_length"),
            "positions": _whole(raw, f"{arch}.context_length"),
            "vocab": vocab,
            "eps": _real(raw, f"{arch}.attention.layer_norm_rms_epsilon", 1e-5),
            "window": raw.get(f"{arch}.attention.sliding_window", 0),
            "rope": _rope_of_gguf(raw, arch),
            "rotary_pairs": arch in ("llama", "mistral"),
        },
        tensors,
        "blk.0",
        ("attn_q.bias", "attn_output.bias", "attn_q_norm.weight"),
        "output.weight",
        "GGUF",
    )


def _rope_of_gguf(raw: Mapping[str, Any], arch: str) -> dict[str, Any]:
    theta = _positive(raw.get(f"{arch}.rope.freq_base", 10000.0), f"{arch}.rope.freq_base")
    kind = raw.get(f"{arch}.rope.scaling.type", "none")
    rope: dict[str, Any] = {"theta": theta, "kind": "default" if kind == "none" else kind}
    if kind == "none":
        return rope
    if kind not in ("linear", "yarn"):
        raise ConfigError(
            f"GGUF: {arch}.rope.scaling.type {kind!r} is not known.", "Known are linear and yarn."
        )
    factor = f"{arch}.rope.scaling.factor"
    rope["factor"] = _positive(raw.get(factor), factor)
    if kind == "yarn":
        original = f"{arch}.rope.scaling.original_context_length"
        rope |= _yarn(rope["factor"], _positive(raw.get(original), original))
    return rope


# Both -------------------------------------------------------------------------------------------


def _complete(
    sizes: dict[str, Any],
    tensors: Tensors,
    layer: str,
    marks: tuple[str, str, str],
    head: str,
    where: str,
) -> dict[str, Any]:
    """The sizes with what only the tensors tell, checked against each other."""
    qkv_bias, out_bias, qk_norm = (f"{layer}.{mark}" in tensors for mark in marks)
    if out_bias:
        raise ConfigError(
            f"tensor '{layer}.{marks[1]}' is a bias on attention's output, which is not known for "
            "family llama.",
            "Use a checkpoint without it.",
        )
    if sizes["heads"] % sizes["kv_heads"]:
        raise CheckpointError(
            f"{where}: {sizes['heads']} attention heads are no multiple of {sizes['kv_heads']} "
            "key-value heads.",
            REPAIR,
        )
    if sizes["dim"] % 2:
        raise CheckpointError(f"{where}: the head dimension {sizes['dim']} is odd.", REPAIR)
    sizes.setdefault("rotary_pairs", False)
    return sizes | {"qkv_bias": qkv_bias, "qk_norm": qk_norm, "tied": head not in tensors}


_HF_NAMES = {
    "embed": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "layer": "model.layers.{}.",
    "norm1": "input_layernorm.weight",
    "norm2": "post_attention_layernorm.weight",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "out": "self_attn.o_proj.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
_GGUF_NAMES = {
    "embed": "token_embd.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
    "layer": "blk.{}.",
    "norm1": "attn_norm.weight",
    "norm2": "ffn_norm.weight",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "out": "attn_output.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
}

_Row = tuple[ParamSpec, list[tuple[str, tuple[int, ...]]]]


def _layout(
    config: Mapping[str, Any], names: Mapping[str, str], gguf: bool, tensors: Tensors
) -> Iterator[_Row]:
    """Every parameter in packing order, with the checkpoint tensors and shapes that it needs."""
    hidden, dim, vocab = config["hidden"], config["dim"], config["vocab"]
    table = (vocab, hidden)
    yield ParamSpec("embed.word", table, "plain", (names["embed"],)), [(names["embed"], table)]
    factors = ("rope_freqs.weight",) if gguf and "rope_freqs.weight" in tensors else ()
    rope = canonical_json(config["rope"]).decode()
    turns = ParamSpec("rope.turns", (config["positions"], dim), "rope", factors, made=rope)
    yield turns, [(name, (dim // 2,)) for name in factors]
    for i in range(config["layers"]):
        yield from _layer(f"layer.{i}", names["layer"].format(i), config, names)
    yield _plain("norm.weight", names["norm"], hidden)
    head = names["embed"] if config["tied"] else names["head"]
    yield _matrix("head.weight", ((head, vocab),), hidden)


def _layer(
    name: str, base: str, config: Mapping[str, Any], names: Mapping[str, str]
) -> Iterator[_Row]:
    hidden, dim, inner = config["hidden"], config["dim"], config["intermediate"]
    heads, kv_heads = config["heads"], config["kv_heads"]
    yield _plain(f"{name}.norm1.weight", base + names["norm1"], hidden)
    parts = tuple(
        (base + names[part], n * dim)
        for part, n in (("q", heads), ("k", kv_heads), ("v", kv_heads))
    )
    pairs = (heads, kv_heads, 0) if config["rotary_pairs"] else ()
    weights = tuple((f"{source}.weight", n) for source, n in parts)
    yield _matrix(f"{name}.qkv.weight", weights, hidden, pairs)
    if config["qkv_bias"]:
        sources = tuple(f"{source}.bias" for source, _ in parts)
        bias = ParamSpec(
            f"{name}.qkv.bias", (sum(n for _, n in parts),), "vector", sources, heads=pairs
        )
        yield bias, [(source, (n,)) for source, (_, n) in zip(sources, parts, strict=True)]
    if config["qk_norm"]:
        yield _plain(f"{name}.q_norm.weight", base + names["q_norm"], dim)
        yield _plain(f"{name}.k_norm.weight", base + names["k_norm"], dim)
    yield _matrix(f"{name}.out.weight", ((base + names["out"], hidden),), heads * dim)
    yield _plain(f"{name}.norm2.weight", base + names["norm2"], hidden)
    yield _matrix(f"{name}.gate.weight", ((base + names["gate"], inner),), hidden)
    yield _matrix(f"{name}.up.weight", ((base + names["up"], inner),), hidden)
    yield _matrix(f"{name}.down.weight", ((base + names["down"], hidden),), inner)


def _plain(name: str, source: str, extent: int) -> _Row:
    return ParamSpec(name, (extent,), "plain", (source,)), [(source, (extent,))]


def _matrix(
    name: str, sources: tuple[tuple[str, int], ...], k: int, heads: tuple[int, ...] = ()
) -> _Row:
    """A (K, N) matrix of [N_i, K] sources."""
    shape = (k, sum(n for _, n in sources))
    param = ParamSpec(name, shape, "matrix", tuple(source for source, _ in sources), heads=heads)
    return param, [(source, (n, k)) for source, n in sources]


def _checked(tensors: Tensors, name: str, shape: tuple[int, ...]) -> TensorSpec:
    found: TensorInfo | None = tensors.get(name)
    if found is None:
        raise CheckpointError(
            f"tensor {name!r} is missing; expected shape {list(shape)}.",
            "Check that the checkpoint has the layers that its config counts.",
        )
    if tuple(found.shape) != shape:
        raise CheckpointError(
            f"tensor {name!r} has shape {list(found.shape)}; the config says {list(shape)}.", REPAIR
        )
    scheme = found.scheme
    if scheme is None and found.dtype not in _FLOATS:
        raise CheckpointError(
            f"tensor {name!r} has dtype {found.dtype}.",
            f"Use a checkpoint in one of {[str(d) for d in _FLOATS]}, or a GGUF file.",
        )
    return TensorSpec(name, found.dtype.text, shape, None if scheme is None else scheme.debug)


def _whole(raw: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = raw.get(name)
    if value is None and default is not None:
        return default
    if type(value) is not int or value < 1:
        found = f"is {value!r}" if name in raw else "is missing"
        raise CheckpointError(f"{name} {found}, expected a whole number.", REPAIR)
    return value


def _real(raw: Mapping[str, Any], name: str, default: float) -> float:
    return _positive(raw.get(name, default), name)


def _positive(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(f"{name} is {value!r}, expected a number above 0.", REPAIR)
    return float(value)


FAMILY = Family(
    name="llama",
    read=read,
    phases=(ModelPhase.PREFILL, ModelPhase.DECODE),
    inputs=("input_ids", "lengths", "past", "pages"),
)
