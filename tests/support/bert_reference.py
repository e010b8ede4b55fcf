"""BERT with a sentence-transformers head in float64 NumPy, straight from checkpoint tensors.

An oracle: it shares no code with the package, works on one sequence at a time without any
padding, and takes Hugging Face names throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])


def forward(
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    ids: np.ndarray,
    lengths: Sequence[int],
    type_ids: np.ndarray | None = None,
    pooling: str = "mean",
    normalize: bool = True,
) -> np.ndarray:
    """Embeddings (B, hidden) in float64.

    Args:
        tensors: of the checkpoint, floating point.
        config: the raw config.json.
        ids: (B, S); what lies behind a sequence's length is ignored.
        lengths: tokens of each sequence, special ones included.
        type_ids: (B, S), zeros if None.
        pooling: mean, cls or max.
        normalize: whether to scale to unit length.
    """
    types = np.zeros_like(ids) if type_ids is None else type_ids
    rows = []
    for b, n in enumerate(lengths):
        x = hidden_states(tensors, config, np.asarray(ids[b][:n]), np.asarray(types[b][:n]))
        pooled = {"mean": x.mean(0), "cls": x[0], "max": x.max(0)}[pooling]
        # torch.nn.functional.normalize clamps the norm at 1e-12.
        rows.append(pooled / max(float(np.sqrt(pooled @ pooled)), 1e-12) if normalize else pooled)
    return np.stack(rows)


def hidden_states(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], ids: np.ndarray, types: np.ndarray
) -> np.ndarray:
    """The last layer's states (tokens, hidden) of one sequence."""
    prefix = "" if "embeddings.word_embeddings.weight" in tensors else "bert."

    def get(name: str) -> np.ndarray:
        return tensors[prefix + name].astype(np.float64)

    def linear(name: str, v: np.ndarray) -> np.ndarray:
        return v @ get(f"{name}.weight").T + get(f"{name}.bias")

    def norm(name: str, v: np.ndarray) -> np.ndarray:
        centred = v - v.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
        return centred / scale * get(f"{name}.weight") + get(f"{name}.bias")

    heads = config["num_attention_heads"]
    x = get("embeddings.word_embeddings.weight")[ids]
    x = x + get("embeddings.position_embeddings.weight")[: len(ids)]
    x = x + get("embeddings.token_type_embeddings.weight")[types]
    x = norm("embeddings.LayerNorm", x)
    for i in range(config["num_hidden_layers"]):
        base = f"encoder.layer.{i}"
        q, k, v = (
            linear(f"{base}.attention.self.{part}", x).reshape(len(ids), heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended = (weights @ v).swapaxes(0, 1).reshape(len(ids), -1)
        x = norm(
            f"{base}.attention.output.LayerNorm",
            x + linear(f"{base}.attention.output.dense", attended),
        )
        up = activate(config["hidden_act"], linear(f"{base}.intermediate.dense", x))
        x = norm(f"{base}.output.LayerNorm", x + linear(f"{base}.output.dense", up))
    return x


def activate(name: str, x: np.ndarray) -> np.ndarray:
    """The activation that config.json names."""
    if name == "gelu":
        return 0.5 * x * (1 + _erf(x / math.sqrt(2)))
    if name in ("gelu_new", "gelu_pytorch_tanh"):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert name == "relu", name
    return np.maximum(x, 0)
