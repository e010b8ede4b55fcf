"""Llama and its kin in float64 NumPy, one sequence at a time: an oracle that shares no code.

Tensors have GGUF names and Hugging Face's order of rows in Q and K (rotary halves); positions are
turned pair by pair with plain formulas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def logits(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], ids: Sequence[int]
) -> np.ndarray:
    """Logits (tokens, vocab) of every position.

    Args:
        tensors: by GGUF name, row-major.
        config: layers, heads, kv_heads, dim, eps, theta, window (0: none); `frequencies` overrides
            what theta gives.
        ids: token ids.
    """
    t = {name: array.astype(np.float64) for name, array in tensors.items()}
    positions = np.arange(len(ids))
    x = t["token_embd.weight"][np.asarray(ids)]
    for i in range(config["layers"]):
        base = f"blk.{i}."
        x = x + _attention(
            t, base, config, norm(x, t[f"{base}attn_norm.weight"], config), positions
        )
        h = norm(x, t[f"{base}ffn_norm.weight"], config)
        gate = h @ t[f"{base}ffn_gate.weight"].T
        gate = gate / (1 + np.exp(-gate))
        x = x + (gate * (h @ t[f"{base}ffn_up.weight"].T)) @ t[f"{base}ffn_down.weight"].T
    x = norm(x, t["output_norm.weight"], config)
    return x @ t.get("output.weight", t["token_embd.weight"]).T


def norm(x: np.ndarray, gain: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """RMS norm over the last axis."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["eps"]) * gain


def _attention(
    t: Mapping[str, np.ndarray],
    base: str,
    config: Mapping[str, Any],
    x: np.ndarray,
    positions: np.ndarray,
) -> np.ndarray:
    heads, kv_heads, dim = config["heads"], config["kv_heads"], config["dim"]
    parts = []
    for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        part = x @ t[f"{base}attn_{name}.weight"].T
        if f"{base}attn_{name}.bias" in t:
            part = part + t[f"{base}attn_{name}.bias"]
        part = part.reshape(len(x), count, dim)
        if f"{base}attn_{name}_norm.weight" in t:
            part = norm(part, t[f"{base}attn_{name}_norm.weight"], config)
        parts.append(part)
    q, k, v = (_turned(parts[0], config, positions), _turned(parts[1], config, positions), parts[2])
    out = np.zeros((len(x), heads, dim))
    distance = positions[:, None] - positions[None, :]
    hidden = distance < 0
    if config.get("window"):
        hidden |= distance >= config["window"]
    for h in range(heads):
        g = h // (heads // kv_heads)
        scores = q[:, h] @ k[:, g].T / np.sqrt(dim)
        scores[hidden] = -np.inf
        e = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, h] = e / e.sum(-1, keepdims=True) @ v[:, g]
    return out.reshape(len(x), -1) @ t[f"{base}attn_output.weight"].T


def _turned(x: np.ndarray, config: Mapping[str, Any], positions: np.ndarray) -> np.ndarray:
    half = config["dim"] // 2
    default = [config["theta"] ** (-2 * i / config["dim"]) for i in range(half)]
    frequencies = config.get("frequencies", default)
    y = np.empty_like(x)
    for i, frequency in enumerate(frequencies):
        cos, sin = np.cos(positions * frequency)[:, None], np.sin(positions * frequency)[:, None]
        a, b = x[:, :, i], x[:, :, i + half]
        y[:, :, i], y[:, :, i + half] = a * cos - b * sin, b * cos + a * sin
    return y


def in_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of Q or K of a llama GGUF file, whose heads stand in pairs, in Hugging Face's order."""
    dim = rows.shape[0] // heads
    order = [h * dim + i for h in range(heads) for i in [*range(0, dim, 2), *range(1, dim, 2)]]
    return rows[order]
