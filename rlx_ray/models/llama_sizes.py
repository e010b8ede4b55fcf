"""Sizes of Llama and its kin under our names, as a Hugging Face folder or a GGUF file has them.

Source: `config.json` as transformers writes it; GGUF keys as llama.cpp does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rlx_ray.errors import CheckpointError, ConfigError
from rlx_ray.models.family import Tensors
from rlx_ray.models.head import REPAIR

_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Values of config.json's model_type, and of GGUF's general.architecture (mistral's is llama)."""


# config.json ------------------------------------------------------------------------------------


def from_config(raw: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
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


def from_gguf(raw: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
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
